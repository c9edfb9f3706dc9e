// Why a task's result is not there yet, as the one who submitted it knows.
#include <fmt/format.h>

#include <algorithm>

#include "client/lease_slots.h"
#include "client/testimony.h"

namespace troupe::client {

namespace {

std::string demand_text(const std::vector<protocol::ResourceAmount>& demand) {
  std::string text;
  for (const auto& amount : demand) {
    text += fmt::format("{}{} {:g}", text.empty() ? "" : ", ", amount.name,
                        static_cast<double>(amount.milli) / 1000);
  }
  return text.empty() ? "nothing" : text;
}

void say_sent(const std::string& task, const Object& result,
              const protocol::ProcessAddress& process, protocol::Explanation& told) {
  told.state = wait_state::sent;
  told.why = fmt::format("{} was sent to process {} on node {}", task, process.process.to_string(),
                         process.node.to_string());
  told.waits_for.push_back(call_at(result, process));
}

}  // namespace

bool LeasePool::explain(const Object& result, protocol::Explanation& told) const {
  const Instant now = client_.environment_.clock.now();
  bool found = false;
  const auto deadline = deadlines_.find(result.id());
  if (deadline != deadlines_.end()) told.deadline_us = left_us(now, deadline->second.deadline);
  alone_.for_each([&](const Alone& one) {
    if (found || one.task->result.get() != &result) return;
    found = true;
    say_sent("task " + one.task->traits->label(), result, one.slot->address, told);
  });
  later_.for_each([&](const Later& one) {
    if (found || one.task->result.get() != &result) return;
    found = true;
    told.state = "backing off";
    told.why = fmt::format("task {} failed; its retry {} begins in {}", one.task->traits->label(),
                           one.task->retried, seconds_text(left_us(now, one.when)));
  });
  const ProcessId process = result.sent_to();
  for (const ClassPointer& cls : classes()) {
    if (found) break;
    if (process.is_nil()) {
      found = explain_queued(cls, result, told);
      continue;
    }
    const std::lock_guard lock{cls->mutex};
    const auto slot = cls->slots.find(process);
    if (slot == cls->slots.end()) continue;
    found = true;
    say_sent("its task", result, slot->second->address, told);
  }
  return found;
}

bool LeasePool::explain_queued(const ClassPointer& cls, const Object& result,
                               protocol::Explanation& told) const {
  const std::lock_guard lock{cls->mutex};
  const auto mine = std::ranges::find_if(
      cls->queue, [&](const Task& task) { return task.result.get() == &result; });
  if (mine == cls->queue.end()) return false;
  const auto ahead = mine - cls->queue.begin();
  told.name = mine->traits->label();
  told.state = wait_state::queued;
  told.why = fmt::format("task {} waits for a slot with {}", told.name, demand_text(cls->demand));
  if (ahead > 0) told.why += fmt::format(", behind {} others", ahead);
  if (!cls->slots.empty()) {
    const auto busy = std::ranges::count_if(
        cls->slots, [](const auto& entry) { return entry.second->in_flight > 0; });
    told.why += fmt::format("; {} of {} leased slots are busy", busy, cls->slots.size());
  }
  if (cls->asked.is_nil() && cls->refusal) {
    told.why += "; the head said last: " + cls->refusal->message();
  }
  if (!cls->asked.is_nil()) told.waits_for.push_back({"lease", cls->asked, {}, {}});
  return true;
}

}  // namespace troupe::client
