// Runs tasks on leased slots: one queue a scheduling class, as many slots as the head grants.
//
// A slot that is reached through a ring is sent tasks by whichever thread submits them or hears
// that one is done; tasks that take microseconds are sent ahead, as many as fill about a
// millisecond, so that a slot never waits for the next. What was sent ahead and has not begun is
// recalled when the task before it takes long, which it also does when it waits for one behind it.
// A slot on another node is sent one task at a time, by the loop.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "client/lineage.h"
#include "client/object.h"
#include "client/roster.h"

namespace troupe::client {

class LeasePool {
 public:
  explicit LeasePool(Client& client);

  // Thread-safe. The object that becomes ready with the task's result.
  // `more`: as of Client::start_task.
  std::shared_ptr<Object> submit(TaskSpec spec, std::vector<std::shared_ptr<Object>>* more);
  // The same of a task whose result, the first of them, is there already.
  void run(TaskSpec spec, const std::shared_ptr<Object>& result);
  // From the head: somebody else waits for what the slots hold.
  Async<Result<protocol::Empty>> yield_slots(protocol::YieldSlots wanted,
                                             transport::CallContext context);
  // On the loop. Why the object, which a task makes, is not ready. False: it is none of these
  // tasks', or on its way between two states.
  bool explain(const Object& result, protocol::Explanation& told) const;
  // Gives every lease back.
  Async<void> stop();
  // What has no outcome yet gets this one, and no deadline fires any more: the client stops, and
  // may go before they do.
  void fail_all(const Error& why);

 private:
  friend class TaskCall;
  struct Class;
  struct Slot;
  // Small, and by value while it waits, for there may be millions.
  struct Task {
    Task(TaskSpec s, std::shared_ptr<Object> r, Class* c, Instant deadline)
        : traits(std::move(s.traits)), result(std::move(r)), cls(c) {
      if (s.arguments.empty() && s.held.empty() && !s.items && deadline == Instant::max()) return;
      rare = std::make_unique<Rare>(
          Rare{std::move(s.arguments), std::move(s.held), std::move(s.items), deadline});
    }
    struct Rare {
      std::vector<protocol::Argument> arguments;
      std::vector<ObjectName> held;
      std::shared_ptr<ItemSource> items;
      Instant deadline;
    };
    std::shared_ptr<const TaskTraits> traits;
    std::shared_ptr<Object> result;
    Class* cls;                  // The pool keeps it.
    std::unique_ptr<Rare> rare;  // Null: nothing of it.
    int32_t retried = 0;
    // When its submission was noted, modulo an hour and more; 0: it was not, or it was sent since.
    uint32_t submitted_us = 0;

    const std::vector<protocol::Argument>& arguments() const {
      static const std::vector<protocol::Argument> none;
      return rare ? rare->arguments : none;
    }
    Instant deadline() const { return rare ? rare->deadline : Instant::max(); }
    ItemSource* items() const { return rare ? rare->items.get() : nullptr; }
    // Something has to be given back once it has an outcome.
    bool needs_release() const {
      return rare && (!rare->held.empty() || rare->items || rare->deadline != Instant::max());
    }
  };
  using TaskPointer = std::shared_ptr<Task>;  // Once it is sent.
  using ClassPointer = std::shared_ptr<Class>;
  using SlotPointer = std::shared_ptr<Slot>;
  struct Alone {
    SlotPointer slot;
    TaskPointer task;
  };
  struct Later {
    TaskPointer task;
    Instant when;
  };
  struct Due {
    Instant deadline;
    TimerClock::TimerId timer = 0;
    std::shared_ptr<Object> result;
  };
  static constexpr Duration pause_first = std::chrono::milliseconds(10);  // Between two requests.

  std::vector<ClassPointer> classes() const;
  // As explain(), of a task that waits for a slot.
  bool explain_queued(const ClassPointer& cls, const Object& result,
                      protocol::Explanation& told) const;

  // The node of most of the arguments' bytes; nil: they are few, or it is not known.
  NodeId node_of(const std::vector<protocol::Argument>& arguments) const;
  // A task that may run anywhere goes to its large arguments, if there is room.
  ClassPointer class_of(const TaskSpec& spec);
  ClassPointer class_of(const TaskTraits& traits, const protocol::PlacementSpec& placement);

  // --- From any thread, with the class's lock held.
  // Sends what waits to slots that have room. True: the loop has something to do for the class.
  bool send_waiting(const ClassPointer& cls);
  static uint32_t window_of(const Slot& slot, const Task& task);
  static uint32_t slots_wanted(const Class& cls);
  // Others wait, and it would most likely not be done in its time.
  bool is_late(const Class& cls, const Task& task) const;
  bool send(const SlotPointer& slot, const TaskPointer& task);
  // --- From any thread, without it.
  void tend_soon(const ClassPointer& cls);
  // A task that a ring slot was sent has an outcome.
  void settle(const SlotPointer& slot, const TaskPointer& task,
              Result<protocol::InvokeReply> outcome, int64_t ran_ns);
  void succeed(const SlotPointer& slot, const TaskPointer& task, BytesView value, int64_t ran_ns);
  void slot_has_room(const SlotPointer& slot, bool ran, int64_t ran_ns);
  void forget_cancelled(const ClassPointer& cls);
  void finish(Task& task, Result<protocol::InvokeReply> outcome,
              const protocol::ProcessAddress& callee);
  void end(const SlotPointer& slot, const TaskPointer& task, Result<protocol::InvokeReply> outcome);
  Async<void> end_with_reason(TaskPointer task, Error failure);
  void keep_time(const Task& task);
  // A task took so long, if that matters.
  static void note_run(const Task& task, Duration took);
  // Gives back what it has, once.
  void release(Task& task);
  // How to make again what lies in the store, if the task may run again; takes its arguments.
  static std::shared_ptr<Lineage::Recipe> recipe_of(Task& task, const protocol::InvokeReply& reply);
  // It surely has not run, or may run again: true, and it is in the queue again, now or later, and
  // no more here.
  bool queue_again(const TaskPointer& task, const Error& failure);
  Async<void> queue_later(TaskPointer task, Duration delay);

  // --- On the loop.
  void tend(const ClassPointer& cls);
  Async<void> request_lease(ClassPointer cls);
  Async<void> back_off(ClassPointer cls);
  // Until the first of the tasks that wait has to end; at most `most`.
  Duration time_left(const ClassPointer& cls, Duration most);
  void end_late_tasks(const ClassPointer& cls, const Error& why);
  Async<void> renew(ClassPointer cls, LeaseId lease, Duration quantum);
  Async<void> connect(SlotPointer slot);
  Async<void> run_alone(SlotPointer slot, TaskPointer task);
  Async<Result<protocol::InvokeReply>> invoke(SlotPointer slot, TaskPointer task);
  // A call of `invoke`'s that was accepted: until its stream has ended.
  Async<Status> run_stream(TaskPointer task, std::shared_ptr<transport::CancelEvent> given_up,
                           std::shared_ptr<Peer> peer, transport::Message message, Duration budget);
  Async<void> recall_late(ClassPointer cls);
  void drop_slot(const SlotPointer& slot);
  void give_back_idle(const ClassPointer& cls);
  Async<void> return_lease(protocol::ReturnLease request);

  Client& client_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, ClassPointer> classes_;  // Guarded.
  // --- On the loop.
  Roster<Alone> alone_;                // Sent to slots on other nodes, or as generators.
  Roster<Later> later_;                // Run again a moment later.
  std::map<ObjectId, Due> deadlines_;  // Of those that have one.
};

}  // namespace troupe::client
