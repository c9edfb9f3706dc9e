// The cluster's workers: who is there, who went silent, and how to call them.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>

#include "head/journal.h"
#include "head/options.h"
#include "head/tables.h"
#include "transport/peer.h"

namespace troupe::head {

// What follows when a worker comes or goes. Called within a turn of the loop.
class NodeListener {
 public:
  virtual ~NodeListener() = default;
  // The worker runs what it lists and nothing else.
  virtual void node_registered(const protocol::RegisterNode& node) = 0;
  virtual void node_lost(NodeId node, const std::string& reason) = 0;
  // Nothing new may go there; or may again. Also told just before one that drains registers.
  virtual void node_draining(const protocol::NodeInfo& node) { (void)node; }
};

class Membership {
 public:
  Membership(transport::Environment environment, const HeadOptions& options, Scope& scope,
             Journal& journal, uint64_t epoch);

  // Told in this order. Before start().
  void add_listener(NodeListener& listener) { listeners_.push_back(&listener); }
  // Takes in the nodes that the head before knew: each has a window to register.
  void restore(std::vector<protocol::NodeInfo> nodes);
  void start();

  // Idempotent. Errors: invalid, exhausted (too many nodes).
  Async<Result<protocol::NodeRegistered>> register_node(protocol::RegisterNode request,
                                                        std::shared_ptr<transport::Peer> peer);
  // Durable on return. Errors: not_found.
  Async<Status> drain(NodeId node, bool draining);
  protocol::HeartbeatReply heartbeat(const protocol::Heartbeat& beat,
                                     const std::shared_ptr<transport::Peer>& peer);
  void peer_closed(const transport::Peer& peer);

  // Whether the node registered over this connection.
  bool registered_over(NodeId node, const std::shared_ptr<transport::Peer>& peer) const;

  uint64_t epoch() const { return epoch_; }
  bool is_dead(NodeId node) const;
  bool is_draining(NodeId node) const;
  size_t alive() const;
  std::vector<NodeId> alive_nodes() const;
  // One that is alive, suspect or of the latest dead.
  struct Found {
    protocol::NodeInfo info;
    Duration silent{};  // Since it was heard of last, unless it is dead.
    Duration left{};    // Of the window after which it is dead, if that goes on.
  };
  std::optional<Found> find(NodeId node) const;
  // Without resources and counts, which others know. Ascending by id, then the dead.
  std::vector<protocol::NodeInfo> list() const;

  // Calls a worker until it answers, over as many connections as that takes. Stops early with
  // cancelled when `wanted` turns false. Errors: unavailable (the node is dead), cancelled, and
  // what the worker answered. The request must be idempotent.
  template <class Reply, class Request>
  Async<Result<Reply>> call(NodeId node, transport::Method method, Request request, Duration budget,
                            std::function<bool()> wanted) {
    auto answer =
        co_await call_raw(node, method, protocol::encode(request), budget, std::move(wanted));
    if (!answer) co_return std::move(answer).error();
    co_return protocol::decode<Reply>(*answer);
  }
  // A stream from a worker, once one can be opened. Errors: unavailable (the node is dead),
  // cancelled (not wanted any more).
  Async<Result<std::shared_ptr<transport::IncomingStream>>> open_stream(
      NodeId node, transport::Method method, Bytes request, Duration budget,
      std::function<bool()> wanted);

 private:
  struct Node {
    protocol::NodeInfo info;
    std::shared_ptr<transport::Peer> peer;  // None while it is not connected.
    Instant heard;
    Instant apart_since;         // While it is not connected.
    bool registered = false;     // With this head.
    uint64_t registrations = 0;  // With this head.
    uint64_t sequence = 0;       // Of its latest registration over this connection.
    int probes = 0;              // That have no answer yet.
    Journal::Ticket written = 0;
  };

  Async<Result<protocol::NodeRegistered>> answer_registered(Journal::Ticket written);
  Async<Result<Bytes>> call_raw(NodeId node, transport::Method method, Bytes request,
                                Duration budget, std::function<bool()> wanted);
  Async<void> watch();
  // Asks a node that has gone or is silent over a second connection.
  Async<void> probe(NodeId node);
  void lose(NodeId node, const std::string& reason);
  const char* state_of(const Node& node) const;

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Journal& journal_;
  const uint64_t epoch_;
  int probes_running_ = 0;
  std::vector<NodeListener*> listeners_;
  std::map<NodeId, Node> nodes_;
  std::deque<protocol::NodeInfo> dead_;  // The latest, bounded.
  Event changed_;
};

}  // namespace troupe::head
