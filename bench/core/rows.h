// The families of rows, and what several of them use.
#pragma once

#include <troupe/troupe.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "harness.h"

namespace bench {

// The no-op of all rows: a task whose result is the two bytes "ok".
std::string small_value();
// Submits that many, and waits for all.
void run_small_tasks(const troupe::Session& session, int64_t count);

void task_rows(Harness& harness, const troupe::Session& session);
void actor_rows(Harness& harness, const troupe::Session& session);
void concurrent_actor_rows(Harness& harness, const troupe::Session& session);
void object_rows(Harness& harness, const troupe::Session& session);
void placement_rows(Harness& harness, const troupe::Session& session);
void scale_rows(Harness& harness, const troupe::Session& session);
// On a cluster of two nodes, of which one has the label bench=far.
void remote_rows(Harness& harness, const troupe::Session& session);

// What is not there by then is lost, and the row fails.
inline constexpr auto patience = std::chrono::minutes(5);

// Half the cores, as in Ray's n.
inline int64_t half_the_cores() {
  return std::max<int64_t>(1, std::thread::hardware_concurrency() / 2);
}

template <class T>
void get_all(const troupe::Session& session, const std::vector<troupe::ObjectRef<T>>& refs) {
  (void)session.get(refs, patience).value();
}

// Actors that end with the row.
template <class A>
struct Actors {
  std::vector<troupe::ActorRef<A>> refs;

  Actors() = default;
  Actors(const Actors&) = delete;
  Actors& operator=(const Actors&) = delete;
  ~Actors() {
    for (const auto& actor : refs) (void)actor.kill();
  }
  void wait_alive() const {
    for (const auto& actor : refs) actor.wait_alive(patience).value();
  }
};

}  // namespace bench
