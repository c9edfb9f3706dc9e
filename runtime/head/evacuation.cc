#include "head/evacuation.h"

#include <algorithm>

#include "base/log.h"

namespace troupe::head {

namespace {

constexpr Duration pause = std::chrono::milliseconds(200);   // Between rounds while work goes on.
constexpr Duration pause_failed = std::chrono::seconds(2);   // After one that moved not all.
constexpr Duration round_budget = std::chrono::minutes(10);  // Of one worker.

}  // namespace

struct Evacuation::Round {
  explicit Round(const Executor& loop) : done(loop) {}
  size_t left = 0;
  Status outcome = ok();
  Event done;
};

Evacuation::Evacuation(transport::Environment environment, Scope& scope, Membership& membership,
                       IsIdle is_idle)
    : environment_(environment),
      scope_(scope),
      membership_(membership),
      is_idle_(std::move(is_idle)) {}

bool Evacuation::is_done(NodeId node) const {
  const auto found = done_.find(node);
  return found != done_.end() && found->second;
}

void Evacuation::node_lost(NodeId node, const std::string&) {
  done_.erase(node);
}

void Evacuation::node_draining(const protocol::NodeInfo& node) {
  const NodeId id = node.address.node;
  if (!node.draining) {
    done_.erase(id);
  } else if (done_.emplace(id, false).second) {
    spawn(scope_, run(id));
  }
}

Async<void> Evacuation::run(NodeId node) {
  for (;;) {
    if (!done_.contains(node)) co_return;  // It is lost, or in use again.
    const bool was_idle = is_idle_(node);
    const Status moved = co_await ask_all(node);
    const auto found = done_.find(node);
    if (found == done_.end()) co_return;
    if (moved && was_idle) {
      found->second = true;
      log::info("node_evacuated", {{"node", node}});
      co_return;
    }
    if (!moved) log::warning("objects_not_moved", {{"node", node}, {"why", moved.error()}});
    co_await sleep_for(environment_.clock, moved ? pause : pause_failed);
  }
}

Async<Status> Evacuation::ask_all(NodeId node) {
  // All that are not dead, also those that are away for a moment, as after a restart of the head:
  // they may own what lies there, and are waited for.
  auto nodes = membership_.list();
  std::erase_if(nodes, [](const auto& known) { return known.state == "dead"; });
  std::vector<NodeId> owners;
  ProcessId worker;
  for (const auto& known : nodes) {
    owners.push_back(known.address.node);
    if (known.address.node == node) worker = known.address.process;
  }
  std::erase_if(nodes, [](const auto& known) { return known.draining; });
  const bool are_others = !nodes.empty();
  std::erase_if(nodes, [](const auto& known) { return known.state != "alive"; });
  std::ranges::sort(nodes, std::greater{}, [](const protocol::NodeInfo& known) {
    return known.store_capacity_bytes -
           std::min(known.store_used_bytes, known.store_capacity_bytes);
  });
  protocol::Evacuate request{node, {}, worker};
  for (auto& known : nodes) request.targets.push_back(std::move(known.address));
  if (request.targets.empty()) {
    if (are_others) co_return error(Code::unavailable, "no other node answers at the moment");
    // Better than never to be drained: what is left there is said by `troupe drain`.
    log::warning("objects_stay", {{"node", node}, {"why", "no other node is in use"}});
    co_return ok();
  }
  const auto round = std::make_shared<Round>(environment_.loop);
  for (const NodeId asked : owners) {
    ++round->left;
    spawn(scope_, ask(asked, request, round));
  }
  if (round->left > 0) co_await round->done.wait();
  Status outcome = round->outcome;
  co_return outcome;
}

Async<void> Evacuation::ask(NodeId node, protocol::Evacuate request, std::shared_ptr<Round> round) {
  const NodeId drained = request.node;
  auto moved = co_await membership_.call<protocol::Empty>(
      node, transport::Method::evacuate, std::move(request), round_budget,
      [this, drained] { return done_.contains(drained); });
  // The owners on a node that is dead are, too.
  if (!moved && !membership_.is_dead(node) && round->outcome) {
    round->outcome = std::move(moved).error();
  }
  if (--round->left == 0) round->done.set();
}

}  // namespace troupe::head
