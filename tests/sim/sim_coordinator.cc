#include "tests/sim/sim_coordinator.h"

#include <fmt/format.h>

namespace troupe::sim {

using head::LeadRecord;

LeadRecord CoordinatorModel::read() const {
  LeadRecord seen = record_;
  if (!is_held()) {
    seen.leader.clear();
    seen.address.clear();
    seen.lease = 0;
  }
  return seen;
}

void CoordinatorModel::changed() {
  record_.revision = ++revisions_;
  if (on_change_) on_change_(read());
}

Result<LeadRecord> CoordinatorModel::lead(LeadRecord wanted) {
  if (is_held()) return error(Code::conflict, record_.leader + " leads");
  if (wanted.revision != record_.revision) return error(Code::conflict, "the record has changed");
  if (record_.lease != 0 && lease_until_ != Instant{}) ++expired_;
  record_ = std::move(wanted);
  record_.lease = ++leases_;
  lease_until_ = clock_.now() + lease_time_;
  changed();
  return record_;
}

Status CoordinatorModel::renew(int64_t lease) {
  if (!is_held() || lease != record_.lease) return error(Code::conflict, "the lease is over");
  lease_until_ = clock_.now() + lease_time_;
  return ok();
}

Result<LeadRecord> CoordinatorModel::set_in_sync(const LeadRecord& mine) {
  if (!is_held() || mine.lease != record_.lease) return error(Code::conflict, "the lease is over");
  if (mine.revision != record_.revision) return error(Code::conflict, "the record has changed");
  record_.in_sync = mine.in_sync;
  changed();
  return record_;
}

void CoordinatorModel::end_lease(int64_t lease) {
  if (lease == record_.lease) lease_until_ = Instant{};
}

bool SimCoordinator::loses_request() {
  if (requests_cut_) return true;
  if (host_ == nullptr) return false;
  if (latency_ > usual_latency) network_->fault_counts().note(Fault::coordinator_slow);
  return !host_->is_alive() || network_->loses(host_->machine(), coordinator_machine);
}

bool SimCoordinator::loses_answer() {
  if (answers_cut_) return true;
  return host_ != nullptr && network_->loses(coordinator_machine, host_->machine());
}

// What is asked may be done though nobody hears of it.
template <class T>
Async<Result<T>> SimCoordinator::ask(std::function<Result<T>()> question) {
  const Instant end = clock_.now() + patience_;
  const auto way = [this] {
    return Duration{
        static_cast<int64_t>(random_.below(static_cast<uint64_t>(latency_.count()) + 1))};
  };
  const Duration there = way();
  const Duration back = way();
  const bool is_late = there > patience_;
  const bool is_lost = loses_request();
  if (is_late && !is_lost) model_.at(clock_.now() + there, [question] { (void)question(); });
  if (is_late || is_lost) {
    co_await sleep_until(clock_, end);
    co_return error(Code::deadline_exceeded, "the coordinator did not answer");
  }
  co_await sleep_for(clock_, there);
  Result<T> answer = question();
  if (loses_answer() || there + back > patience_) {
    co_await sleep_until(clock_, end);
    co_return error(Code::deadline_exceeded, "the coordinator did not answer");
  }
  co_await sleep_for(clock_, back);
  co_return answer;
}

Async<Result<LeadRecord>> SimCoordinator::read() {
  std::function<Result<LeadRecord>()> question = [&model = model_]() -> Result<LeadRecord> {
    return model.read();
  };
  return ask<LeadRecord>(std::move(question));
}

Async<Result<LeadRecord>> SimCoordinator::lead(LeadRecord wanted) {
  std::function<Result<LeadRecord>()> question = [&model = model_, wanted = std::move(wanted)] {
    return model.lead(wanted);
  };
  return ask<LeadRecord>(std::move(question));
}

Async<Status> SimCoordinator::renew(int64_t lease) {
  std::function<Result<bool>()> question = [&model = model_, lease]() -> Result<bool> {
    TROUPE_CHECK(model.renew(lease));
    return true;
  };
  auto done = co_await ask<bool>(std::move(question));
  if (!done) co_return std::move(done).error();
  co_return ok();
}

Async<Result<LeadRecord>> SimCoordinator::set_in_sync(LeadRecord mine) {
  std::function<Result<LeadRecord>()> question = [&model = model_, mine = std::move(mine)] {
    return model.set_in_sync(mine);
  };
  return ask<LeadRecord>(std::move(question));
}

Async<Status> SimCoordinator::end_lease(int64_t lease) {
  std::function<Result<bool>()> question = [&model = model_, lease]() -> Result<bool> {
    model.end_lease(lease);
    return true;
  };
  auto done = co_await ask<bool>(std::move(question));
  if (!done) co_return std::move(done).error();
  co_return ok();
}

}  // namespace troupe::sim
