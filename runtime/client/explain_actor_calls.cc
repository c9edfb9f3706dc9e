// Why a call's result is not there yet, as the one who made the call knows.
#include <fmt/format.h>

#include "client/actor_caller.h"
#include "client/testimony.h"

namespace troupe::client {

namespace {

const std::string& label_of(const ActorCallSpec& spec) {
  const bool is_named = spec.extras && !spec.extras->name.empty();
  return is_named ? spec.extras->name : spec.method;
}

void say_sent(const std::string& call, const Object& result,
              const protocol::ProcessAddress& process, protocol::Explanation& told) {
  told.state = wait_state::sent;
  told.why = fmt::format("{} was sent to the actor in process {} on node {}", call,
                         process.process.to_string(), process.node.to_string());
  told.waits_for.push_back(call_at(result, process));
}

}  // namespace

bool ActorCaller::explain(const Object& result, protocol::Explanation& told) const {
  const Instant now = client_.environment_.clock.now();
  bool found = false;
  const auto deadline = deadlines_.find(result.id());
  if (deadline != deadlines_.end()) told.deadline_us = left_us(now, deadline->second.deadline);
  sent_.for_each([&](const Sent& one) {
    if (found || one.queued->result.get() != &result) return;
    found = true;
    say_sent(label_of(one.queued->spec), result, one.process, told);
  });
  later_.for_each([&](const Later& one) {
    if (found || one.queued->result.get() != &result) return;
    found = true;
    told.state = "backing off";
    told.why = fmt::format("{} is sent again in {}", label_of(one.queued->spec),
                           seconds_text(left_us(now, one.when)));
    told.waits_for.push_back({"actor", one.actor, {}, {}});
  });
  const ProcessId process = result.sent_to();
  for (const Target& target : targets()) {
    if (found) break;
    if (process.is_nil()) {
      found = explain_queued(target, result, told);
      continue;
    }
    const std::lock_guard lock{target->mutex_};
    if (!target->address_ || target->address_->process != process) continue;
    found = true;
    say_sent("its call", result, *target->address_, told);
  }
  return found;
}

bool ActorCaller::explain_queued(const Target& target, const Object& result,
                                 protocol::Explanation& told) const {
  size_t ahead = 0;
  for (const Queued& queued : target->queue_) {
    if (queued->result.get() != &result) {
      ++ahead;
      continue;
    }
    told.name = label_of(queued->spec);
    told.state = "not sent";
    told.why = fmt::format("{} waits for {}", told.name,
                           queued->found_full ? "room in its actor's mailbox" : "its actor");
    if (ahead > 0) told.why += fmt::format(", behind {} others", ahead);
    told.waits_for.push_back({"actor", target->actor_, {}, {}});
    return true;
  }
  return false;
}

}  // namespace troupe::client
