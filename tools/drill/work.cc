#include "drill/work.h"

#include <fmt/format.h>

#include <utility>

namespace troupe::drill {

using namespace std::chrono_literals;

namespace {
// As many as a small cluster has room for.
constexpr size_t asked_max = 1000;
}  // namespace

int64_t Tally::incarnation() const {
  const auto self = this_actor();
  return self ? self->incarnation : 0;
}
TROUPE_ACTOR(Tally(), add, count, incarnation);

Result<Session> join(const Cluster& cluster) {
  return connect({.state_folder = cluster.state(), .job_name = "drill", .log_to_driver = false});
}

Result<TallyRef> create_tally(const Session& session, const ActorOptions& options) {
  TROUPE_TRY(auto tally, session.create<Tally>(options));
  TROUPE_CHECK(tally.wait_alive(patience));
  return tally;
}

Result<std::vector<TallyRef>> create_tallies(const Session& session, const ActorOptions& options,
                                             size_t count) {
  TROUPE_TRY(auto tallies, session.create_many<Tally>(options, count));
  TROUPE_CHECK(session.wait_alive(tallies, patience));
  return tallies;
}

Result<int64_t> incarnation_of(const TallyRef& tally, std::chrono::nanoseconds timeout) {
  return tally.call<&Tally::incarnation>().get(timeout);
}

Caller::Caller(TallyRef tally) : tally_(std::move(tally)), thread_([this] { run(); }) {}

void Caller::stop() {
  over_ = true;
  if (thread_.joinable()) thread_.join();
}

void Caller::run() {
  while (!over_) {
    const auto count = tally_.call<&Tally::add>().get(5s);
    if (!count) {
      ++failed_;
      wrong_ = "a call failed: " + count.error().to_string();
    } else {
      ++acknowledged_;
      if (*count <= last_) wrong_ = fmt::format("a call counted {} after {}", *count, last_);
      last_ = *count;
    }
    pause(1ms);
  }
}

void Caller::check(Report& report) const {
  report.acknowledged += acknowledged_;
  const auto counted = tally_.call<&Tally::count>().get(patience);
  if (!counted) {
    report.lost += acknowledged_;
    report.complain("the actor that was called is gone: " + counted.error().to_string());
    return;
  }
  const auto count = static_cast<uint64_t>(*counted);
  if (count < acknowledged_) {
    report.lost += acknowledged_ - count;
    report.complain(fmt::format("{} calls were acknowledged, {} ran", +acknowledged_, count));
  } else if (count > acknowledged_ + failed_) {
    report.complain(fmt::format("{} calls were made, {} ran", acknowledged_ + failed_, count));
  }
  if (!wrong_.empty()) report.complain(wrong_);
}

Status Promises::make(const Session& session) {
  size_t number = 0;
  {
    const std::lock_guard lock{mutex_};
    number = tried_++;
  }
  Promise promise;
  promise.kind = number % 2 == 0 ? Kind::group : Kind::actor;
  const bool ends = number % 8 >= 6;  // Some of both.
  const std::string name = fmt::format("{}-{}", prefix_, number);
  if (promise.kind == Kind::group) {
    TROUPE_TRY(const auto group,
               session.create_placement_group(
                   {.bundles = {{.cpu = 0.001}}, .name = name, .detached = true}));
    promise.id = group.id().to_string();
    if (ends) {
      TROUPE_CHECK(group.remove());
      promise.ended = true;
    }
  } else {
    TROUPE_TRY(const auto actor, session.create<Tally>({.name = name,
                                                        .get_if_exists = true,
                                                        .detached = true,
                                                        .max_restarts = -1,
                                                        .process = ActorProcess::shared}));
    promise.id = actor.id().to_string();
    if (ends) {
      TROUPE_CHECK(actor.kill());
      promise.ended = true;
    }
  }
  const std::lock_guard lock{mutex_};
  made_[name] = std::move(promise);
  return ok();
}

size_t Promises::size() const {
  const std::lock_guard lock{mutex_};
  return made_.size();
}

// Errors: not_found, or why it cannot be used.
Status Promises::look(const Session& session, const std::string& name, const Promise& promise) {
  std::string id;
  if (promise.kind == Kind::group) {
    TROUPE_TRY(const auto group, session.find_placement_group(name));
    id = group.id().to_string();
  } else {
    TROUPE_TRY(const auto actor, session.find<Tally>(name));
    id = actor.id().to_string();
    if (!promise.ended) {
      TROUPE_TRY(const auto count, actor.call<&Tally::count>().get(patience));
      (void)count;
    }
  }
  if (id != promise.id) return error(Code::not_found, "there is another one of its name: " + id);
  return ok();
}

void Promises::check(const Session& session, Report& report) const {
  const std::lock_guard lock{mutex_};
  report.acknowledged += made_.size();
  for (const auto& [name, promise] : made_) {
    const Status looked = look(session, name, promise);
    if (promise.ended == (!looked && looked.error().code() == Code::not_found)) continue;
    ++report.lost;
    report.complain(promise.ended ? fmt::format("{} was ended and is back", name)
                                  : fmt::format("{} is lost: {}", name, looked.error().message()));
  }
}

size_t Promises::found(const Session& session) const {
  const std::lock_guard lock{mutex_};
  size_t count = 0;
  for (const auto& [name, promise] : made_) {
    if (promise.ended) continue;
    const Status looked = look(session, name, promise);
    if (looked || looked.error().code() != Code::not_found) ++count;
  }
  return count;
}

Asker::Asker(const Session& session, Promises& promises) : session_(session), promises_(promises) {
  thread_ = std::thread{[this] {
    while (!over_ && promises_.size() < asked_max) {
      const Status made = promises_.make(session_);
      (void)made;  // Refused, then: nothing was promised.
      pause(5ms);
    }
  }};
}

void Asker::stop() {
  over_ = true;
  if (thread_.joinable()) thread_.join();
}

}  // namespace troupe::drill
