#include "head/timelines.h"

#include "base/log.h"
#include "base/timeline.h"

namespace troupe::head {

using protocol::ProcessTimeline;
using transport::CallContext;
using transport::Method;
using transport::OutgoingStream;

namespace {

constexpr Duration node_patience = std::chrono::seconds(5);  // For each message of a node.

// What a worker said of its clock, which the head asked for and heard at these times.
Status compare_clocks(ProcessTimeline& said, Instant asked, Instant heard) {
  const auto events = events_of(said.records);
  if (said.kind != "clock" || events.size() != 1 || events[0].kind != TimelineKind::clock) {
    return error(Code::invalid, "it does not say first what its clock says");
  }
  TimelineEvent clock = events[0];
  const Duration doubt = (heard - asked) / 2;
  const Instant here = asked + doubt;
  const bool is_same = clock.start >= asked && clock.start <= heard;
  clock.id = static_cast<uint64_t>((is_same ? clock.start : here).time_since_epoch().count());
  clock.duration = is_same ? Duration::zero() : doubt;
  said.records.clear();
  append_record(said.records, clock);
  return ok();
}

// `told`: what was said is on its way to whoever asked; the rest of the errors is the node's.
struct NodeOutcome {
  Status node = ok();
  Status told = ok();
};

Async<NodeOutcome> pass_node(transport::Environment environment, Membership& membership,
                             NodeId node, Bytes request, std::shared_ptr<Event> given_up,
                             OutgoingStream& out) {
  NodeOutcome outcome;
  const Instant asked = environment.clock.now();
  const Instant deadline = asked + node_patience;
  const auto is_wanted = [given_up, deadline, &clock = environment.clock] {
    return !given_up->is_set() && clock.now() < deadline;
  };
  auto stream = co_await membership.open_stream(node, Method::get_timelines, std::move(request),
                                                Duration::zero(), is_wanted);
  if (!stream) {
    outcome.node = std::move(stream).error();
    co_return outcome;
  }
  for (bool is_first = true;; is_first = false) {
    const Instant until = environment.clock.now() + node_patience;
    auto item = co_await with_deadline(environment.clock, until, (*stream)->next());
    if (!item) {
      outcome.node = std::move(item).error();
      co_return outcome;
    }
    if (!*item) co_return outcome;
    Bytes passed = std::move(**item);
    if (is_first) {
      auto said = protocol::decode<ProcessTimeline>(passed);
      outcome.node =
          said ? compare_clocks(*said, asked, environment.clock.now()) : Status{said.error()};
      if (!outcome.node) co_return outcome;
      passed = protocol::encode(*said);
    }
    outcome.told = co_await out.send(std::move(passed));
    if (!outcome.told) co_return outcome;
  }
}

}  // namespace

Async<Status> pass_timelines(transport::Environment environment, Membership& membership,
                             transport::Message message, CallContext call, OutgoingStream& out) {
  TROUPE_CO_TRY(const auto request, protocol::decode<protocol::GetTimelines>(message.body));
  std::map<NodeId, std::string> names;
  for (const protocol::NodeInfo& node : membership.list()) names[node.address.node] = node.name;
  for (const NodeId node : membership.alive_nodes()) {
    auto passed = co_await pass_node(environment, membership, node, protocol::encode(request),
                                     call.cancelled, out);
    TROUPE_CO_CHECK(passed.told);
    if (passed.node) continue;
    log::warning("timelines_not_gathered", {{"node", node}, {"why", passed.node.error()}});
    ProcessTimeline missing;
    missing.kind = "missing";
    missing.process.node = node;
    missing.node_name = names[node];
    missing.names = {passed.node.error().to_string()};
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(missing)));
  }
  co_return ok();
}

}  // namespace troupe::head
