#include "actor/call_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

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
  bool is_wanted = false;
  std::vector<Waiting> waits;  // If it is wanted.
};

uint64_t since_us(Instant now, Instant since) {
  return static_cast<uint64_t>(std::max<int64_t>((now - since) / std::chrono::microseconds(1), 1));
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
    const std::string goes_on = count == 0 ? "goes on" : "waits for " + what;
    text += fmt::format("{}its {} {}", text.empty() ? "" : "; ", wait.facts.how, goes_on);
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
                     of.name.empty() ? "actor " + of.actor.short_string() : std::string{of.name});
}

namespace {

// What is asked of one instance, while it is answered.
class Report {
 public:
  Report(client::Client& client, const Reported& of)
      : client_(client), of_(of), now_(client.environment().clock.now()) {}

  // The mailbox first: a call that begins meanwhile is seen as one that runs. False: none is
  // wanted.
  template <class IsWanted>
  bool look(IsWanted is_wanted) {
    std::unordered_map<uint32_t, size_t> ahead;  // By lane.
    of_.instance.for_each_waiting([&](const std::shared_ptr<Call>& call) {
      const size_t before = ahead[call->request().lane]++;
      if (is_wanted(*call)) queued_.emplace_back(call, before);
    });
    bool runs = false;
    of_.instance.for_each_running([&](const troupe_call*, const std::shared_ptr<Call>& call) {
      runs = runs || is_wanted(*call);
    });
    if (!runs && queued_.empty()) return false;
    of_.instance.for_each_running(
        [&](const troupe_call* handle, const std::shared_ptr<Call>& call) {
          running_[handle] = {call, is_wanted(*call), {}};
        });
    return true;
  }
  template <class Look>
  void for_each_handle(Look look) const {
    for (const auto& [handle, running] : running_) look(handle);
  }
  // Of one of those calls, with the list of waits locked.
  void add_wait(client::BlockedWait& wait) {
    Running& running = running_.at(wait.call());
    // A handle is used again some time after its call: what its coroutines left behind is nobody's.
    if (wait.since() < running.call->begun_at()) return;
    if (wait.holds_thread()) holder_ = running.call;
    if (running.is_wanted) running.waits.push_back({wait.facts(), wait.since()});
  }
  void tell(CallReports& out) const {
    for (const auto& [call, before] : queued_) {
      out.insert_or_assign(task_of(*call), explain_queued(*call, before));
    }
    for (const auto& [handle, running] : running_) {
      if (!running.is_wanted) continue;
      const Call& call = *running.call;
      out.insert_or_assign(task_of(call), explain_running(running, about(call), now_));
    }
  }

 private:
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
  std::vector<std::pair<std::shared_ptr<Call>, size_t>> queued_;
  std::unordered_map<const void*, Running> running_;
  std::shared_ptr<Call> holder_;  // Its code holds the thread in a wait; null: none does.
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

void report_calls(client::Client& client, std::span<const Reported> instances,
                  const std::unordered_set<TaskId>& wanted, CallReports& out) {
  std::unordered_set<TaskId> seen;
  const auto is_wanted = [&](const Call& call) {
    const TaskId task = task_of(call);
    if (task.is_nil() || !wanted.contains(task)) return false;
    seen.insert(task);
    return true;
  };
  std::deque<Report> reports;
  std::unordered_map<const void*, Report*> by_handle;
  for (const Reported& of : instances) {
    if (seen.size() == wanted.size()) break;
    Report& report = reports.emplace_back(client, of);
    if (report.look(is_wanted)) {
      report.for_each_handle([&](const void* handle) { by_handle[handle] = &report; });
    } else {
      reports.pop_back();
    }
  }
  // Once for all of them: thousands of light actors may wait in one process.
  client.waits().for_each([&](client::BlockedWait& wait) {
    const auto found = by_handle.find(wait.call());
    if (found != by_handle.end()) found->second->add_wait(wait);
  });
  for (const Report& report : reports) report.tell(out);
}

Explanation report_actor(client::Client& client, const Reported& of) {
  Explanation told;
  told.kind = "actor";
  told.id = of.actor;
  told.name =
      of.name.empty() ? std::string{of.class_name} : fmt::format("{} ({})", of.name, of.class_name);
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

std::vector<TaskId> calls_of(std::span<const Reported> instances,
                             std::span<client::BlockedWait* const> waits) {
  std::vector<TaskId> calls(waits.size());
  std::unordered_multimap<const void*, size_t> places;
  for (size_t i = 0; i < waits.size(); ++i) {
    if (waits[i]->call() != nullptr) places.emplace(waits[i]->call(), i);
  }
  if (places.empty()) return calls;
  for (const Reported& of : instances) {
    of.instance.for_each_running([&](const troupe_call* handle, const std::shared_ptr<Call>& call) {
      const auto [first, last] = places.equal_range(handle);
      for (auto place = first; place != last; ++place) {
        if (waits[place->second]->since() >= call->begun_at()) {
          calls[place->second] = task_of(*call);
        }
      }
    });
  }
  return calls;
}

}  // namespace troupe::actor
