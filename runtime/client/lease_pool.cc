#include "client/lease_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>

#include "base/log.h"
#include "client/connections.h"
#include "client/object_directory.h"
#include "client/placement.h"

namespace troupe::client {

using protocol::Empty;
using transport::Message;

namespace {

constexpr uint32_t slots_max = 256;                               // Of one class and process.
constexpr Duration linger_time = std::chrono::milliseconds(500);  // Idle slots are kept so long.
constexpr Duration lease_budget = std::chrono::seconds(30);       // Of one request.
constexpr Duration connect_budget = std::chrono::seconds(10);
constexpr Duration retry_first = std::chrono::milliseconds(10);
constexpr Duration retry_most = std::chrono::milliseconds(500);

std::string class_key(const TaskSpec& spec) {
  std::string key = fmt::format("{}|{}", spec.module, spec.priority);
  for (const auto& amount : spec.demand) key += fmt::format("|{}={}", amount.name, amount.milli);
  key += placement_key(spec.placement);
  return key;
}

}  // namespace

LeasePool::LeasePool(Client& client) : client_(client) {}

void LeasePool::submit(TaskSpec spec, ObjectId result) {
  const std::string key = class_key(spec);
  SchedulingClass& cls = classes_[key];
  if (cls.module.empty()) {
    cls.module = spec.module;
    cls.demand = spec.demand;
    cls.priority = spec.priority;
    cls.placement = spec.placement;
    cls.pause = retry_first;
  }
  const Instant deadline = client_.environment_.clock.now() + spec.budget;
  auto task = std::make_shared<Task>(std::move(spec), result, client_.environment_.loop, deadline);
  tasks_[result] = task;
  cls.queue.push_back(std::move(task));
  pump(key);
}

void LeasePool::cancel(ObjectId result) {
  const auto found = tasks_.find(result);
  if (found == tasks_.end()) return;
  const auto task = found->second;
  task->cancelled.set();
  if (std::erase(classes_[class_key(task->spec)].queue, task) == 0) return;  // run_on ends it.
  finish(task, error(Code::cancelled, "the task was cancelled"), {});
}

void LeasePool::pump(const std::string& key) {
  SchedulingClass& cls = classes_[key];
  for (auto& [process, slot] : cls.slots) {
    if (slot.busy) continue;
    if (cls.queue.empty()) break;
    slot.busy = true;
    auto task = std::move(cls.queue.front());
    cls.queue.pop_front();
    spawn(client_.scope_, run_on(key, slot, std::move(task)));
  }
  auto& clock = client_.environment_.clock;
  if (!cls.queue.empty()) {
    if (!cls.requesting && cls.slots.size() < slots_max) {
      cls.requesting = true;
      spawn(client_.scope_, request_lease(key));
    }
  } else if (cls.linger == 0 && !cls.slots.empty()) {
    cls.linger = clock.call_at(clock.now() + linger_time, [this, key] {
      classes_[key].linger = 0;
      give_back_idle(key);
    });
  }
}

Async<void> LeasePool::back_off(std::string key) {
  SchedulingClass& cls = classes_[key];
  const Duration pause = std::exchange(cls.pause, std::min(cls.pause * 2, retry_most));
  co_await sleep_for(client_.environment_.clock, time_left(key, pause));
}

Async<void> LeasePool::request_lease(std::string key) {
  if (std::exchange(classes_[key].unreached, false)) co_await back_off(key);
  protocol::RequestLease request;
  request.lease = LeaseId::random(client_.environment_.random);
  request.job = client_.options_.job;
  {
    SchedulingClass& cls = classes_[key];
    request.module = cls.module;
    request.demand = cls.demand;
    request.priority = cls.priority;
    request.placement = cls.placement;
    const size_t wanted = std::min<size_t>(cls.queue.size(), slots_max - cls.slots.size());
    if (wanted == 0) {  // Slots that became free took the last tasks meanwhile.
      cls.requesting = false;
      co_return;
    }
    request.slots = static_cast<uint32_t>(wanted);
  }
  auto granted = co_await client_.ask_head<protocol::LeaseGranted>(Method::request_lease, request,
                                                                   time_left(key, lease_budget));
  if (granted) {
    SchedulingClass& cls = classes_[key];
    for (const protocol::Slot& slot : granted->slots) {
      cls.slots[slot.address.process] = {request.lease, slot.address, false};
    }
    spawn(client_.scope_,
          renew(key, request.lease, std::chrono::microseconds(granted->quantum_us)));
  } else if (granted.error().retriable()) {
    // Still no room. Who has time left asks again, less and less often, and the head need not keep
    // this one's place.
    protocol::ReturnLease unused{request.lease, {}};
    spawn(client_.scope_, return_lease(std::move(unused)));
    co_await back_off(key);
    end_late_tasks(key, granted.error());
  } else {
    const auto queue = std::exchange(classes_[key].queue, {});
    for (const auto& task : queue) finish(task, granted.error(), {});
  }
  classes_[key].requesting = false;
  pump(key);
}

Duration LeasePool::time_left(const std::string& key, Duration most) {
  const Instant now = client_.environment_.clock.now();
  for (const auto& task : classes_[key].queue) most = std::min(most, task->deadline - now);
  return std::max<Duration>(most, std::chrono::milliseconds(1));
}

void LeasePool::end_late_tasks(const std::string& key, const Error& why) {
  const Instant now = client_.environment_.clock.now();
  std::deque<std::shared_ptr<Task>> waiting;
  for (auto& task : classes_[key].queue) {
    if (task->deadline > now) {
      waiting.push_back(std::move(task));
    } else {
      finish(task, why, {});
    }
  }
  classes_[key].queue = std::move(waiting);
}

// Keeps a lease while any of its slots is ours.
Async<void> LeasePool::renew(std::string key, LeaseId lease, Duration quantum) {
  auto& clock = client_.environment_.clock;
  const Duration pause = std::max<Duration>(quantum / 3, std::chrono::milliseconds(10));
  for (;;) {
    co_await sleep_for(clock, pause);
    const auto held = [&] {
      const auto& slots = classes_[key].slots;
      return std::any_of(slots.begin(), slots.end(),
                         [&](const auto& entry) { return entry.second.lease == lease; });
    };
    if (!held()) co_return;
    protocol::RenewLease request{lease};
    auto renewed = co_await client_.ask_head<Empty>(Method::renew_lease, request, quantum);
    if (renewed || renewed.error().retriable()) continue;
    // The head took it back: no new task goes to its slots; running ones end with their processes.
    log::warning("lease_lost", {{"lease", lease}, {"why", renewed.error().message()}});
    auto& slots = classes_[key].slots;
    std::erase_if(slots, [&](const auto& entry) { return entry.second.lease == lease; });
    pump(key);
    co_return;
  }
}

Async<void> LeasePool::run_on(std::string key, LeasedSlot slot, std::shared_ptr<Task> task) {
  const ProcessId process = slot.address.process;
  auto outcome = co_await invoke(slot, task);
  bool slot_died = false;
  if (!outcome) {
    const Code code = outcome.error().code();
    const bool ran = !outcome.error().where().empty();  // The function itself gave this code.
    slot_died = !ran && (code == Code::outcome_unknown || code == Code::unavailable);
    // Whoever gave up on a running task cannot know when its process is free again.
    if (code == Code::cancelled || code == Code::deadline_exceeded) drop_slot(key, process);
  }
  if (slot_died) {
    drop_slot(key, process);
    const bool not_sent = outcome.error().code() == Code::unavailable;
    const bool in_time = client_.environment_.clock.now() < task->deadline;
    if (in_time && !task->cancelled.is_set() && (not_sent || task->spec.retries > 0)) {
      if (!not_sent) --task->spec.retries;
      classes_[key].unreached = classes_[key].unreached || not_sent;
      classes_[key].queue.push_front(task);
      pump(key);
      co_return;
    }
    if (!task->spec.placement.group.is_nil()) {
      outcome = co_await why_it_died(client_, task->spec.placement, outcome.error());
    }
  } else {
    SchedulingClass& cls = classes_[key];
    cls.pause = retry_first;
    if (const auto found = cls.slots.find(process); found != cls.slots.end()) {
      found->second.busy = false;
    }
  }
  finish(task, std::move(outcome), slot.address);
  pump(key);
}

Async<Result<protocol::InvokeReply>> LeasePool::invoke(LeasedSlot slot,
                                                       std::shared_ptr<Task> task) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto& clock = client_.environment_.clock;
  auto peer = co_await client_.connections_->peer_of(slot.address, clock.now() + connect_budget);
  if (!peer) co_return error(Code::unavailable, peer.error().message());
  if (task->cancelled.is_set()) co_return error(Code::cancelled, "the task was cancelled");
  protocol::Invoke call;
  call.method = task->spec.function;
  call.signature = task->spec.signature;
  call.arguments = task->spec.arguments;
  call.task = TaskId::random(client_.environment_.random);
  call.job = client_.options_.job;
  call.result = task->result;
  Message message{protocol::encode(call), {}};
  const Duration budget = task->deadline - clock.now();
  if (budget <= Duration::zero()) {
    co_return error(Code::deadline_exceeded, "the task's time ended before it could start");
  }
  auto raced = co_await ((*peer)->call(Method::invoke, std::move(message), budget) ||
                         task->cancelled.wait());
  if (raced.index() == 1) co_return error(Code::cancelled, "the task was cancelled");
  auto reply = std::get<0>(std::move(raced));
  if (!reply) co_return std::move(reply).error();
  co_return protocol::decode<protocol::InvokeReply>(reply->body);
}

void LeasePool::finish(const std::shared_ptr<Task>& task, Result<protocol::InvokeReply> outcome,
                       const protocol::ProcessAddress& callee) {
  tasks_.erase(task->result);
  if (outcome) {
    client_.objects_->set_reply(task->result, std::move(*outcome), callee);
  } else {
    client_.objects_->set_error(task->result, std::move(outcome).error());
  }
  for (const ObjectName& ref : task->spec.held) client_.objects_->drop_reference(ref);
  task->spec.held.clear();
}

void LeasePool::drop_slot(const std::string& key, ProcessId process) {
  SchedulingClass& cls = classes_[key];
  const auto found = cls.slots.find(process);
  if (found == cls.slots.end()) return;
  protocol::ReturnLease request{found->second.lease, {process}};
  cls.slots.erase(found);
  spawn(client_.scope_, return_lease(std::move(request)));
}

void LeasePool::give_back_idle(const std::string& key) {
  SchedulingClass& cls = classes_[key];
  if (!cls.queue.empty()) return;
  std::map<LeaseId, std::vector<ProcessId>> idle;
  for (const auto& [process, slot] : cls.slots) {
    if (!slot.busy) idle[slot.lease].push_back(process);
  }
  for (auto& [lease, processes] : idle) {
    for (const ProcessId process : processes) cls.slots.erase(process);
    protocol::ReturnLease request{lease, std::move(processes)};
    spawn(client_.scope_, return_lease(std::move(request)));
  }
  if (!cls.slots.empty()) pump(key);
}

Async<void> LeasePool::return_lease(protocol::ReturnLease request) {
  auto returned =
      co_await client_.ask_head<Empty>(Method::return_lease, std::move(request), lease_budget);
  if (!returned) log::debug("lease_return_failed", {{"why", returned.error().message()}});
}

Async<void> LeasePool::stop() {
  std::map<LeaseId, std::vector<ProcessId>> all;
  for (auto& [key, cls] : classes_) {
    cls.queue.clear();
    if (cls.linger != 0) client_.environment_.clock.cancel(std::exchange(cls.linger, 0));
    for (const auto& [process, slot] : cls.slots) all[slot.lease];
    cls.slots.clear();
  }
  for (const auto& [lease, processes] : all) {
    protocol::ReturnLease request{lease, {}};
    auto returned =
        co_await client_.ask_head<Empty>(Method::return_lease, request, std::chrono::seconds(1));
    if (!returned) co_return;  // The head takes them back by itself when this process is gone.
  }
}

}  // namespace troupe::client
