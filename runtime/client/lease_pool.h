// Runs tasks on leased slots: one queue a scheduling class, as many slots as the head grants.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>

#include "client/client.h"

namespace troupe::client {

class LeasePool {
 public:
  LeasePool(Client& client);

  // The object `result` becomes ready with the task's result.
  void submit(TaskSpec spec, ObjectId result);
  void cancel(ObjectId result);
  // Gives every lease back.
  Async<void> stop();

 private:
  struct Task {
    Task(TaskSpec s, ObjectId r, const Executor& executor, Instant d)
        : spec(std::move(s)), result(r), deadline(d), cancelled(executor) {}
    TaskSpec spec;
    ObjectId result;
    Instant deadline;
    Event cancelled;
  };
  struct LeasedSlot {
    LeaseId lease;
    protocol::ProcessAddress address;
    bool busy = false;
  };
  // Tasks that any slot of a lease can run: same module, demand and priority.
  struct SchedulingClass {
    std::string module;
    std::vector<protocol::ResourceAmount> demand;
    int32_t priority = 0;
    protocol::PlacementSpec placement;
    std::deque<std::shared_ptr<Task>> queue;
    std::map<ProcessId, LeasedSlot> slots;
    bool requesting = false;
    Duration
        pause{};  // Before the next request, when the head has no room or a slot was not there.
    bool unreached = false;
    TimerClock::TimerId linger = 0;
  };

  void pump(const std::string& key);
  Async<void> request_lease(std::string key);
  Async<void> back_off(std::string key);
  // Until the first of the tasks that wait has to end; at most `most`.
  Duration time_left(const std::string& key, Duration most);
  void end_late_tasks(const std::string& key, const Error& why);
  Async<void> renew(std::string key, LeaseId lease, Duration quantum);
  Async<void> run_on(std::string key, LeasedSlot slot, std::shared_ptr<Task> task);
  Async<Result<protocol::InvokeReply>> invoke(LeasedSlot slot, std::shared_ptr<Task> task);
  void drop_slot(const std::string& key, ProcessId slot);
  void give_back_idle(const std::string& key);
  Async<void> return_lease(protocol::ReturnLease request);
  void finish(const std::shared_ptr<Task>& task, Result<protocol::InvokeReply> outcome,
              const protocol::ProcessAddress& callee);

  Client& client_;
  std::map<std::string, SchedulingClass> classes_;
  std::map<ObjectId, std::shared_ptr<Task>> tasks_;
};

}  // namespace troupe::client
