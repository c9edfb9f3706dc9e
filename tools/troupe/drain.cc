// `troupe drain`.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <thread>

#include "protocol/codec.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/rpc.h"
#include "troupe/state_folder.h"

namespace troupe::tools {
namespace json = boost::json;
using protocol::Empty;
using transport::Method;

namespace {

Result<protocol::NodeInfo> find_node(Rpc& head, const std::string& wanted) {
  TROUPE_TRY(const auto nodes, head.ask<protocol::NodeList>(Method::list_nodes, Empty{}));
  std::vector<protocol::NodeInfo> found;
  for (const protocol::NodeInfo& node : nodes.items) {
    if (node.state == "dead") continue;
    const std::string id = node.address.node.to_string();
    if (node.name == wanted || id == wanted) return node;
    if (!wanted.empty() && id.starts_with(wanted)) found.push_back(node);
  }
  if (found.size() == 1) return found.front();
  return error(Code::not_found, fmt::format("{} node is named {}: see 'troupe list nodes'",
                                            found.empty() ? "no living" : "more than one", wanted));
}

// What is still there, for people.
std::string remains(Rpc& head, const protocol::NodeInfo& node) {
  std::string text = fmt::format("{} actors and {} slots", node.actors, node.slots);
  if (node.actors + node.slots == 0) {
    return fmt::format("{} MiB in its store, of which something is to move",
                       node.store_used_bytes >> 20);
  }
  auto actors = head.ask<protocol::ActorList>(Method::list_actors, Empty{});
  if (!actors) return text;
  std::string names;
  for (const protocol::ActorInfo& actor : actors->items) {
    if (actor.state != "alive" || actor.address.node != node.address.node) continue;
    names += (names.empty() ? ": " : ", ") +
             (actor.name.empty() ? actor.actor.short_string() : actor.name);
  }
  return text + names;
}

Result<json::object> drain(const StateFolder& folder, const std::string& wanted,
                           const DrainOptions& options) {
  TROUPE_TRY(const auto head, connect_head(folder));
  TROUPE_TRY(auto node, find_node(*head, wanted));
  const std::string id = node.address.node.to_string();
  TROUPE_TRY(
      const auto done,
      head->ask<Empty>(Method::drain_node, protocol::DrainNode{node.address.node, options.undo}));
  (void)done;
  const auto end = std::chrono::steady_clock::now() +
                   std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                       std::chrono::duration<double>(options.timeout_s));
  for (;;) {
    TROUPE_TRY(node, find_node(*head, id));
    if (options.undo || options.timeout_s <= 0 || node.state == "drained") break;
    if (was_interrupted()) return error(Code::cancelled, "interrupted; the node stays out of use");
    if (std::chrono::steady_clock::now() > end) {
      return error(
          Code::deadline_exceeded,
          fmt::format("node {} is out of use, but still has {}: wait longer with --timeout, end "
                      "them, or use it again with --undo",
                      node.name, remains(*head, node)));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return json::object{{"node", id},          {"name", node.name},
                      {"state", node.state}, {"actors", node.actors},
                      {"slots", node.slots}, {"store_used_mib", node.store_used_bytes >> 20}};
}

}  // namespace

int run_drain(const CommonOptions& common, const std::string& node, const DrainOptions& options) {
  watch_interrupts();
  const auto drained = drain(StateFolder{common.state}, node, options);
  if (!drained) return fail(drained.error());
  print(*drained, common.format);
  return 0;
}

}  // namespace troupe::tools
