// The host's answers to those who ask what its calls wait for.
#include <fmt/format.h>

#include <algorithm>

#include "actor/host.h"
#include "client/blocked_waits.h"
#include "client/testimony.h"

namespace troupe::actor {

using protocol::Explanation;
using protocol::Explanations;

std::optional<Reported> Host::reported(const HostedPointer& hosted) {
  if (!hosted || !hosted->instance || !hosted->ready) return std::nullopt;
  return Reported{*hosted->instance, hosted->identity.actor, hosted->class_name,
                  hosted->identity.name};
}

std::vector<Reported> Host::all_reported() const {
  std::vector<Reported> all;
  all.reserve(hosted_.size());
  for (const auto& [actor, hosted] : hosted_) {
    if (const auto of = reported(hosted)) all.push_back(*of);
  }
  return all;
}

Explanations Host::explain_calls(const protocol::ExplainCalls& asked) {
  if (asked.tasks.empty()) return explain_actor(asked.actor);
  const std::unordered_set<TaskId> wanted(asked.tasks.begin(), asked.tasks.end());
  CallReports found;
  report_calls(client_, all_reported(), wanted, found);
  report_arriving(wanted, found);
  Explanations told;
  for (const TaskId task : asked.tasks) {
    const auto one = found.find(task);
    if (one != found.end()) {
      told.items.push_back(one->second);
      continue;
    }
    Explanation& unknown = told.items.emplace_back();
    unknown.kind = "call";
    unknown.id = task;
    unknown.state = "unknown";
    unknown.why = "its process has no such call: it has not arrived yet, or has just ended";
  }
  return told;
}

// Before it is in the mailbox it waits for its arguments, and for those before it of its caller.
void Host::report_arriving(const std::unordered_set<TaskId>& wanted, CallReports& out) const {
  const Instant now = client_.environment().clock.now();
  std::map<CallerAndActor, const Arriving*> latest;
  arriving_.for_each([&](const Arriving& call) {
    const Arriving* before = std::exchange(latest[call.caller], &call);
    if (!wanted.contains(call.task) || out.contains(call.task)) return;
    const ActorId actor = call.caller.second;
    const auto hosted = hosted_.find(actor);
    const auto of = hosted != hosted_.end() ? reported(hosted->second) : std::nullopt;
    Explanation told;
    told.kind = "call";
    told.id = call.task;
    told.name = of ? call_name(*of, call.label) : call.label;
    told.state = client::wait_state::waiting;
    told.since_us = static_cast<uint64_t>(
        std::max<int64_t>((now - call.since) / std::chrono::microseconds(1), 1));
    told.deadline_us = client::left_us(now, call.deadline);
    told.why = fmt::format("it has not begun: {} of its arguments are refs, which are fetched",
                           call.arguments.size());
    for (const client::ObjectName& object : call.arguments) {
      told.waits_for.push_back({"object", object.id, {}, object.owner});
    }
    if (call.ordered && before != nullptr) {
      told.why +=
          "; it goes behind an earlier call of the same caller that still waits for its own";
      told.waits_for.push_back({"call", before->task, before->label, client_.address()});
    }
    out.insert_or_assign(call.task, std::move(told));
  });
}

Explanations Host::explain_actor(ActorId actor) const {
  Explanations told;
  const auto hosted = hosted_.find(actor);
  const auto of = hosted != hosted_.end() ? reported(hosted->second) : std::nullopt;
  if (of) {
    told.items.push_back(report_actor(client_, *of));
    return told;
  }
  Explanation& gone = told.items.emplace_back();
  gone.kind = "actor";
  gone.id = actor;
  gone.state = hosted != hosted_.end() ? "starting" : "unknown";
  gone.why = hosted != hosted_.end()
                 ? "it has not been created yet: its constructor runs, or waits "
                   "for its arguments"
                 : "this process does not host it (any more)";
  return told;
}

std::vector<TaskId> Host::calls_of(std::span<client::BlockedWait* const> waits) {
  return actor::calls_of(all_reported(), waits);
}

}  // namespace troupe::actor
