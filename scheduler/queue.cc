#include "scheduler/queue.h"

#include <utility>

namespace troupe::scheduler {

Shape* Queue::intern(Needs needs) {
  auto it = shapes_.find(needs);
  if (it == shapes_.end()) {
    it = shapes_.emplace(std::move(needs), std::make_unique<Shape>()).first;
    it->second->needs = &it->first;
    it->second->number = next_number_++;
    by_number_.emplace(it->second->number, it->second.get());
  }
  ++it->second->requests;
  return it->second.get();
}

void Queue::release(Shape* shape) {
  if (--shape->requests > 0) return;
  TROUPE_ASSERT(shape->waiting.empty(), "a shape without requests has none in line");
  by_number_.erase(shape->number);
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
    shape->waiting.insert(shape->waiting.end(), request);
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
  shape->waiting.erase(request);
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
  shape->waiting.erase(request);
  request->seniority.rank = rank;
  shape->waiting.insert(request);
  enter(shape);
}

void Queue::leave(Shape* shape) {
  if (shape->state == Shape::State::idle) return;
  lines_[static_cast<size_t>(shape->state)].erase(shape);
}

void Queue::enter(Shape* shape) {
  if (shape->state == Shape::State::idle) return;
  lines_[static_cast<size_t>(shape->state)].insert(shape);
}

}  // namespace troupe::scheduler
