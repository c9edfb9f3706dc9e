// What the users of a simulated cluster do: programs that come and go, with actors, calls, tasks,
// placement groups and refs. It checks the answers that they get.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/sim/promises.h"
#include "tests/sim/sim_cluster.h"

namespace troupe::sim {

class Workload {
 public:
  Workload(Simulation& simulation, SimCluster& cluster, Promises& promises);

  // Users begin what they do, or go on after wind_down().
  void begin(size_t users);
  // Nothing new is begun; what runs ends by itself.
  void wind_down() { winding_down_ = true; }
  bool is_idle() const { return doing_.empty(); }
  // What is not, for people.
  std::string what_runs() const;
  // All programs end. After wind_down().
  Async<void> end_all();

  uint64_t succeeded() const { return succeeded_; }
  uint64_t failed() const { return failed_; }
  // One actor, one call and one task from end to end. An error says what did not work.
  Async<Status> try_all(std::shared_ptr<SimDriver> driver);
  // A new program; null: it could not start.
  Async<std::shared_ptr<SimDriver>> new_program();

 private:
  // A value that a program holds on to.
  struct Held {
    client::ObjectName object;
    std::string text;
  };
  struct Program {
    std::shared_ptr<SimDriver> driver;
    std::vector<ActorId> actors;
    std::vector<Held> held;
    // Perhaps made, and not ended yet.
    std::vector<PlacementGroupId> groups;
    PlacementGroupId kept;  // Lives on until its program ends.
    std::vector<ActorId> spare_actors;
    bool job_lost = false;  // It ended: its driver was away for too long.
    bool is_usable() const { return driver->is_alive() && !job_lost; }
  };
  using Pointer = std::shared_ptr<Program>;

  Async<void> run(size_t user);
  Async<void> use(size_t user);
  Async<void> work(size_t user);
  // So that what is to live on fits into the smallest cluster.
  Async<void> tidy(size_t user);
  Async<void> end_program(size_t user);
  Async<void> pause(uint64_t ms_max);
  Async<void> do_something(size_t user, Pointer program);
  Async<void> use_actor(Pointer program);
  Async<void> call_any(Pointer program);
  Async<void> run_some_tasks(Pointer program);
  Async<void> call_once(Pointer program, ActorId actor);
  // Of any program, perhaps killed by now: what is said of it must be no older than what was said.
  Async<void> look_at_any(Pointer program);
  Async<bool> kill(Pointer program, ActorId actor);
  Async<void> use_group(Pointer program);
  // It was promised, and the head does not know it: its job may have ended, and else it is lost.
  Async<void> miss(Pointer program, std::string what);
  Async<void> remove(Pointer program, PlacementGroupId group);
  Async<void> run_tasks(Pointer program, uint64_t count, PlacementGroupId group);
  Async<void> hold_ref(Pointer program);
  Async<void> look_at_held(Pointer program);
  Async<void> pass_ref(Pointer program);
  // Who was paused for a while may be as much later.
  void check_end(const SimDriver& driver, Instant begun, Duration paused, Duration budget,
                 const std::string& what);
  template <class T>
  void note(std::string_view what, const Result<T>& outcome);
  std::string new_text() { return "value " + std::to_string(++texts_); }

  Simulation& simulation_;
  SimCluster& cluster_;
  Promises& promises_;
  Random& random_;
  std::vector<Pointer> programs_;  // By user; null: none runs.
  std::deque<ActorId> latest_actors_;
  bool winding_down_ = false;
  std::map<size_t, std::string> doing_;  // By user.
  uint64_t succeeded_ = 0;
  uint64_t failed_ = 0;
  uint64_t texts_ = 0;
};

}  // namespace troupe::sim
