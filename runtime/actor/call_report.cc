#include "actor/call_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "client/blocked_waits.h"
#include "client/testimony.h"

namespace troupe::actor {

using client::WaitFacts;
using Needs = WaitFacts::Needs;
using protocol::Explanation;
namespace wait_state = client::wait_state;

namespace {

constexpr size_t listed_max = 64;  // Of an actor's calls.

struct Waiting {
  WaitFacts facts;
  Instant since;
};

// A call that has begun and has no outcome yet.
struct Running {
  std::shared_ptr<Call> call;
  std::vector<Waiting> waits;  // Of those that were asked about.
};

using RunningCalls = std::unordered_map<const void*, Running>;

uint64_t since_us(Instant now, Instant since) {
  return static_cast<uint64_t>(std::max<int64_t>((now - since) / std::chrono::microseconds(1), 1));
}

RunningCalls running_of(const Instance& instance) {
  RunningCalls running;
  instance.for_each_running([&](const troupe_call* handle, const std::shared_ptr<Call>& call) {
    running[handle].call = call;
  });
  return running;
}

// Adds the waits of calls that are asked about. Gives the call that holds the thread in one; null:
// none does.
template <class IsWanted>
std::shared_ptr<Call> add_waits(client::Client& client, RunningCalls& running, IsWanted is_wanted) {
  std::shared_ptr<Call> holder;
  client.waits().for_each([&](client::BlockedWait& wait) {
    const auto found = running.find(wait.call());
    // A handle is used again some time after its call: what its coroutines left behind is nobody's.
    if (found == running.end() || wait.since() < found->second.call->begun_at()) return;
    if (wait.holds_thread()) holder = found->second.call;
    if (is_wanted(*found->second.call)) {
      found->second.waits.push_back({wait.facts(), wait.since()});
    }
  });
  return holder;
}

Instant end_of_time_limit(const Call& call) {
  const RequestExtras* extras = call.request().extras.get();
  if (extras == nullptr || extras->time_limit == Duration::zero()) return Instant::max();
  return call.begun_at() + extras->time_limit;
}

std::string waits_text(const std::vector<Waiting>& waits) {
  std::string text;
  for (const Waiting& wait : waits) {
    const size_t count = wait.facts.subjects.size();
    std::string what = count == 1 ? "a result" : fmt::format("{} results", count);
    if (wait.facts.needs == Needs::any) what = fmt::format("some of {} results", count);
    if (wait.facts.needs == Needs::item) what = "the next item of a stream";
    if (wait.facts.needs == Needs::unknown) what = fmt::format("more than {} results", count);
    text += fmt::format("{}its {} waits for {}", text.empty() ? "" : "; ", wait.facts.how, what);
  }
  return text;
}

// Of several waits any may be the one that matters.
std::string_view state_of(const std::vector<Waiting>& waits) {
  const auto has = [&](Needs needs) {
    return std::ranges::any_of(waits,
                               [needs](const Waiting& wait) { return wait.facts.needs == needs; });
  };
  if (has(Needs::item)) return "waiting for an item";
  if (has(Needs::unknown)) return "waiting for many";
  return waits.size() > 1 || has(Needs::any) ? wait_state::waiting_for_any : wait_state::waiting;
}

Explanation explain_running(const Running& running, Explanation told, Instant now) {
  const Call& call = *running.call;
  const Instant limit = end_of_time_limit(call);
  const Instant given = call.request().deadline;
  told.state = "running";
  if (running.waits.empty()) {
    told.since_us = since_us(now, call.begun_at());
    told.deadline_us = client::left_us(now, std::min(limit, given));
    told.why = "its code runs";
    return told;
  }
  told.state = state_of(running.waits);
  told.why = waits_text(running.waits);
  Instant since = Instant::max();
  Instant deadline = limit;
  for (const Waiting& wait : running.waits) {
    since = std::min(since, wait.since);
    deadline = std::min(deadline, wait.facts.deadline);
    told.waits_for.insert(told.waits_for.end(), wait.facts.subjects.begin(),
                          wait.facts.subjects.end());
  }
  told.since_us = since_us(now, since);
  told.deadline_us = client::left_us(now, deadline);
  // Past that its caller has given up, but it waits on.
  if (const uint64_t left = client::left_us(now, given); left > 0) {
    told.why += "; its caller's deadline is in " + client::seconds_text(left);
  }
  return told;
}

}  // namespace

std::string call_name(const Reported& of, const std::string& label) {
  if (of.actor.is_nil()) return "task " + label;
  return fmt::format("{}.{} of {}", of.class_name, label,
                     of.name.empty() ? "actor " + of.actor.short_string() : of.name);
}

namespace {

// What is asked of one instance, while it is answered.
class Report {
 public:
  Report(client::Client& client, const Reported& of)
      : client_(client),
        of_(of),
        now_(client.environment().clock.now()),
        running_(running_of(of.instance)) {}

  template <class IsWanted>
  void add_running(IsWanted is_wanted) {
    holder_ = add_waits(client_, running_, is_wanted);
    for (const auto& [handle, running] : running_) {
      if (is_wanted(*running.call)) {
        add(*running.call, explain_running(running, about(*running.call), now_));
      }
    }
  }
  template <class IsWanted>
  void add_queued(IsWanted is_wanted) {
    std::unordered_map<uint32_t, size_t> ahead;  // By lane.
    of_.instance.for_each_waiting([&](const std::shared_ptr<Call>& call) {
      const size_t before = ahead[call->request().lane]++;
      if (is_wanted(*call)) queued_.emplace_back(call, before);
    });
    for (const auto& [call, before] : queued_) add(*call, explain_queued(*call, before));
  }

  std::vector<std::pair<TaskId, Explanation>> found;

 private:
  void add(const Call& call, Explanation told) {
    found.emplace_back(task_of(call), std::move(told));
  }
  Explanation about(const Call& call) const {
    Explanation told;
    told.kind = "call";
    told.id = task_of(call);
    told.name = call_name(of_, call.label());
    return told;
  }
  void wait_for(Explanation& told, const Call& call) const {
    told.waits_for.push_back(
        {"call", task_of(call), call_name(of_, call.label()), client_.address()});
  }
  Explanation explain_queued(const Call& call, size_t ahead) const;

  client::Client& client_;
  const Reported& of_;
  const Instant now_;
  RunningCalls running_;
  std::shared_ptr<Call> holder_;
  std::vector<std::pair<std::shared_ptr<Call>, size_t>> queued_;
};

Explanation Report::explain_queued(const Call& call, size_t ahead) const {
  Explanation told = about(call);
  const uint32_t number = call.request().lane;
  const Instance::LaneView lane = of_.instance.lane(number);
  // A task that lies behind one that waits is taken back and sent elsewhere.
  told.state = of_.actor.is_nil() ? "sent ahead" : wait_state::queued;
  told.deadline_us = client::left_us(now_, call.request().deadline);
  std::vector<const Call*> beside;  // Those that have begun, of its part of the mailbox.
  for (const auto& [handle, running] : running_) {
    if (running.call->request().lane == number) beside.push_back(running.call.get());
  }
  std::ranges::sort(beside, {}, [](const Call* one) { return RawId{one->origin().result}; });
  const std::string group =
      lane.name.empty() ? "" : fmt::format(" of concurrency group {}", lane.name);
  told.why = fmt::format("number {} in the mailbox{}", ahead + 1, group);
  const bool coroutines = of_.instance.has_coroutines();
  if (beside.size() >= lane.limit) {
    told.why +=
        beside.size() == 1 && lane.limit == 1
            ? ", behind " + call_name(of_, beside.front()->label())
            : fmt::format("; {} of at most {} calls at once have begun", beside.size(), lane.limit);
    for (const Call* one : beside) wait_for(told, *one);
  } else if (coroutines && holder_) {
    told.why += ", behind " + call_name(of_, holder_->label()) +
                ", which blocks the thread that all coroutines of the actor share";
    wait_for(told, *holder_);
  } else {
    told.why += "; it begins as soon as its actor's thread looks";
  }
  return told;
}

}  // namespace

void report_calls(client::Client& client, const Reported& of,
                  const std::unordered_set<TaskId>& wanted, CallReports& out) {
  const auto is_wanted = [&](const Call& call) {
    const TaskId task = task_of(call);
    return !task.is_nil() && wanted.contains(task);
  };
  Report report{client, of};
  report.add_running(is_wanted);
  report.add_queued(is_wanted);
  for (auto& [task, told] : report.found) out.insert_or_assign(task, std::move(told));
}

Explanation report_actor(client::Client& client, const Reported& of) {
  Explanation told;
  told.kind = "actor";
  told.id = of.actor;
  told.name = of.name.empty() ? of.class_name : fmt::format("{} ({})", of.name, of.class_name);
  size_t running = 0;
  size_t waiting = 0;
  const auto list = [&](const Call& call) {
    if (task_of(call).is_nil() || told.waits_for.size() == listed_max) return;
    told.waits_for.push_back(
        {"call", task_of(call), call_name(of, call.label()), client.address()});
  };
  of.instance.for_each_running([&](const troupe_call*, const std::shared_ptr<Call>& call) {
    ++running;
    list(*call);
  });
  of.instance.for_each_waiting([&](const std::shared_ptr<Call>& call) {
    ++waiting;
    list(*call);
  });
  told.state = running > 0 ? "busy" : "idle";
  told.why = fmt::format("{} of its calls have begun, {} wait in its mailbox", running, waiting);
  return told;
}

std::shared_ptr<Call> call_of_handle(const Instance& instance, const void* handle) {
  std::shared_ptr<Call> found;
  instance.for_each_running([&](const troupe_call* one, const std::shared_ptr<Call>& call) {
    if (one == handle) found = call;
  });
  return found;
}

}  // namespace troupe::actor
