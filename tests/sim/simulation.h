// A world in one thread: virtual time, seeded randomness, a network in memory. The same seed gives
// the same history, byte for byte, as long as the code under test orders nothing by address.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "base/random.h"
#include "tests/sim/history.h"
#include "tests/sim/sim_clock.h"
#include "tests/sim/sim_network.h"
#include "transport/environment.h"

namespace troupe::sim {

class Simulation {
 public:
  explicit Simulation(uint64_t seed);
  // Unwinds what scope() still owns. What the test built on environments must be stopped by then.
  ~Simulation();

  uint64_t seed() const { return seed_; }
  // The test's own randomness; components and the network have generators of their own, so that a
  // change in one does not reshuffle the others.
  Random& random() { return plan_random_; }
  SimClock& clock() { return clock_; }
  SimNetwork& network() { return *network_; }
  History& history() { return history_; }
  Executor executor() { return io_.get_executor(); }
  // For the test's own coroutines.
  Scope& scope() { return scope_; }

  // What the components of one simulated process are given. Blocking work runs on the loop too.
  transport::Environment environment(SimHost& host);

  // Called after each instant, once everything at it has happened: the place for invariants.
  void on_step(std::function<void()> check) { check_ = std::move(check); }
  // Adds a line of the test's own to the history.
  void record(const std::string& line) { history_.add(clock_.now(), line); }
  uint64_t history_hash() const { return history_.hash(); }

  void run_for(Duration duration);
  // Until `done` holds, looking after each instant; false if `limit` passed first.
  bool run_until(const std::function<bool()>& done, Duration limit);
  // Runs a coroutine to its end; false if it needs more than `limit`.
  bool run(Async<void> coroutine, Duration limit);

 private:
  // Everything that can happen without time passing.
  void settle();
  // One instant: its timers, and what follows from them.
  void step();

  const uint64_t seed_;
  boost::asio::io_context io_{1};
  SimClock clock_;
  SeededRandom plan_random_;
  SeededRandom component_random_;
  History history_;
  std::unique_ptr<SimNetwork> network_;
  Scope scope_{io_.get_executor()};
  std::function<void()> check_;
};

}  // namespace troupe::sim
