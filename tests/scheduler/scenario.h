// A cluster to script in tests: short ways to say events, and to read what was decided.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/scheduler.h"

namespace troupe::scheduler {

template <class IdType>
IdType make_id(uint64_t n) {
  return IdType{RawId{0, n}};
}

inline ResourceVector cpus(int64_t count) {
  return {.cpu_milli = count * 1000};
}
inline ResourceVector gpus(int64_t milli, int64_t cpu_count = 0) {
  return {.cpu_milli = cpu_count * 1000, .gpu_milli = milli};
}

class Scenario {
 public:
  explicit Scenario(SchedulerOptions options = {}) : scheduler(std::move(options)) {}

  Decisions apply(const Event& event) { return scheduler.apply(event, now); }
  Decisions pass(Duration time) {
    now += time;
    return apply(TimePassed{});
  }
  Decisions node(uint64_t n, ResourceVector total, std::vector<Label> labels = {}) {
    return apply(NodeAdded{make_id<NodeId>(n), std::move(total), std::move(labels)});
  }
  Decisions lease(uint64_t n, const ResourceVector& demand, uint32_t slots = 1,
                  int32_t priority = 0) {
    return apply(LeaseRequested{.lease = make_id<LeaseId>(n),
                                .job = make_id<JobId>(1),
                                .demand = demand,
                                .slots = slots,
                                .priority = priority});
  }
  Decisions give_back(uint64_t n, std::vector<uint32_t> slots = {}) {
    return apply(LeaseReturned{make_id<LeaseId>(n), std::move(slots)});
  }
  Decisions actor(uint64_t n, const ResourceVector& demand, int32_t priority = 0,
                  bool restart = false) {
    return apply(ActorRequested{.actor = make_id<ActorId>(n),
                                .job = make_id<JobId>(1),
                                .demand = demand,
                                .priority = priority,
                                .restart = restart});
  }
  Decisions gang(uint64_t n, std::vector<ResourceVector> bundles,
                 GangStrategy strategy = GangStrategy::pack) {
    return apply(GangRequested{.gang = make_id<GangId>(n),
                               .job = make_id<JobId>(1),
                               .bundles = std::move(bundles),
                               .strategy = strategy});
  }
  std::string why(const RequestId& id) const { return scheduler.explain(id).text; }

  Scheduler scheduler;
  Instant now{std::chrono::seconds(1)};
};

template <class T>
std::vector<T> only(const Decisions& decisions) {
  std::vector<T> found;
  for (const Decision& decision : decisions)
    if (const T* typed = std::get_if<T>(&decision)) found.push_back(*typed);
  return found;
}

// "actor 1@2" or "lease 3@1x4" per grant, in order: who got what where, by the tests' numbers.
inline std::string grants(const Decisions& decisions) {
  std::string text;
  const auto put = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  for (const Decision& decision : decisions) {
    if (const auto* lease = std::get_if<LeaseGranted>(&decision))
      put("lease " + std::to_string(lease->lease.low) + "@" + std::to_string(lease->node.low) +
          "x" + std::to_string(lease->slots.size()));
    if (const auto* actor = std::get_if<ActorPlaced>(&decision))
      put("actor " + std::to_string(actor->actor.low) + "@" + std::to_string(actor->node.low));
    if (const auto* gang = std::get_if<GangPlaced>(&decision)) {
      std::string part = "gang " + std::to_string(gang->gang.low) + "@";
      for (const Placed& bundle : gang->bundles)
        part += (part.back() == '@' ? "" : "+") + std::to_string(bundle.node.low);
      put(part);
    }
  }
  return text;
}

}  // namespace troupe::scheduler
