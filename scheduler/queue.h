// What waits, by shape. Requests that need the same thing stand in one line: if its first does not
// fit, none of them does, until a node that could help has more room.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/cluster.h"
#include "scheduler/events.h"
#include "scheduler/policy.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {

// All that decides where a request may go.
struct Needs {
  bool gang = false;                    // All bundles at once; otherwise one unit at a time.
  std::vector<ResourceVector> bundles;  // One for leases and actors.
  Affinity affinity;
  Strategy strategy = Strategy::pack;
  GangStrategy gang_strategy = GangStrategy::pack;
  auto operator<=>(const Needs&) const = default;
};

struct Request;
// Rank, then arrival: a total order, for numbers of arrival differ.
struct Seniority {
  Rank rank;
  uint64_t arrival_number = 0;
  auto operator<=>(const Seniority&) const = default;
};
struct BySeniority {
  using is_transparent = void;
  bool operator()(const Request* a, const Request* b) const;
  bool operator()(const Seniority& a, const Request* b) const;
  bool operator()(const Request* a, const Seniority& b) const;
};

struct Shape {
  enum class State : uint8_t {
    idle,        // Nothing waits.
    ready,       // May fit: to be tried.
    blocked,     // Does not fit now.
    infeasible,  // Fits no node, were it empty.
  };
  uint64_t number = 0;  // In the order of first arrival.
  const Needs* needs = nullptr;
  uint64_t requests = 0;  // Waiting or placed; at 0 the shape is forgotten.
  std::set<Request*, BySeniority> waiting;
  uint64_t units_waiting = 0;
  State state = State::idle;
  // Versions of the cluster: when it was last found to fit empty nodes, and when no nodes could
  // be kept for it. Of its nodes alone: when none was there that it prefers.
  std::optional<uint64_t> feasible_at;
  std::optional<uint64_t> unpreferable_at;
  std::optional<uint64_t> unkeepable_at;
  // Impl::claims_version, and for whom no victims were found then.
  std::optional<std::pair<uint64_t, uint64_t>> unclaimable_at;

  const ResourceVector& demand() const { return needs->bundles.front(); }
  Request* head() const { return *waiting.begin(); }
};

// A lease, actor or gang from its arrival to its end.
struct Request {
  struct Unit {
    uint32_t number = 0;
    NodeIndex node = 0;
    Devices devices;
    NodeIndex bundle = 0;  // Of a gang's units: where what lies in the bundle is accounted.
    bool lends_cpu = false;
  };

  RequestId id;
  JobId job;
  Seniority seniority;
  Instant arrival;
  Standing standing;
  Instant review = Instant::max();  // When its rank may be another.
  Shape* shape = nullptr;
  uint32_t units_pending = 0;
  uint32_t next_slot = 0;
  std::vector<Unit> held;  // Ascending by number.
  Instant expires_at;      // Of leases that hold something.
  bool told_infeasible = false;
  bool can_pause = false;
  bool is_leaving = false;          // It was asked to make room.
  std::optional<Rank> victim_rank;  // As it stands in Impl::victims.
  // Of gangs: all that asked to lie within, by arrival; and that it was released.
  std::map<uint64_t, Request*> members;
  bool closing = false;

  bool is_lease() const { return std::holds_alternative<LeaseId>(id); }
  bool is_gang() const { return std::holds_alternative<GangId>(id); }
  // A gang that takes something in.
  bool is_open() const { return !closing && held.size() == shape->needs->bundles.size(); }
  const ResourceVector& demand_of(uint32_t unit) const {
    return shape->needs->gang ? shape->needs->bundles[unit] : shape->demand();
  }
};

inline bool BySeniority::operator()(const Request* a, const Request* b) const {
  return a->seniority < b->seniority;
}
inline bool BySeniority::operator()(const Seniority& a, const Request* b) const {
  return a < b->seniority;
}
inline bool BySeniority::operator()(const Request* a, const Seniority& b) const {
  return a->seniority < b;
}

class Queue {
 public:
  struct ByHead {
    bool operator()(const Shape* a, const Shape* b) const {
      return a->head()->seniority < b->head()->seniority;
    }
  };
  using Line = std::set<Shape*, ByHead>;

  // Finds or makes the shape and counts one more request of it.
  Shape* intern(Needs needs);
  // One request less; forgets the shape after the last.
  void release(Shape* shape);

  // Puts `units` more of the request in line; takes `units` out of it.
  void push(Request* request, uint32_t units);
  void pop(Request* request, uint32_t units);
  void set_state(Shape* shape, Shape::State state);
  // The request's place in its line, and its shape's among the others.
  void rerank(Request* request, const Rank& rank);

  const Line& ready() const { return line(Shape::State::ready); }
  const Line& blocked() const { return line(Shape::State::blocked); }
  const Line& infeasible() const { return line(Shape::State::infeasible); }
  uint64_t units_waiting() const { return units_waiting_; }

  // fn(const Shape&) in the order of first arrival.
  template <class Fn>
  void for_each_shape(Fn&& fn) const {
    for (const auto& [number, shape] : by_number_) fn(*shape);
  }

 private:
  const Line& line(Shape::State state) const { return lines_[static_cast<size_t>(state)]; }
  // A shape leaves its line while its head changes, for the line is ordered by heads.
  void leave(Shape* shape);
  void enter(Shape* shape);

  std::map<Needs, std::unique_ptr<Shape>> shapes_;
  std::map<uint64_t, Shape*> by_number_;
  uint64_t next_number_ = 0;
  uint64_t units_waiting_ = 0;
  Line lines_[4];  // By state; nothing stands in the first.
};

}  // namespace troupe::scheduler
