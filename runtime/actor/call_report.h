// What the calls of one instance wait for, for those who ask why something waits.
#pragma once

#include <string>
#include <unordered_map>
#include <unordered_set>

#include "actor/instance.h"
#include "client/client.h"

namespace troupe::actor {

// Whose calls, as they are named for people.
struct Reported {
  Instance& instance;
  ActorId actor;  // Nil: a task slot.
  std::string class_name;
  std::string name;  // The actor's; empty: none.
};

// "Counter.add of the actor's name", or "task add".
std::string call_name(const Reported& of, const std::string& label);

// By the id of the first result.
using CallReports = std::unordered_map<TaskId, protocol::Explanation>;
// Adds those of the instance's calls that are among `wanted`. On the loop.
void report_calls(client::Client& client, const Reported& of,
                  const std::unordered_set<TaskId>& wanted, CallReports& out);
// The actor itself, which waits for nothing: its calls, those that run before those that wait.
protocol::Explanation report_actor(client::Client& client, const Reported& of);

// The call that this handle names; null: none of the instance's, or it is finished.
std::shared_ptr<Call> call_of_handle(const Instance& instance, const void* handle);
inline TaskId task_of(const Call& call) {
  return TaskId{call.origin().result};
}

}  // namespace troupe::actor
