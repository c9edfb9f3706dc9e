#include "scheduler/queue.h"

#include <boost/container_hash/hash.hpp>
#include <utility>

namespace troupe::scheduler {
namespace {

void mix(size_t& hash, const std::vector<LabelSelector>& selectors) {
  boost::hash_combine(hash, selectors.size());
  for (const LabelSelector& selector : selectors) {
    boost::hash_combine(hash, selector.key);
    boost::hash_combine(hash, static_cast<int>(selector.test));
    boost::hash_range(hash, selector.values.begin(), selector.values.end());
  }
}

template <class IdType>
void mix(size_t& hash, const std::optional<IdType>& id) {
  boost::hash_combine(hash, id.has_value());
  if (!id) return;
  boost::hash_combine(hash, id->high);
  boost::hash_combine(hash, id->low);
}

}  // namespace

size_t NeedsHash::operator()(const Needs& needs) const noexcept {
  size_t hash = seed;
  boost::hash_combine(hash, needs.pool);
  boost::hash_combine(hash, needs.gang);
  for (const ResourceVector& bundle : needs.bundles) {
    boost::hash_combine(hash, bundle.cpu_milli);
    boost::hash_combine(hash, bundle.memory_mib);
    boost::hash_combine(hash, bundle.gpu_milli);
    for (const CustomAmount& amount : bundle.custom) {
      boost::hash_combine(hash, amount.name);
      boost::hash_combine(hash, amount.milli);
    }
  }
  const Affinity& affinity = needs.affinity;
  mix(hash, affinity.node);
  mix(hash, affinity.preferred_node);
  mix(hash, affinity.selectors);
  mix(hash, affinity.preferred);
  if (affinity.within) {
    mix(hash, std::optional(affinity.within->gang));
    boost::hash_combine(hash, affinity.within->bundle.value_or(UINT32_MAX));
  }
  boost::hash_combine(hash, static_cast<int>(needs.strategy));
  boost::hash_combine(hash, static_cast<int>(needs.gang_strategy));
  return hash;
}

SizeClass SizeClass::of(const std::vector<ResourceVector>& bundles) {
  SizeClass least{.gpu = INT32_MAX, .cpu = INT32_MAX};
  for (const ResourceVector& bundle : bundles) {
    const int64_t whole = bundle.gpu_milli / whole_gpu_milli;
    const int64_t gpu = bundle.gpu_milli == 0 ? 0 : whole + 1;
    least.gpu = std::min(least.gpu, static_cast<int32_t>(gpu));
    least.cpu = std::min(least.cpu, of_cpu(bundle.cpu_milli));
  }
  return least;
}

SizeClass SizeClass::of(const NodeLedger& ledger) {
  const int64_t whole = ledger.whole_gpus_free();
  const bool has_part = ledger.largest_partial_milli() > 0;
  const int64_t gpu = whole > 0 ? whole + 1 : has_part ? 1 : 0;
  return {static_cast<int32_t>(gpu), of_cpu(ledger.available().cpu_milli)};
}

void Job::add(Request* request) {
  request->job = this;
  request->job_before = last;
  (last != nullptr ? last->job_after : first) = request;
  last = request;
}

void Job::remove(Request* request) {
  Request* const before = request->job_before;
  Request* const after = request->job_after;
  (before != nullptr ? before->job_after : first) = after;
  (after != nullptr ? after->job_before : last) = before;
}

RequestId Request::id() const {
  switch (kind) {
    case Kind::lease:
      return LeaseId{raw};
    case Kind::actor:
      return ActorId{raw};
    case Kind::gang:
      break;
  }
  return GangId{raw};
}

const std::vector<Request::Unit>& Request::held() const {
  static const std::vector<Unit> none;
  return holding ? holding->units : none;
}

Shape* Queue::intern(Needs needs) {
  const auto [it, is_new] = shapes_.try_emplace(std::move(needs));
  if (is_new) {
    it->second = std::make_unique<Shape>();
    it->second->needs = &it->first;
    it->second->number = next_number_++;
    it->second->size = SizeClass::of(it->first.bundles);
    if (const auto& within = it->first.affinity.within) {
      Within& line = within_[within->gang];
      ++line.shapes;
      it->second->asleep = &line.asleep;
    } else {
      it->second->asleep = &asleep_[place_of(*it->second)];
    }
    by_number_.emplace(it->second->number, it->second.get());
  }
  ++it->second->requests;
  return it->second.get();
}

void Queue::release(Shape* shape) {
  if (--shape->requests > 0) return;
  TROUPE_ASSERT(shape->waiting.empty(), "a shape without requests has none in line");
  by_number_.erase(shape->number);
  if (const auto& within = shape->needs->affinity.within) {
    const auto line = within_.find(within->gang);
    if (--line->second.shapes == 0) within_.erase(line);
  }
  shapes_.erase(shapes_.find(*shape->needs));
}

void Queue::push(Request* request, uint32_t units) {
  if (units == 0) return;
  Shape* shape = request->shape;
  if (request->units_pending == 0) {
    // A new head changes the shape's place, any other only the length of its line.
    const bool heads = shape->waiting.empty() || request->seniority < shape->head()->seniority;
    if (heads) leave(shape);
    // Most requests come last in their line.
    shape->waiting.emplace_hint(shape->waiting.end(), request->seniority, request);
    if (shape->state == Shape::State::idle) shape->state = Shape::State::ready;
    if (heads) enter(shape);
  }
  request->units_pending += units;
  shape->units_waiting += units;
  units_waiting_ += units;
}

void Queue::pop(Request* request, uint32_t units) {
  TROUPE_ASSERT(units <= request->units_pending, "more taken than waited");
  if (units == 0) return;
  Shape* shape = request->shape;
  shape->units_waiting -= units;
  units_waiting_ -= units;
  if (request->units_pending > units) {
    request->units_pending -= units;
    return;
  }
  const bool heads = shape->head() == request;
  if (heads) leave(shape);
  request->units_pending = 0;
  shape->waiting.erase(request->seniority);
  if (shape->waiting.empty()) shape->state = Shape::State::idle;
  if (heads) enter(shape);
}

void Queue::set_state(Shape* shape, Shape::State state) {
  if (shape->state == state) return;
  leave(shape);
  shape->state = state;
  enter(shape);
}

void Queue::rerank(Request* request, const Rank& rank) {
  if (request->units_pending == 0) {
    request->seniority.rank = rank;
    return;
  }
  Shape* shape = request->shape;
  leave(shape);
  shape->waiting.erase(request->seniority);
  request->seniority.rank = rank;
  shape->waiting.emplace(request->seniority, request);
  enter(shape);
}

std::vector<Shape*> Queue::asleep_within(const GangId& gang) const {
  std::vector<Shape*> shapes;
  const auto line = within_.find(gang);
  if (line == within_.end()) return shapes;
  for (const auto& [seniority, shape] : line->second.asleep) shapes.push_back(shape);
  return shapes;
}

std::vector<Shape*> Queue::unplaced() const {
  std::vector<Shape*> shapes;
  for (const Shape::State state : {Shape::State::blocked, Shape::State::infeasible})
    for (const PoolLines& lines : pool_lines_)
      for (const auto& [seniority, shape] : lines.of(state)) shapes.push_back(shape);
  return shapes;
}

Shape* Queue::next_ready() const {
  std::optional<Front> first;
  for (const PoolIndex pool : ready_) {
    const auto& [seniority, shape] = *pool_lines_[pool].of(Shape::State::ready).begin();
    const Front front{seniority, shape, nullptr};
    if (!first || goes_before(front, *first)) first = front;
  }
  return first ? first->shape : nullptr;
}

const Line<Shape>& Queue::blocked(PoolIndex pool) const {
  static const Line<Shape> none;
  return pool < pool_lines_.size() ? pool_lines_[pool].of(Shape::State::blocked) : none;
}

std::vector<const Line<Shape>*> Queue::capped(PoolIndex pool) const {
  std::vector<const Line<Shape>*> lines;
  for (const auto& [by, of_pools] : capped_) {
    const auto line = of_pools.find(pool);
    if (line != of_pools.end() && !line->second.empty()) lines.push_back(&line->second);
  }
  return lines;
}

std::vector<Shape*> Queue::all_capped() const {
  std::vector<Shape*> shapes;
  for (const auto& [by, of_pools] : capped_)
    for (const auto& [pool, line] : of_pools)
      for (const auto& [seniority, shape] : line) shapes.push_back(shape);
  return shapes;
}

bool Queue::has_blocked() const {
  return std::ranges::any_of(
      pool_lines_, [](const PoolLines& lines) { return !lines.of(Shape::State::blocked).empty(); });
}

void Queue::set_capped(Shape* shape, PoolIndex by) {
  leave(shape);
  shape->state = Shape::State::capped;
  shape->cap = by;
  enter(shape);
}

Queue::Place Queue::place_of(const Shape& shape) {
  return {shape.size, shape.needs->pool};
}

Line<Shape>& Queue::line_of(const Shape& shape) {
  const PoolIndex pool = shape.needs->pool;
  if (shape.state == Shape::State::capped) return capped_[shape.cap][pool];
  if (pool >= pool_lines_.size()) pool_lines_.resize(pool + 1);
  return pool_lines_[pool].by_state[static_cast<size_t>(shape.state)];
}

void Queue::leave(Shape* shape) {
  if (shape->state == Shape::State::idle) return;
  const Seniority& head = shape->head()->seniority;
  Line<Shape>& line = line_of(*shape);
  line.erase(head);
  if (shape->state == Shape::State::capped) {
    --shapes_capped_;
  } else if (shape->state != Shape::State::ready) {
    shape->asleep->erase(head);
    if (shape->asleep->empty() && !shape->needs->affinity.within) occupied_.erase(place_of(*shape));
  } else if (line.empty()) {
    ready_.erase(shape->needs->pool);
  }
}

void Queue::enter(Shape* shape) {
  if (shape->state == Shape::State::idle) return;
  const Seniority& head = shape->head()->seniority;
  line_of(*shape).emplace(head, shape);
  if (shape->state == Shape::State::capped) {
    ++shapes_capped_;
  } else if (shape->state == Shape::State::ready) {
    ready_.insert(shape->needs->pool);
  } else {
    if (shape->asleep->empty() && !shape->needs->affinity.within)
      occupied_.emplace(place_of(*shape), shape->asleep);
    shape->asleep->emplace(head, shape);
  }
}

}  // namespace troupe::scheduler
