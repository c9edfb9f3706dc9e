// What the calls of a process's instances wait for, for those who ask why something waits.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

#include "actor/instance.h"
#include "client/client.h"

namespace troupe::actor {

// Whose calls, as they are named for people. Outlived by what it points to.
struct Reported {
  Instance& instance;
  ActorId actor;  // Nil: a task slot.
  std::string_view class_name;
  std::string_view name;  // The actor's; empty: none.
};

// "Counter.add of the actor's name", or "task add".
std::string call_name(const Reported& of, const std::string& label);

// By the id of the first result.
using CallReports = std::unordered_map<TaskId, protocol::Explanation>;
// Adds those of the instances' calls that are among `wanted`. On the loop.
void report_calls(client::Client& client, std::span<const Reported> instances,
                  const std::unordered_set<TaskId>& wanted, CallReports& out);
// The actor itself, which waits for nothing: its calls, those that run before those that wait.
protocol::Explanation report_actor(client::Client& client, const Reported& of);

// The call whose code waits, for each of the waits; nil: none of the instances', or it is finished.
// With the list of waits locked.
std::vector<TaskId> calls_of(std::span<const Reported> instances,
                             std::span<client::BlockedWait* const> waits);
inline TaskId task_of(const Call& call) {
  return TaskId{call.origin().result};
}

}  // namespace troupe::actor
