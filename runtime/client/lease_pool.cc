#include "client/lease_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>
#include <map>

#include "base/log.h"
#include "client/connections.h"
#include "client/item_source.h"
#include "client/lease_slots.h"
#include "client/object_directory.h"
#include "client/placement.h"
#include "client/timeline_notes.h"
#include "protocol/call_record.h"
#include "transport/ring_port.h"

namespace troupe::client {

using protocol::Empty;
using transport::Message;

namespace {

constexpr uint32_t slots_max = 256;                               // Of one class and process.
constexpr Duration linger_time = std::chrono::milliseconds(500);  // Idle slots are kept so long.
constexpr Duration lease_budget = std::chrono::seconds(30);       // Of one request.
constexpr Duration connect_budget = std::chrono::seconds(10);
constexpr Duration retry_most = std::chrono::milliseconds(500);

constexpr int64_t ahead_ns = 1'000'000;                         // Of work is sent ahead to a slot,
constexpr uint32_t ahead_max = 256;                             // or so many tasks.
constexpr int64_t overhead_ns = 1'000;                          // Of a task beside its run.
constexpr Duration yield_time = std::chrono::seconds(1);        // After the head asked for slots.
constexpr Duration turn_time = std::chrono::milliseconds(200);  // A busy slot is kept so long then.
constexpr Duration look_period = std::chrono::milliseconds(20);  // At slots that may be stuck.

// To move less takes about as long as to lease a slot elsewhere.
constexpr uint64_t locality_bytes_min = 8 << 20;

uint64_t to_us(Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(duration / std::chrono::microseconds(1), 0));
}

uint32_t short_us(Instant when) {
  return static_cast<uint32_t>(to_us(when.time_since_epoch()));
}

protocol::CallExtras extras_of(const TaskTraits& traits) {
  protocol::CallExtras extras;
  extras.time_limit_us = to_us(traits.time_limit);
  extras.grace_us = to_us(traits.grace);
  extras.results = traits.results;
  extras.name = traits.name;
  return extras;
}

Error too_late(const TaskTraits& task) {
  return error(
      Code::deadline_exceeded,
      fmt::format("task {} was not begun: it has waited for most of its time of {} ms, and "
                  "the rest is less than it takes; others wait behind it",
                  task.label(), task.budget / std::chrono::milliseconds(1)));
}

std::string class_key(const TaskTraits& spec, const protocol::PlacementSpec& placement) {
  std::string key;
  key.reserve(spec.module.size() + 16 + spec.demand.size() * 24);
  const auto add = [&key](const auto& number) {
    key.append(reinterpret_cast<const char*>(&number), sizeof number);
  };
  key += spec.module;
  key += '|';
  add(spec.priority);
  for (const auto& amount : spec.demand) {
    key += amount.name;
    key += '=';
    add(amount.milli);
  }
  key += placement_key(placement);
  return key;
}

}  // namespace

// A task in a ring.
class TaskCall final : public transport::PendingReply {
 public:
  TaskCall(LeasePool& pool, LeasePool::SlotPointer slot, LeasePool::TaskPointer task)
      : pool_(pool), slot_(std::move(slot)), task_(std::move(task)) {}

  void reply(BytesView payload) override {
    const auto view = protocol::read_reply_record(payload);
    if (view && view->form == protocol::ReplyForm::value) {
      pool_.succeed(slot_, task_, view->body, view->ran_ns);
    } else if (view) {
      pool_.settle(slot_, task_, protocol::to_reply(*view), view->ran_ns);
    } else {
      pool_.settle(slot_, task_, view.error(), 0);
    }
  }
  void lost(bool begun) override {
    pool_.settle(slot_, task_,
                 begun ? error(Code::outcome_unknown, "the task's process ended before the reply")
                       : error(Code::unavailable, "the task's process ended before it began"),
                 0);
  }

 private:
  LeasePool& pool_;
  const LeasePool::SlotPointer slot_;
  const LeasePool::TaskPointer task_;
};

LeasePool::LeasePool(Client& client) : client_(client) {}

void LeasePool::fail_all(const Error& why) {
  std::vector<std::shared_ptr<Object>> results;
  for (const auto& [id, due] : std::exchange(deadlines_, {})) {
    client_.environment_.clock.cancel(due.timer);
    results.push_back(due.result);
  }
  for (const auto& cls : classes()) {
    const std::lock_guard lock{cls->mutex};
    for (const Task& task : cls->queue) results.push_back(task.result);
  }
  alone_.for_each([&](const Alone& alone) { results.push_back(alone.task->result); });
  later_.for_each([&](const Later& later) { results.push_back(later.task->result); });
  for (const auto& result : results) client_.objects_->cancel(result, why);
}

std::vector<LeasePool::ClassPointer> LeasePool::classes() const {
  std::vector<ClassPointer> all;
  const std::lock_guard lock{mutex_};
  for (const auto& [key, cls] : classes_) all.push_back(cls);
  return all;
}

LeasePool::ClassPointer LeasePool::class_of(const TaskTraits& spec,
                                            const protocol::PlacementSpec& placement) {
  std::string key = class_key(spec, placement);
  const std::lock_guard lock{mutex_};
  ClassPointer& cls = classes_[key];
  if (!cls) {
    cls = std::make_shared<Class>();
    cls->key = std::move(key);
    cls->module = spec.module;
    cls->demand = spec.demand;
    cls->priority = spec.priority;
    cls->placement = placement;
  }
  return cls;
}

NodeId LeasePool::node_of(const std::vector<protocol::Argument>& arguments) const {
  std::map<NodeId, uint64_t> bytes_on;
  for (const protocol::Argument& argument : arguments) {
    if (argument.object.is_nil()) continue;
    const auto object = client_.objects_->find(argument.object);
    if (!object || !object->is_ready() || !object->in_store()) continue;
    bytes_on[object->node()->node] += object->size_bytes();
  }
  const auto most =
      std::ranges::max_element(bytes_on, {}, [](const auto& on) { return on.second; });
  if (most == bytes_on.end() || most->second < locality_bytes_min) return {};
  return most->first;
}

LeasePool::ClassPointer LeasePool::class_of(const TaskSpec& spec) {
  const protocol::PlacementSpec& asked = spec.traits->placement;
  const NodeId node = is_anywhere(asked) ? node_of(spec.arguments) : NodeId{};
  if (node.is_nil()) return class_of(*spec.traits, asked);
  protocol::PlacementSpec there = asked;
  there.node = node;
  there.node_soft = true;
  return class_of(*spec.traits, there);
}

std::shared_ptr<Object> LeasePool::submit(TaskSpec spec,
                                          std::vector<std::shared_ptr<Object>>* more) {
  auto result = client_.objects_->make_results(Object::Maker::task, spec.traits->results, more);
  run(std::move(spec), result);
  return result;
}

void LeasePool::run(TaskSpec spec, const std::shared_ptr<Object>& result) {
  const TaskTraits& traits = *spec.traits;
  const ClassPointer cls = class_of(spec);
  client_.objects_->hold(spec.held);
  const bool unlimited = traits.budget >= default_budget;
  const Instant deadline =
      unlimited ? Instant::max() : client_.environment_.clock.now() + traits.budget;
  Task task{std::move(spec), result, cls.get(), deadline};
  if (!unlimited) keep_time(task);
  const bool needs_release = task.needs_release();
  const Instant noted = submitted_now(client_.timeline(), result->id(), traits.label());
  bool busy = false;
  {
    const std::lock_guard lock{cls->mutex};
    cls->queue.push_back(std::move(task));
    busy = send_waiting(cls);
    // It is still the last.
    if (busy && noted != Instant{}) cls->queue.back().submitted_us = std::max(short_us(noted), 1u);
    // Any other is forgotten when its turn comes.
    if (busy && needs_release) {
      result->on_cancel([this, cls](uint8_t) { forget_cancelled(cls); });
    }
  }
  if (busy) {
    tend_soon(cls);
    // The slots' replies make room, and nobody may wait for them yet.
    if (client_.environment_.rings != nullptr) client_.environment_.rings->drain();
  }
}

// Before it can have an outcome, so that this comes to the loop before release().
void LeasePool::keep_time(const Task& task) {
  boost::asio::dispatch(client_.environment_.loop, [this, result = task.result,
                                                    traits = task.traits, cls = task.cls,
                                                    deadline = task.deadline()] {
    if (result->is_ready()) return;
    const auto timer = client_.environment_.clock.call_at(deadline, [this, result, traits, cls] {
      const auto due = deadlines_.find(result->id());
      if (due != deadlines_.end()) due->second.timer = 0;
      client_.objects_->cancel(
          result, cls->refusal ? *cls->refusal
                               : error(Code::deadline_exceeded,
                                       fmt::format("task {} did not end within its time of {} ms",
                                                   traits->label(),
                                                   traits->budget / std::chrono::milliseconds(1))));
    });
    deadlines_[result->id()] = {deadline, timer, result};
  });
}

// What was cancelled while it waited gives back its arguments.
void LeasePool::forget_cancelled(const ClassPointer& cls) {
  std::vector<Task> cancelled;
  {
    const std::lock_guard lock{cls->mutex};
    std::erase_if(cls->queue, [&](Task& task) {
      if (!task.result->is_ready()) return false;
      cancelled.push_back(std::move(task));
      return true;
    });
  }
  for (Task& task : cancelled) release(task);
}

// How many tasks the slot may have when this one is sent. One that was sent ahead must run
// elsewhere if the process dies before it begins: so that must be seen, or the task may run any
// number of times.
uint32_t LeasePool::window_of(const Slot& slot, const Task& task) {
  const bool may_repeat = task.traits->retry.retries < 0;
  const bool sends_ahead = slot.channel && (slot.channel->shows_begun() || may_repeat);
  return sends_ahead && !task.items() ? slot.window : 1;
}

bool LeasePool::send_waiting(const ClassPointer& cls) {
  while (!cls->queue.empty()) {
    Task& first = cls->queue.front();
    if (first.result->is_ready()) {  // Cancelled, or too late.
      release(first);
      cls->queue.pop_front();
      continue;
    }
    if (first.deadline() != Instant::max() && is_late(*cls, first)) {
      const auto late = std::make_shared<Task>(std::move(first));
      cls->queue.pop_front();
      boost::asio::post(client_.environment_.loop,
                        [this, late] { finish(*late, too_late(*late->traits), {}); });
      continue;
    }
    SlotPointer best;
    for (const auto& [process, slot] : cls->slots) {
      const uint32_t window = window_of(*slot, first);
      const bool has_room = slot->connected && !slot->blocked && !slot->leaving &&
                            !slot->is_alone && slot->in_flight < window;
      if (has_room && (!best || slot->in_flight < best->in_flight)) best = slot;
    }
    if (!best) return true;
    const auto task = std::make_shared<Task>(std::move(first));
    cls->queue.pop_front();
    const auto result = task->result;
    const uint32_t submitted_us = std::exchange(task->submitted_us, 0);
    if (!send(best, task)) {
      task->submitted_us = submitted_us;
      cls->queue.push_front(std::move(*task));
    } else if (submitted_us != 0) {
      Timeline& timeline = *client_.timeline();
      const Instant now = timeline.now();
      note_sent(timeline, result->id(), task->traits->label(),
                now - std::chrono::microseconds(short_us(now) - submitted_us));
    }
  }
  return false;
}

bool LeasePool::is_late(const Class& cls, const Task& task) const {
  if (cls.queue.size() < 2) return false;
  const auto known = cls.service_times.find(task.traits->function);
  if (known == cls.service_times.end()) return false;
  const Duration left = task.deadline() - client_.environment_.clock.now();
  return known->second.is_late(task.traits->budget - left, left);
}

void LeasePool::note_run(const Task& task, Duration took) {
  if (task.deadline() == Instant::max() || took <= Duration::zero()) return;
  const std::lock_guard lock{task.cls->mutex};
  task.cls->service_times[task.traits->function].note(took);
}

bool LeasePool::send(const SlotPointer& slot, const TaskPointer& task) {
  ++slot->in_flight;
  if (!slot->channel || task->items()) {
    slot->is_alone = task->items() != nullptr;
    boost::asio::dispatch(client_.environment_.loop,
                          [this, slot, task] { spawn(client_.scope_, run_alone(slot, task)); });
    return true;
  }
  protocol::CallHead head;
  head.result = task->result->id();
  head.signature = task->traits->signature;
  if (task->deadline() != Instant::max()) {
    const Duration left = task->deadline() - client_.environment_.clock.now();
    head.budget_us =
        static_cast<uint64_t>(std::max<int64_t>(left / std::chrono::microseconds(1), 1));
  }
  const TaskTraits& traits = *task->traits;
  const protocol::CallExtras extras = extras_of(traits);
  const size_t bytes = protocol::call_record_bytes(traits.function, task->arguments(), extras);
  const auto number =
      slot->channel->call(std::make_unique<TaskCall>(*this, slot, task), bytes, [&](uint8_t* out) {
        protocol::write_call_record(out, head, traits.function, task->arguments(), extras);
      });
  if (!number) {
    --slot->in_flight;
    slot->blocked = true;  // It is dropped when somebody looks.
    return false;
  }
  task->result->on_cancel(slot->channel, *number);
  return true;
}

void LeasePool::succeed(const SlotPointer& slot, const TaskPointer& task, BytesView value,
                        int64_t ran_ns) {
  client_.objects_->set_value(task->result, value);
  note_run(*task, Duration{ran_ns});
  release(*task);
  slot_has_room(slot, true, ran_ns);
}

void LeasePool::settle(const SlotPointer& slot, const TaskPointer& task,
                       Result<protocol::InvokeReply> outcome, int64_t ran_ns) {
  const bool ran = outcome || !outcome.error().where().empty();
  if (ran) note_run(*task, Duration{ran_ns});
  if (!outcome && queue_again(task, outcome.error())) {
    slot_has_room(slot, ran, ran ? ran_ns : 0);
    return;
  }
  end(slot, task, std::move(outcome));
  slot_has_room(slot, true, ran_ns);
}

// As finish(); a task that died with its placement group is told what became of that.
void LeasePool::end(const SlotPointer& slot, const TaskPointer& task,
                    Result<protocol::InvokeReply> outcome) {
  const bool died = !outcome && outcome.error().where().empty();
  if (!died || task->cls->placement.group.is_nil()) {
    finish(*task, std::move(outcome), slot->address);
    return;
  }
  boost::asio::dispatch(client_.environment_.loop, [this, task, failure = outcome.error()] {
    spawn(client_.scope_, end_with_reason(task, failure));
  });
}

Async<void> LeasePool::end_with_reason(TaskPointer task, Error failure) {
  auto reason = co_await why_it_died(client_, task->cls->placement, std::move(failure));
  finish(*task, std::move(reason), {});
}

bool LeasePool::queue_again(const TaskPointer& task, const Error& failure) {
  const Instant now = client_.environment_.clock.now();
  if (task->result->is_ready() || now >= task->deadline()) return false;
  if (failure.where().empty() && failure.code() == Code::unavailable) {
    const std::lock_guard lock{task->cls->mutex};
    task->cls->queue.push_front(std::move(*task));
    return true;
  }
  const RetryPolicy& policy = task->traits->retry;
  if (!policy.covers(failure) || task->items()) return false;  // Some of its items may be read.
  if (policy.retries >= 0 && task->retried >= policy.retries) return false;
  const Duration delay = policy.delay(task->retried);
  if (task->deadline() - now <= delay) return false;
  ++task->retried;
  log::info("task_retried", {{"task", task->traits->label()},
                             {"object", task->result->id()},
                             {"retry", task->retried},
                             {"why", failure.to_string()}});
  boost::asio::dispatch(client_.environment_.loop,
                        [this, task, delay] { spawn(client_.scope_, queue_later(task, delay)); });
  return true;
}

Async<void> LeasePool::queue_later(TaskPointer task, Duration delay) {
  const Roster<Later>::Entry later{later_, {task, client_.environment_.clock.now() + delay}};
  co_await sleep_for(client_.environment_.clock, delay);
  const ClassPointer cls = task->cls->shared_from_this();
  {
    const std::lock_guard lock{cls->mutex};
    cls->queue.push_front(std::move(*task));
  }
  tend(cls);
}

// A task of the slot's is done; `ran`: it ran there, so long if that is known, rather than being
// sent back.
void LeasePool::slot_has_room(const SlotPointer& slot, bool ran, int64_t ran_ns) {
  const ClassPointer& cls = slot->cls;
  bool busy = false;
  bool gives_back = false;
  {
    const std::lock_guard lock{cls->mutex};
    --slot->in_flight;
    slot->is_alone = false;
    ++slot->done;
    if (!ran) {
      slot->blocked = true;
      slot->window = 1;
    } else {
      slot->blocked = false;
      if (ran_ns > 0) {
        // A long one counts at once, short ones bit by bit.
        const bool longer = slot->service_ns == 0 || ran_ns > 8 * slot->service_ns;
        slot->service_ns += longer ? ran_ns - slot->service_ns : (ran_ns - slot->service_ns) / 8;
        const int64_t fits = ahead_ns / (slot->service_ns + overhead_ns);
        slot->window = std::min(slot->window * 2,
                                static_cast<uint32_t>(std::clamp<int64_t>(fits, 1, ahead_max)));
      }
    }
    busy = send_waiting(cls);
    gives_back = slot->in_flight == 0 && (slot->leaving || (cls->yields && cls->queue.empty()));
  }
  if (busy || !ran || gives_back) tend_soon(cls);
}

void LeasePool::finish(Task& task, Result<protocol::InvokeReply> outcome,
                       const protocol::ProcessAddress& callee) {
  if (outcome) {
    auto recipe = recipe_of(task, *outcome);
    client_.objects_->set_reply(task.result, std::move(*outcome), callee, std::move(recipe));
  } else {
    client_.objects_->set_failed(
        task.result, after_retries(std::move(outcome).error(), task.retried), task.traits->label());
  }
  release(task);
}

std::shared_ptr<Lineage::Recipe> LeasePool::recipe_of(Task& task,
                                                      const protocol::InvokeReply& reply) {
  const bool in_store = !reply.node.process.is_nil() ||
                        std::ranges::any_of(reply.more, &protocol::ObjectValue::in_store);
  if (!in_store || task.traits->retry.retries == 0 || task.items() != nullptr) return nullptr;
  auto recipe = std::make_shared<Lineage::Recipe>();
  recipe->traits = task.traits;
  recipe->first = task.result->id();
  if (task.rare) {
    recipe->arguments = std::exchange(task.rare->arguments, {});
    recipe->kept = std::exchange(task.rare->held, {});
  }
  return recipe;
}

void LeasePool::release(Task& task) {
  if (!task.needs_release()) return;
  boost::asio::dispatch(
      client_.environment_.loop,
      [this, result = task.result, rare = std::shared_ptr<Task::Rare>(std::move(task.rare))] {
        if (rare->items) {
          const Error* failure = result->failure();
          rare->items->settle(failure != nullptr ? Status{*failure} : ok());
        }
        const auto due = deadlines_.find(result->id());
        if (due != deadlines_.end()) {
          if (due->second.timer != 0) client_.environment_.clock.cancel(due->second.timer);
          deadlines_.erase(due);
        }
        client_.drop_references(std::exchange(rare->held, {}));
      });
}

void LeasePool::tend_soon(const ClassPointer& cls) {
  {
    const std::lock_guard lock{cls->mutex};
    if (std::exchange(cls->tended_soon, true)) return;
  }
  boost::asio::dispatch(client_.environment_.loop, [this, cls] { tend(cls); });
}

void LeasePool::tend(const ClassPointer& cls) {
  bool wants_more = false;
  std::vector<SlotPointer> gone;
  {
    const std::lock_guard lock{cls->mutex};
    cls->tended_soon = false;
    for (const auto& [process, slot] : cls->slots) {
      if (slot->channel && !slot->channel->is_open()) gone.push_back(slot);
    }
    wants_more = send_waiting(cls) && slots_wanted(*cls) > 0;
  }
  for (const auto& slot : gone) drop_slot(slot);
  give_back_idle(cls);
  if (wants_more && !std::exchange(cls->requesting, true)) {
    spawn(client_.scope_, request_lease(cls));
  }
}

uint32_t LeasePool::slots_wanted(const Class& cls) {
  // Those that are on their way take a task each.
  const auto connecting =
      static_cast<size_t>(std::count_if(cls.slots.begin(), cls.slots.end(), [](const auto& entry) {
        return !entry.second->connected;
      }));
  if (cls.queue.size() <= connecting || cls.slots.size() >= slots_max) return 0;
  return static_cast<uint32_t>(
      std::min<size_t>(cls.queue.size() - connecting, slots_max - cls.slots.size()));
}

Async<void> LeasePool::back_off(ClassPointer cls) {
  const Duration pause = std::exchange(cls->pause, std::min(cls->pause * 2, retry_most));
  co_await sleep_for(client_.environment_.clock, time_left(cls, pause));
}

Async<void> LeasePool::request_lease(ClassPointer cls) {
  if (std::exchange(cls->unreached, false)) co_await back_off(cls);
  protocol::RequestLease request;
  request.lease = LeaseId::random(client_.environment_.random);
  request.job = client_.options_.job;
  request.module = cls->module;
  request.demand = cls->demand;
  request.priority = cls->priority;
  request.placement = cls->placement;
  {
    const std::lock_guard lock{cls->mutex};
    request.slots = slots_wanted(*cls);
  }
  if (request.slots == 0) {  // Slots that became free took the last tasks meanwhile.
    cls->requesting = false;
    co_return;
  }
  cls->asked = request.lease;
  auto granted = co_await client_.ask_head<protocol::LeaseGranted>(Method::request_lease, request,
                                                                   time_left(cls, lease_budget));
  cls->asked = {};
  if (granted) {
    cls->refusal.reset();
    for (const protocol::Slot& given : granted->slots) {
      auto slot = std::make_shared<Slot>(cls, request.lease, given.address);
      slot->idle_since = slot->granted_at = client_.environment_.clock.now();
      {
        const std::lock_guard lock{cls->mutex};
        cls->slots[given.address.process] = slot;
      }
      spawn(client_.scope_, connect(std::move(slot)));
    }
    const Duration quantum = std::chrono::microseconds(granted->quantum_us);
    spawn(client_.scope_, renew(cls, request.lease, quantum));
    if (!std::exchange(cls->looking, true)) spawn(client_.scope_, recall_late(cls));
  } else if (granted.error().retriable()) {
    cls->refusal = granted.error();
    // Still no room. Who has time left asks again, less and less often, and the head need not keep
    // this one's place.
    protocol::ReturnLease unused{request.lease, {}};
    spawn(client_.scope_, return_lease(std::move(unused)));
    co_await back_off(cls);
    end_late_tasks(cls, granted.error());
  } else {
    std::deque<Task> queue;
    {
      const std::lock_guard lock{cls->mutex};
      queue.swap(cls->queue);
    }
    for (Task& task : queue) finish(task, granted.error(), {});
  }
  cls->requesting = false;
  tend(cls);
}

Duration LeasePool::time_left(const ClassPointer& cls, Duration most) {
  const Instant now = client_.environment_.clock.now();
  const std::lock_guard lock{cls->mutex};
  for (const Task& task : cls->queue) {
    if (task.deadline() != Instant::max()) most = std::min(most, task.deadline() - now);
  }
  return std::max<Duration>(most, std::chrono::milliseconds(1));
}

void LeasePool::end_late_tasks(const ClassPointer& cls, const Error& why) {
  const Instant now = client_.environment_.clock.now();
  std::vector<Task> late;
  {
    const std::lock_guard lock{cls->mutex};
    std::deque<Task> waiting;
    for (Task& task : cls->queue) {
      if (task.deadline() > now) {
        waiting.push_back(std::move(task));
      } else {
        late.push_back(std::move(task));
      }
    }
    cls->queue = std::move(waiting);
  }
  for (Task& task : late) finish(task, why, {});
}

// Keeps a lease while any of its slots is ours.
Async<void> LeasePool::renew(ClassPointer cls, LeaseId lease, Duration quantum) {
  auto& clock = client_.environment_.clock;
  const Duration pause = std::max<Duration>(quantum / 3, std::chrono::milliseconds(10));
  for (;;) {
    co_await sleep_for(clock, pause);
    const auto held = [&] {
      const std::lock_guard lock{cls->mutex};
      return std::any_of(cls->slots.begin(), cls->slots.end(),
                         [&](const auto& entry) { return entry.second->lease == lease; });
    };
    if (!held()) co_return;
    protocol::RenewLease request{lease};
    auto renewed = co_await client_.ask_head<Empty>(Method::renew_lease, request, quantum);
    if (renewed || renewed.error().retriable()) continue;
    // The head took it back: no new task goes to its slots; running ones end with their processes.
    log::warning("lease_lost", {{"lease", lease}, {"why", renewed.error().message()}});
    {
      const std::lock_guard lock{cls->mutex};
      std::erase_if(cls->slots, [&](const auto& entry) {
        if (entry.second->lease != lease) return false;
        entry.second->dropped = true;
        return true;
      });
    }
    tend(cls);
    co_return;
  }
}

Async<void> LeasePool::connect(SlotPointer slot) {
  auto& clock = client_.environment_.clock;
  auto peer = co_await client_.connections_->peer_of(slot->address, clock.now() + connect_budget);
  const ClassPointer cls = slot->cls;
  if (!peer) {
    cls->unreached = true;
    drop_slot(slot);
  } else {
    cls->pause = pause_first;
    const std::lock_guard lock{cls->mutex};
    slot->channel = (*peer)->channel();
    slot->connected = true;
  }
  tend(cls);
}

// Idle slots go back at once. Busy ones do when they have worked for a while: they are sent no
// more, and asked for anew behind whoever waits.
Async<Result<Empty>> LeasePool::yield_slots(protocol::YieldSlots wanted,
                                            transport::CallContext context) {
  const auto& head = context.peer->identity();
  if (!head.local && head.role != transport::Role::head) {
    co_return error(Code::denied, "only the head may ask for slots");
  }
  for (const auto& cls : classes()) {
    if (!wanted.node.is_nil()) {
      {
        const std::lock_guard lock{cls->mutex};
        for (const auto& [process, slot] : cls->slots) {
          if (slot->address.node == wanted.node) slot->leaving = true;
        }
      }
      give_back_idle(cls);
      tend(cls);
      continue;
    }
    const bool helps = std::ranges::any_of(wanted.demand, [&](const auto& amount) {
      return std::ranges::find(cls->demand, amount.name, &protocol::ResourceAmount::name) !=
             cls->demand.end();
    });
    if (!helps || cls->priority > wanted.priority) continue;
    {
      const std::lock_guard lock{cls->mutex};
      cls->yield_until = client_.environment_.clock.now() + yield_time;
      cls->yields = true;
    }
    give_back_idle(cls);
  }
  co_return Empty{};
}

// Looks after the class's slots while there are any: gives back those that are idle for long, calls
// back what waits behind a task that takes long, and forgets those whose process ended.
Async<void> LeasePool::recall_late(ClassPointer cls) {
  auto& clock = client_.environment_.clock;
  for (;;) {
    co_await sleep_for(clock, look_period);
    std::vector<std::shared_ptr<transport::CallChannel>> late;
    {
      const std::lock_guard lock{cls->mutex};
      if (cls->slots.empty()) break;
      const Instant now = clock.now();
      cls->yields = cls->yields && now < cls->yield_until;
      for (const auto& [process, slot] : cls->slots) {
        const bool worked = std::exchange(slot->done_at_look, slot->done) != slot->done;
        if (worked || slot->in_flight > 0) slot->idle_since = now;
        if (slot->in_flight == 0) slot->blocked = false;
        if (cls->yields && now - slot->granted_at > turn_time) slot->leaving = true;
        if (!worked && slot->in_flight > 1 && slot->channel) late.push_back(slot->channel);
      }
    }
    for (const auto& channel : late) channel->recall();
    tend(cls);
  }
  cls->looking = false;
}

// --- A slot on another node.

Async<void> LeasePool::run_alone(SlotPointer slot, TaskPointer task) {
  const Roster<Alone>::Entry alone{alone_, {slot, task}};
  const Instant began = client_.environment_.clock.now();
  auto outcome = co_await invoke(slot, task);
  const ClassPointer cls = slot->cls;
  if (outcome) note_run(*task, client_.environment_.clock.now() - began);
  if (outcome || !outcome.error().where().empty()) {
    if (outcome || !queue_again(task, outcome.error())) {
      finish(*task, std::move(outcome), slot->address);
    }
    slot_has_room(slot, true, 0);
    co_return;
  }
  const Code code = outcome.error().code();
  // Whoever gave up on a running task cannot know when its process is free again; another failure
  // without a place says that the slot is not there.
  const bool gave_up = code == Code::cancelled || code == Code::deadline_exceeded;
  if (gave_up || code == Code::unavailable || code == Code::outcome_unknown) drop_slot(slot);
  if (code == Code::unavailable) cls->unreached = true;
  if (!queue_again(task, outcome.error())) end(slot, task, std::move(outcome));
  slot_has_room(slot, false, 0);
}

Async<Result<protocol::InvokeReply>> LeasePool::invoke(SlotPointer slot, TaskPointer task) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto& clock = client_.environment_.clock;
  const auto given_up = std::make_shared<transport::CancelEvent>(client_.environment_.loop);
  task->result->on_cancel([given_up, loop = client_.environment_.loop](uint8_t how) {
    boost::asio::dispatch(loop, [given_up, how] {
      given_up->how = how;
      given_up->set();
    });
  });
  auto peer = co_await client_.connections_->peer_of(slot->address, clock.now() + connect_budget);
  if (!peer) co_return error(Code::unavailable, peer.error().message());
  if (task->result->is_ready()) co_return error(Code::cancelled, "the task was cancelled");
  protocol::Invoke call;
  const TaskTraits& traits = *task->traits;
  const protocol::CallExtras extras = extras_of(traits);
  call.method = traits.function;
  call.signature = traits.signature;
  call.results = extras.results;
  call.time_limit_us = extras.time_limit_us;
  call.grace_us = extras.grace_us;
  call.name = extras.name;
  call.items_max = traits.items_max;
  call.arguments = task->arguments();
  call.task = TaskId::random(client_.environment_.random);
  call.job = client_.options_.job;
  call.result = task->result->id();
  Message message{protocol::encode(call), {}};
  const Duration budget =
      task->deadline() == Instant::max() ? default_budget : task->deadline() - clock.now();
  if (budget <= Duration::zero()) {
    co_return error(Code::deadline_exceeded, "the task's time ended before it could start");
  }
  if (task->items()) {
    auto ended = co_await run_stream(task, given_up, *peer, std::move(message), budget);
    if (!ended) co_return std::move(ended).error();
    co_return protocol::InvokeReply{};
  }
  if (!(*peer)->is_writable()) co_await ((*peer)->writable() || given_up->wait());
  auto sent = (*peer)->begin_call(Method::invoke, std::move(message), budget);
  if (!sent) co_return std::move(sent).error();
  auto reply = co_await sent->reply_unless(*given_up);
  if (!reply) {
    sent->cancel(given_up->how);
    co_return error(Code::cancelled, "the task was cancelled");
  }
  if (!*reply) co_return std::move(*reply).error();
  co_return protocol::decode<protocol::InvokeReply>((*reply)->body);
}

Async<Status> LeasePool::run_stream(TaskPointer task,
                                    std::shared_ptr<transport::CancelEvent> given_up,
                                    std::shared_ptr<Peer> peer, Message message, Duration budget) {
  using namespace boost::asio::experimental::awaitable_operators;
  const bool unlimited = task->deadline() == Instant::max();
  TROUPE_CO_TRY(const auto stream,
                peer->open_stream(Method::invoke_stream, std::move(message),
                                  unlimited ? Duration::zero() : budget, task->traits->items_max));
  task->items()->begin(stream);
  auto raced = co_await (stream->ended() || given_up->wait());
  if (raced.index() == 1) {
    stream->cancel(given_up->how);
    // Only then its process is free.
    (void)co_await stream->ended();
    // With a place: the slot is as good as before.
    co_return error(Code::cancelled, "the task was cancelled").at("its caller");
  }
  Status ended = std::get<0>(std::move(raced));
  const bool died = !ended && ended.error().where().empty() && !peer->is_open();
  if (died)
    co_return error(Code::outcome_unknown, "the task's process ended before the stream did");
  co_return ended;
}

// --- Giving back

void LeasePool::drop_slot(const SlotPointer& slot) {
  {
    const std::lock_guard lock{slot->cls->mutex};
    if (std::exchange(slot->dropped, true)) return;
    slot->cls->slots.erase(slot->address.process);
  }
  protocol::ReturnLease request{slot->lease, {slot->address.process}};
  spawn(client_.scope_, return_lease(std::move(request)));
}

void LeasePool::give_back_idle(const ClassPointer& cls) {
  const Instant now = client_.environment_.clock.now();
  std::map<LeaseId, std::vector<ProcessId>> idle;
  {
    const std::lock_guard lock{cls->mutex};
    std::erase_if(cls->slots, [&](const auto& entry) {
      const SlotPointer& slot = entry.second;
      if (slot->in_flight > 0 || !slot->connected) return false;
      const bool unused =
          cls->queue.empty() && (cls->yields || now - slot->idle_since >= linger_time);
      if (!unused && !slot->leaving) return false;
      idle[slot->lease].push_back(entry.first);
      slot->dropped = true;
      return true;
    });
  }
  for (auto& [lease, processes] : idle) {
    protocol::ReturnLease request{lease, std::move(processes)};
    spawn(client_.scope_, return_lease(std::move(request)));
  }
}

Async<void> LeasePool::return_lease(protocol::ReturnLease request) {
  auto returned =
      co_await client_.ask_head<Empty>(Method::return_lease, std::move(request), lease_budget);
  if (!returned) log::debug("lease_return_failed", {{"why", returned.error().message()}});
}

Async<void> LeasePool::stop() {
  std::map<LeaseId, std::vector<ProcessId>> all;
  for (const auto& cls : classes()) {
    const std::lock_guard lock{cls->mutex};
    cls->queue.clear();
    for (const auto& [process, slot] : cls->slots) {
      slot->dropped = true;
      all[slot->lease];
    }
    cls->slots.clear();
  }
  for (const auto& [lease, processes] : all) {
    protocol::ReturnLease request{lease, {}};
    auto returned =
        co_await client_.ask_head<Empty>(Method::return_lease, request, std::chrono::seconds(1));
    if (!returned) co_return;  // The head takes them back by itself when this process is gone.
  }
}

}  // namespace troupe::client
