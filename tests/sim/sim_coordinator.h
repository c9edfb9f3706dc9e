// The service in which heads agree on who leads, as a model: one record and one lease on virtual
// time, which every head reaches by a way of its own that may be slow or cut.
#pragma once

#include <functional>
#include <string>

#include "base/random.h"
#include "head/coordinator.h"
#include "tests/sim/sim_network.h"

namespace troupe::sim {

class CoordinatorModel {
 public:
  CoordinatorModel(TimerClock& clock, Duration lease_time)
      : clock_(clock), lease_time_(lease_time) {}

  // What is recorded; who leads only while its lease lasts.
  head::LeadRecord read() const;
  Result<head::LeadRecord> lead(head::LeadRecord wanted);
  Status renew(int64_t lease);
  Result<head::LeadRecord> set_in_sync(const head::LeadRecord& mine);
  void end_lease(int64_t lease);
  Duration lease_time() const { return lease_time_; }
  // How many leases were over before somebody else led, without having been ended.
  uint64_t expired() const { return expired_; }
  // A request that is late, whoever waited for it.
  void at(Instant when, std::function<void()> request) { clock_.call_at(when, std::move(request)); }
  // As if its data were lost.
  void forget() { record_ = {}; }
  // Called with each record that becomes true.
  void on_change(std::function<void(const head::LeadRecord&)> hook) {
    on_change_ = std::move(hook);
  }

 private:
  bool is_held() const { return record_.lease != 0 && clock_.now() < lease_until_; }
  void changed();

  TimerClock& clock_;
  const Duration lease_time_;
  head::LeadRecord record_;
  Instant lease_until_;
  int64_t leases_ = 0;
  int64_t revisions_ = 0;
  uint64_t expired_ = 0;
  std::function<void(const head::LeadRecord&)> on_change_;
};

// Where it is, for cuts between machines.
inline constexpr const char* coordinator_machine = "machine-coordinator";

// One head's way to it.
class SimCoordinator final : public head::Coordinator {
 public:
  static constexpr Duration usual_latency = std::chrono::milliseconds(2);

  SimCoordinator(CoordinatorModel& model, TimerClock& clock, uint64_t seed)
      : model_(model), clock_(clock), random_(seed) {}

  // From here on the network's cuts between the two machines hold, and a dead process asks nothing.
  void reach_from(const SimHost& host, SimNetwork& network) {
    host_ = &host;
    network_ = &network;
  }
  // Requests, or only the answers, do not arrive any more, or do again.
  void cut(bool requests, bool answers) {
    requests_cut_ = requests;
    answers_cut_ = answers;
  }
  // How long an answer is waited for.
  void set_patience(Duration patience) { patience_ = patience; }
  // Each way takes up to so long: what comes too late for its sender is done all the same.
  void set_latency(Duration most) { latency_ = most; }

  Async<Result<head::LeadRecord>> read() override;
  Async<Result<head::LeadRecord>> lead(head::LeadRecord wanted) override;
  Async<Status> renew(int64_t lease) override;
  Async<Result<head::LeadRecord>> set_in_sync(head::LeadRecord mine) override;
  Async<Status> end_lease(int64_t lease) override;
  Duration lease_time() const override { return model_.lease_time(); }

 private:
  template <class T>
  Async<Result<T>> ask(std::function<Result<T>()> question);
  bool loses_request();
  bool loses_answer();

  CoordinatorModel& model_;
  TimerClock& clock_;
  SeededRandom random_;
  const SimHost* host_ = nullptr;  // Null: nothing but cut() cuts.
  SimNetwork* network_ = nullptr;
  bool requests_cut_ = false;
  bool answers_cut_ = false;
  Duration latency_ = usual_latency;
  Duration patience_ = std::chrono::milliseconds(1500);
};

}  // namespace troupe::sim
