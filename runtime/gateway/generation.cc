#include "gateway/generation.h"

#include <algorithm>

namespace troupe::gateway {

namespace {
// After so long without news the excluded replicas are tried again: their trouble may have passed.
constexpr Duration second_look = std::chrono::milliseconds(250);
}  // namespace

RetryingGeneration::RetryingGeneration(Backend& backend, TimerClock& clock, RetryOptions options,
                                       GenerateRequest request)
    : backend_(backend),
      clock_(clock),
      options_(options),
      request_(std::move(request)),
      deadline_(clock.now() + request_.budget) {}

// conflict: the process hosts another incarnation by now.
bool RetryingGeneration::replica_lost(const Error& failure) {
  return failure.code() == Code::unavailable || failure.code() == Code::outcome_unknown ||
         failure.code() == Code::conflict;
}

Async<Status> RetryingGeneration::begin() {
  const Instant give_up = std::min(deadline_, clock_.now() + options_.replica_wait);
  for (;;) {
    GenerateRequest request = request_;
    request.budget = deadline_ - clock_.now();
    if (request.budget <= Duration::zero()) {
      co_return error(Code::deadline_exceeded, "the request's time is over");
    }
    std::string tried;
    auto begun = co_await backend_.begin(std::move(request), excluded_, tried);
    if (begun) {
      running_ = std::move(*begun);
      fresh_ = true;
      co_return ok();
    }
    const Error failure = std::move(begun).error();
    if (!tried.empty()) {
      excluded_.insert(tried);
      if (failure.code() == Code::exhausted) {
        full_ = failure;
        continue;
      }
      if (!replica_lost(failure)) co_return failure;
      if (++retries_ >= options_.attempts_max) co_return failure;
      continue;
    }
    if (full_) co_return *full_;  // Asked all that are alive: pass the back-pressure on at once.
    if (!replica_lost(failure)) co_return failure;
    if (clock_.now() >= give_up) co_return failure;
    const Instant until = std::min(give_up, clock_.now() + second_look);
    const bool news = co_await backend_.wait_change(until);
    if (!news) excluded_.clear();
  }
}

Async<Result<std::optional<Chunk>>> RetryingGeneration::next() {
  for (;;) {
    if (!running_) TROUPE_CO_CHECK(co_await begin());
    auto chunk = co_await running_->next();
    if (chunk) {
      fresh_ = false;
      co_return chunk;
    }
    Error failure = std::move(chunk).error();
    // A full engine may say so in the stream: another one may have room.
    const bool full = fresh_ && failure.code() == Code::exhausted;
    if (committed_ || !(replica_lost(failure) || full)) co_return failure;
    if (++retries_ >= options_.attempts_max) co_return failure;
    excluded_.insert(running_->replica());
    restarted_ = restarted_ || !fresh_;
    running_.reset();
    if (full) full_ = std::move(failure);
  }
}

}  // namespace troupe::gateway
