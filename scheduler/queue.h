// What waits, by shape. Requests that need the same thing stand in one line: if its first does not
// fit, none of them does, until a node that could help has more room.
#pragma once

#include <absl/container/btree_map.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "scheduler/cluster.h"
#include "scheduler/events.h"
#include "scheduler/policy.h"
#include "scheduler/pools.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {

// All that decides where a request may go.
struct Needs {
  PoolIndex pool = 1;                   // Whose share it is of.
  bool gang = false;                    // All bundles at once; otherwise one unit at a time.
  std::vector<ResourceVector> bundles;  // One for leases and actors.
  Affinity affinity;
  Strategy strategy = Strategy::pack;
  GangStrategy gang_strategy = GangStrategy::pack;
  bool operator==(const Needs&) const = default;
};
struct NeedsHash {
  uint64_t seed = 0;
  size_t operator()(const Needs& needs) const noexcept;
};

struct Job;
struct Request;
// Rank, then arrival: a total order, for numbers of arrival differ.
struct Seniority {
  Rank rank;
  uint64_t arrival_number = 0;
  auto operator<=>(const Seniority&) const = default;
};
template <class T>
using Line = absl::btree_map<Seniority, T*>;

// Demands by how large they are, roughly: a node of a smaller class helps none of this one.
struct SizeClass {
  int32_t gpu = 0;  // 0: none; 1: a part of one; n + 1: n whole ones.
  int32_t cpu = 0;  // Of its milli the bits.
  auto operator<=>(const SizeClass&) const = default;

  static int32_t of_cpu(int64_t milli) {
    return milli <= 0 ? 0 : static_cast<int32_t>(std::bit_width(static_cast<uint64_t>(milli)));
  }
  // The least that all of these need.
  static SizeClass of(const std::vector<ResourceVector>& bundles);
  // The largest that finds room on such a node.
  static SizeClass of(const NodeLedger& ledger);
};

struct Shape {
  enum class State : uint8_t {
    idle,        // Nothing waits.
    ready,       // May fit: to be tried.
    blocked,     // Does not fit now.
    capped,      // Its pool, or one above, has no more to give now.
    infeasible,  // Fits no node, were it empty.
  };
  uint64_t number = 0;  // In the order of first arrival.
  const Needs* needs = nullptr;
  SizeClass size;
  uint64_t requests = 0;  // Waiting or placed; at 0 the shape is forgotten.
  Line<Request> waiting;
  uint64_t units_waiting = 0;
  // No request in line is overdue before: as of the last look at them, or earlier.
  Instant due_at = Instant::max();
  Line<Shape>* asleep = nullptr;  // Where it stands while it does not fit.
  PoolIndex cap = 0;              // While it is capped, whose limit is in the way.
  State state = State::idle;
  // Versions of the cluster: when it was last found to fit empty nodes, and when no nodes could
  // be kept for it. Of its nodes alone: when none was there that it prefers.
  std::optional<uint64_t> feasible_at;
  std::optional<uint64_t> unpreferable_at;
  std::optional<uint64_t> unkeepable_at;
  // Impl::claims_version, and for whom no victims were found then, in its pool and in others.
  using Attempt = std::optional<std::pair<uint64_t, uint64_t>>;
  Attempt unclaimable_at;
  Attempt unreclaimable_at;

  const ResourceVector& demand() const { return needs->bundles.front(); }
  Request* head() const { return waiting.begin()->second; }
};

// What a job has asked for, by arrival.
struct Job {
  JobId id;
  Request* first = nullptr;
  Request* last = nullptr;

  void add(Request* request);
  void remove(Request* request);
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

  enum class Kind : uint8_t { lease, actor, gang };
  // Of what holds something. A million others wait.
  struct Holding {
    std::vector<Unit> units;   // Ascending by number.
    Instant expires_at;        // Of leases.
    int64_t victim_shift = 0;  // What its place in Impl::victims was moved by.
  };

  RawId raw;
  Job* job = nullptr;
  Request* job_before = nullptr;  // By arrival.
  Request* job_after = nullptr;
  Seniority seniority;
  Standing standing;
  Instant review = Instant::max();  // When its rank may be another.
  Shape* shape = nullptr;
  uint32_t units_pending = 0;
  uint32_t next_slot = 0;
  std::unique_ptr<Holding> holding;
  Kind kind{};
  bool told_infeasible = false;
  bool can_pause = false;
  bool is_leaving = false;  // It was asked to make room.
  bool is_victim = false;   // It stands in Impl::victims.
  bool closing = false;     // A gang that was released.

  RequestId id() const;
  bool is_lease() const { return kind == Kind::lease; }
  bool is_gang() const { return kind == Kind::gang; }
  const std::vector<Unit>& held() const;
  // A gang that takes something in.
  bool is_open() const { return !closing && held().size() == shape->needs->bundles.size(); }
  const ResourceVector& demand_of(uint32_t unit) const {
    return shape->needs->gang ? shape->needs->bundles[unit] : shape->demand();
  }
};

// Where a walk over lines of several pools stands.
struct Front {
  Seniority seniority;
  Shape* shape;
  Line<Shape>* line;
};

class Queue {
 public:
  // `hash_seed` as in SchedulerOptions.
  Queue(const Pools& pools, uint64_t hash_seed)
      : pools_(pools), shapes_(16, NeedsHash{hash_seed}) {}

  // Finds or makes the shape and counts one more request of it.
  Shape* intern(Needs needs);
  // One request less; forgets the shape after the last.
  void release(Shape* shape);

  // Puts `units` more of the request in line; takes `units` out of it.
  void push(Request* request, uint32_t units);
  void pop(Request* request, uint32_t units);
  void set_state(Shape* shape, Shape::State state);
  void set_capped(Shape* shape, PoolIndex by);
  // The request's place in its line, and its shape's among the others.
  void rerank(Request* request, const Rank& rank);

  // The next to be tried: of the pool whose turn it is, the most senior. Null: none.
  Shape* next_ready() const;
  bool has_blocked() const;
  const Line<Shape>& blocked(PoolIndex pool) const;
  // By whose limit is in the way.
  std::vector<const Line<Shape>*> capped(PoolIndex pool) const;
  std::vector<Shape*> all_capped() const;
  bool all_fit_their_pools() const { return shapes_capped_ == 0; }
  // fn(Shape&) -> go on, pool by pool, by seniority.
  template <class Fn>
  void for_each_blocked(Fn&& fn) const {
    for (const PoolLines& lines : pool_lines_)
      for (const auto& [seniority, shape] : lines.of(Shape::State::blocked))
        if (!fn(*shape)) return;
  }
  // Those that do not fit, or never will. By pool and seniority.
  std::vector<Shape*> unplaced() const;
  // fn(Shape&) -> whether it placed something, in the order of pools and seniority, for those that
  // do not fit, that room of this class might help, and that are viable(const Shape&). It may take
  // requests out of the shape's line, which then comes again with its next one. What is viable
  // becomes less as things are placed, never more.
  template <class Viable, class Fn>
  void for_each_asleep(const SizeClass& room, Viable&& viable, Fn&& fn) {
    std::vector<Front> fronts;
    for (const auto& [place, line] : occupied_) {
      if (place.first.gpu > room.gpu) break;
      if (place.first.cpu <= room.cpu) start(fronts, *line, line->begin(), viable);
    }
    walk(fronts, viable, fn);
  }
  // The same for those that this pool's limit keeps waiting.
  template <class Viable, class Fn>
  void for_each_capped(PoolIndex by, Viable&& viable, Fn&& fn) {
    const auto of_pools = capped_.find(by);
    if (of_pools == capped_.end()) return;
    std::vector<Front> fronts;
    for (auto& [pool, line] : of_pools->second) start(fronts, line, line.begin(), viable);
    walk(fronts, viable, fn);
  }
  // Those that wait for the bundles of a gang.
  std::vector<Shape*> asleep_within(const GangId& gang) const;
  uint64_t units_waiting() const { return units_waiting_; }

  // fn(const Shape&) in the order of first arrival.
  template <class Fn>
  void for_each_shape(Fn&& fn) const {
    for (const auto& [number, shape] : by_number_) fn(*shape);
  }

 private:
  struct PoolLines {
    Line<Shape> by_state[5];  // Nothing stands in the first, nor in that of capped ones.
    const Line<Shape>& of(Shape::State state) const { return by_state[static_cast<size_t>(state)]; }
  };
  using LinesOfPools = std::map<PoolIndex, Line<Shape>>;

  // From there on the first that is viable.
  template <class Viable>
  static void start(std::vector<Front>& fronts, Line<Shape>& line, Line<Shape>::iterator from,
                    Viable& viable) {
    for (; from != line.end(); ++from) {
      if (!viable(std::as_const(*from->second))) continue;
      fronts.push_back({from->first, from->second, &line});
      return;
    }
  }
  bool goes_before(const Front& a, const Front& b) const {
    const PoolIndex pool_a = a.shape->needs->pool;
    const PoolIndex pool_b = b.shape->needs->pool;
    if (pool_a != pool_b) {
      if (pools_.before(pool_a, pool_b)) return true;
      if (pools_.before(pool_b, pool_a)) return false;
    }
    return a.seniority < b.seniority;
  }
  // The next one is on top of a heap. What is placed changes the turns of pools.
  template <class Viable, class Fn>
  void walk(std::vector<Front>& fronts, Viable& viable, Fn& fn) {
    const auto later = [this](const Front& a, const Front& b) { return goes_before(b, a); };
    std::ranges::make_heap(fronts, later);
    while (!fronts.empty()) {
      std::ranges::pop_heap(fronts, later);
      const Front first = fronts.back();
      fronts.pop_back();
      const bool placed = viable(std::as_const(*first.shape)) && fn(*first.shape);
      const size_t others = fronts.size();
      start(fronts, *first.line, first.line->upper_bound(first.seniority), viable);
      if (placed) {
        std::erase_if(fronts, [&](const Front& front) {
          if (viable(std::as_const(*front.shape))) return false;
          pending_.push_back(front);
          return true;
        });
        for (const Front& front : pending_)
          start(fronts, *front.line, front.line->upper_bound(front.seniority), viable);
        pending_.clear();
        std::ranges::make_heap(fronts, later);
      } else if (fronts.size() > others) {
        std::ranges::push_heap(fronts, later);
      }
    }
  }
  using Place = std::pair<SizeClass, PoolIndex>;
  static Place place_of(const Shape& shape);
  Line<Shape>& line_of(const Shape& shape);
  // A shape leaves its line while its head changes, for the line is ordered by heads.
  void leave(Shape* shape);
  void enter(Shape* shape);

  const Pools& pools_;
  std::unordered_map<Needs, std::unique_ptr<Shape>, NeedsHash> shapes_;
  std::map<uint64_t, Shape*> by_number_;
  uint64_t next_number_ = 0;
  uint64_t units_waiting_ = 0;
  std::vector<PoolLines> pool_lines_;
  std::set<PoolIndex> ready_;  // That have something to try.
  // Those blocked or infeasible once more: by class, and for what lies within a gang by the gang.
  std::map<Place, Line<Shape>> asleep_;
  absl::btree_map<Place, Line<Shape>*> occupied_;  // The lines of those that are not empty.
  std::vector<Front> pending_;                     // Empty but within walk().
  struct Within {
    Line<Shape> asleep;
    uint64_t shapes = 0;
  };
  std::map<GangId, Within> within_;
  uint64_t shapes_capped_ = 0;
  std::map<PoolIndex, LinesOfPools> capped_;  // By whose limit is in the way.
};

}  // namespace troupe::scheduler
