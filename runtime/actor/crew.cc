#include "actor/crew.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <thread>

#include "base/log.h"

namespace troupe::actor {

Crew::Crew(transport::Environment environment, Scope& scope, CrewOptions options)
    : environment_(environment),
      scope_(scope),
      options_(options),
      threads_least_(std::clamp<size_t>(std::thread::hardware_concurrency(), 1,
                                        std::max<size_t>(options.threads_max, 1))),
      lookout_(environment.rings) {}

Crew::~Crew() {
  std::unique_lock lock{mutex_};
  closed_ = true;
  lookout_.notify_all();
  ended_.wait(lock, [this] { return threads_ == 0; });
}

size_t Crew::threads() const {
  const std::lock_guard lock{mutex_};
  return threads_;
}

void Crew::ready(Member& member) {
  using State = Member::State;
  State state = member.state_.load();
  for (;;) {
    if (state == State::in_line || state == State::running_and_wanted) return;
    const State next = state == State::idle ? State::in_line : State::running_and_wanted;
    if (!member.state_.compare_exchange_weak(state, next)) continue;
    if (next == State::in_line) line_up(member);
    return;
  }
}

void Crew::line_up(Member& member) {
  bool short_of_threads = false;
  {
    const std::lock_guard lock{mutex_};
    line_.push_back(&member);
    line_count_.store(line_.size());
    const bool enough = lookout_.idle() >= line_.size();
    if (!enough && threads_ < threads_least_) {
      add_thread();
    } else {
      lookout_.notify(line_.size());
    }
    short_of_threads = !enough && !std::exchange(tending_, true);
  }
  if (short_of_threads) tend_soon();
}

void Crew::add_thread() {
  try {
    std::thread{[this] { run(); }}.detach();
    ++threads_;
  } catch (const std::system_error& failed) {
    log::error("no_more_threads", {{"threads", threads_}, {"why", failed.what()}});
  }
}

void Crew::run() noexcept {
  using State = Member::State;
  const auto has_something = [this] { return line_count_.load() > 0 || closed_.load(); };
  for (;;) {
    lookout_.wait(mutex_, has_something);
    Member* member = nullptr;
    {
      const std::lock_guard lock{mutex_};
      if (line_.empty() && closed_) break;
      if (line_.empty()) continue;
      member = line_.front();
      line_.pop_front();
      line_count_.store(line_.size());
      ++turns_;
      if (!line_.empty()) lookout_.notify(line_.size());  // For this thread is busy now.
    }
    member->state_.store(State::running);
    const auto after = member->turn();
    if (after == Member::After::again) {
      member->state_.store(State::in_line);
      line_up(*member);
    } else if (after == Member::After::idle) {
      State expected = State::running;
      if (!member->state_.compare_exchange_strong(expected, State::idle)) {
        member->state_.store(State::in_line);
        line_up(*member);
      }
    }
    const std::lock_guard lock{mutex_};
    if (line_.empty() && lookout_.idle() >= threads_least_) break;
  }
  const std::lock_guard lock{mutex_};
  --threads_;
  ended_.notify_all();
}

void Crew::tend_soon() {
  boost::asio::post(environment_.loop, [this] { spawn(scope_, tend()); });
}

Async<void> Crew::tend() {
  uint64_t turns = 0;
  {
    const std::lock_guard lock{mutex_};
    turns = turns_;
  }
  for (;;) {
    co_await sleep_for(environment_.clock, options_.patience);
    const std::lock_guard lock{mutex_};
    if (line_.empty()) {
      tending_ = false;
      co_return;
    }
    const bool stuck = std::exchange(turns, turns_) == turns_ && lookout_.idle() == 0;
    if (stuck && threads_ < options_.threads_max) add_thread();
  }
}

}  // namespace troupe::actor
