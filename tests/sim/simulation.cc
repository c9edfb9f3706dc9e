#include "tests/sim/simulation.h"

namespace troupe::sim {
namespace {

// More handlers at one instant than this are a loop that never waits.
constexpr size_t handlers_max = 2'000'000;

Async<void> run_and_mark(Async<void> coroutine, std::shared_ptr<bool> ended) {
  co_await std::move(coroutine);
  *ended = true;
}

}  // namespace

Simulation::Simulation(uint64_t seed)
    : seed_(seed),
      plan_random_(seed),
      component_random_(seed ^ 0x636f6d706f6e656e),
      network_(std::make_unique<SimNetwork>(io_.get_executor(), clock_, history_,
                                            seed ^ 0x6e6574776f726b21)) {}

Simulation::~Simulation() {
  check_ = nullptr;
  scope_.cancel();
  run_until([this] { return scope_.size() == 0; }, std::chrono::hours(1));
  clock_.clear();
}

transport::Environment Simulation::environment(SimHost& host) {
  return {io_.get_executor(), io_.get_executor(), host.clock(), component_random_, host};
}

void Simulation::settle() {
  size_t handlers = 0;
  io_.restart();
  while (io_.poll_one() > 0) {
    TROUPE_ASSERT(++handlers < handlers_max, "something loops without waiting");
  }
}

void Simulation::step() {
  const Instant instant = *clock_.next();
  do {
    clock_.fire_next();
    settle();
  } while (clock_.next() && *clock_.next() <= instant);
  if (check_) check_();
}

void Simulation::run_for(Duration duration) {
  const Instant end = clock_.now() + duration;
  run_until([] { return false; }, duration);
  clock_.advance_to(end);
}

bool Simulation::run_until(const std::function<bool()>& done, Duration limit) {
  const Instant end = clock_.now() + limit;
  settle();
  while (!done()) {
    const auto next = clock_.next();
    if (!next || *next > end) {
      clock_.advance_to(end);
      return false;
    }
    step();
  }
  return true;
}

bool Simulation::run(Async<void> coroutine, Duration limit) {
  auto ended = std::make_shared<bool>(false);
  spawn(scope_, run_and_mark(std::move(coroutine), ended));
  return run_until([&] { return *ended; }, limit);
}

}  // namespace troupe::sim
