#include "head/membership.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <set>

#include "base/log.h"
#include "head/placement.h"

namespace troupe::head {

namespace {

constexpr Duration retry_min = std::chrono::milliseconds(50);
constexpr Duration retry_max = std::chrono::seconds(2);
// Of one try: a lost message is sent again, and the worker joins what it has begun.
constexpr Duration attempt_budget = std::chrono::seconds(5);
// At once, each over a connection of its own: packets of one or two may be lost.
constexpr int probes_max = 4;
constexpr int further_probes_max = 256;  // In all; where more nodes are silent each has one.
constexpr int return_windows = 2;        // What a node that answers may take to connect anew.
constexpr size_t labels_max = 64;
constexpr size_t text_bytes_max = 256;

uint64_t to_us(Duration duration) {
  return static_cast<uint64_t>(duration / std::chrono::microseconds(1));
}

Status check(const protocol::RegisterNode& request) {
  if (request.address.node.is_nil()) return error(Code::invalid, "a node needs an id");
  if (request.name.size() > text_bytes_max || request.version.size() > text_bytes_max) {
    return error(Code::invalid, "a node's name and version have at most 256 bytes");
  }
  if (request.labels.size() > labels_max || request.total.size() > labels_max) {
    return error(Code::invalid, "a node has at most 64 labels and 64 resources");
  }
  std::set<std::string> labels;
  for (const auto& [name, value] : request.labels) {
    if (!labels.insert(name).second) return error(Code::invalid, "label " + name + " is set twice");
  }
  TROUPE_TRY(const auto total, to_resources(request.total));
  return scheduler::check_total(total);
}

}  // namespace

Membership::Membership(transport::Environment environment, const HeadOptions& options, Scope& scope,
                       Journal& journal, uint64_t epoch)
    : environment_(environment),
      options_(options),
      scope_(scope),
      journal_(journal),
      epoch_(epoch),
      changed_(environment.loop) {}

void Membership::restore(std::vector<protocol::NodeInfo> nodes) {
  const Instant now = environment_.clock.now();
  for (protocol::NodeInfo& info : nodes) {
    const NodeId id = info.address.node;
    Node& node = nodes_[id];
    node.info = std::move(info);
    node.heard = node.apart_since = now;
  }
}

void Membership::start() {
  spawn(scope_, watch());
}

Async<Result<protocol::NodeRegistered>> Membership::register_node(
    protocol::RegisterNode request, std::shared_ptr<transport::Peer> peer) {
  TROUPE_CO_CHECK(check(request));
  const NodeId id = request.address.node;
  const auto found = nodes_.find(id);
  if (found == nodes_.end() && nodes_.size() >= options_.nodes_max) {
    co_return error(Code::exhausted, fmt::format("the cluster has {} nodes", nodes_.size()));
  }
  std::erase_if(dead_, [&](const auto& info) { return info.address.node == id; });
  Node& node = nodes_[id];
  const bool is_late = node.registered && node.peer == peer && request.sequence > 0 &&
                       request.sequence <= node.sequence;
  if (is_late) co_return co_await answer_registered(node.written);
  node.sequence = request.sequence;
  node.info.address = request.address;
  node.info.name = request.name;
  node.info.total = request.total;
  node.info.labels = request.labels;
  node.info.version = request.version;
  node.info.pid = request.pid;
  node.peer = std::move(peer);
  node.heard = environment_.clock.now();
  node.registered = true;
  ++node.registrations;
  Batch batch;
  put_node(batch, node.info);
  const Journal::Ticket written = node.written = journal_.write(std::move(batch));
  log::info("node_registered", {{"node", id},
                                {"name", request.name},
                                {"actors", request.actors.size()},
                                {"slots", request.slots.size()}});
  for (NodeListener* listener : listeners_) {
    if (node.info.draining) listener->node_draining(node.info);
  }
  for (NodeListener* listener : listeners_) listener->node_registered(request);
  changed_.pulse();
  co_return co_await answer_registered(written);
}

Async<Result<protocol::NodeRegistered>> Membership::answer_registered(Journal::Ticket written) {
  TROUPE_CO_CHECK(co_await journal_.settled(written));
  protocol::NodeRegistered reply;
  reply.cluster = options_.cluster;
  reply.epoch = epoch_;
  reply.heartbeat_us = to_us(options_.heartbeat);
  reply.window_us = to_us(options_.window);
  co_return reply;
}

bool Membership::registered_over(NodeId node, const std::shared_ptr<transport::Peer>& peer) const {
  const auto found = nodes_.find(node);
  return found != nodes_.end() && found->second.registered && found->second.peer == peer;
}

Async<Status> Membership::drain(NodeId id, bool draining) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) {
    co_return error(Code::not_found, fmt::format("there is no node {}", id.to_string()));
  }
  Node& node = found->second;
  if (node.info.draining != draining) {
    node.info.draining = draining;
    Batch batch;
    put_node(batch, node.info);
    node.written = journal_.write(std::move(batch));
    log::info("node_draining", {{"node", id}, {"name", node.info.name}, {"draining", draining}});
    const protocol::NodeInfo info = node.info;
    for (NodeListener* listener : listeners_) listener->node_draining(info);
  }
  co_return co_await journal_.settled(node.written);
}

protocol::HeartbeatReply Membership::heartbeat(const protocol::Heartbeat& beat,
                                               const std::shared_ptr<transport::Peer>& peer) {
  protocol::HeartbeatReply reply;
  reply.epoch = epoch_;
  if (!registered_over(beat.node, peer) || beat.epoch != epoch_) {
    reply.register_again = true;
    return reply;
  }
  Node& node = nodes_.at(beat.node);
  node.heard = environment_.clock.now();
  node.info.store_used_bytes = beat.store_used_bytes;
  node.info.store_spilled_bytes = beat.store_spilled_bytes;
  node.info.store_capacity_bytes = beat.store_capacity_bytes;
  node.info.memory_used_bytes = beat.memory_used_bytes;
  node.info.cpu_used_milli = beat.cpu_used_milli;
  return reply;
}

void Membership::peer_closed(const transport::Peer& peer) {
  for (auto& [id, node] : nodes_) {
    if (node.peer.get() != &peer) continue;
    node.peer.reset();
    node.apart_since = environment_.clock.now();
    log::warning("node_disconnected", {{"node", id}, {"name", node.info.name}});
    spawn(scope_, probe(id));
  }
}

bool Membership::is_dead(NodeId node) const {
  return !nodes_.contains(node);
}

bool Membership::is_draining(NodeId node) const {
  const auto found = nodes_.find(node);
  return found != nodes_.end() && found->second.info.draining;
}

size_t Membership::alive() const {
  return static_cast<size_t>(std::count_if(
      nodes_.begin(), nodes_.end(), [](const auto& entry) { return entry.second.registered; }));
}

std::vector<NodeId> Membership::alive_nodes() const {
  std::vector<NodeId> ids;
  for (const auto& [id, node] : nodes_) {
    if (node.registered) ids.push_back(id);
  }
  return ids;
}

const char* Membership::state_of(const Node& node) const {
  const bool fresh = environment_.clock.now() - node.heard < options_.window / 2;
  return node.registered && node.peer && fresh ? "alive" : "suspect";
}

std::vector<protocol::NodeInfo> Membership::list() const {
  std::vector<protocol::NodeInfo> infos;
  for (const auto& [id, node] : nodes_) {
    infos.push_back(node.info);
    infos.back().state = state_of(node);
  }
  infos.insert(infos.end(), dead_.begin(), dead_.end());
  return infos;
}

Async<Result<Bytes>> Membership::call_raw(NodeId id, transport::Method method, Bytes request,
                                          Duration budget, std::function<bool()> wanted) {
  using namespace boost::asio::experimental::awaitable_operators;
  const Instant deadline = environment_.clock.now() + budget;
  Duration pause = retry_min;
  for (;;) {
    if (!wanted()) co_return error(Code::cancelled, "not wanted any more");
    const auto found = nodes_.find(id);
    if (found == nodes_.end()) {
      co_return error(Code::unavailable, fmt::format("node {} is dead", id.to_string()));
    }
    const std::shared_ptr<transport::Peer> peer = found->second.peer;
    if (peer && peer->is_open()) {
      transport::Message message{request, {}};
      const Duration attempt =
          std::min<Duration>(attempt_budget, deadline - environment_.clock.now());
      if (!peer->is_writable()) {
        (void)co_await (peer->writable() || sleep_for(environment_.clock, attempt));
      }
      // What a connection that is closing does not take was not asked at all, though the peer does
      // not know of the end yet.
      auto asked = peer->begin_call(method, std::move(message), attempt);
      if (!asked && asked.error().code() != Code::unavailable) {
        co_return std::move(asked).error();
      }
      if (asked) {
        auto answer = co_await asked->reply();
        // What comes late over a connection that another one has replaced may be of a worker's life
        // before, whose processes are gone: the present one is asked. A node that was lost
        // meanwhile is another one when it is back.
        const auto present = nodes_.find(id);
        const bool is_replaced =
            present == nodes_.end() || (present->second.peer && present->second.peer != peer);
        if (is_replaced) continue;
        if (answer) co_return std::move(answer->body);
        // An error over a connection that lives is the worker's answer; only silence is asked
        // again.
        const bool silence = !peer->is_open() || answer.error().code() == Code::deadline_exceeded;
        if (!silence) co_return std::move(answer).error();
      }
    }
    if (environment_.clock.now() >= deadline) {
      co_return error(Code::deadline_exceeded,
                      fmt::format("node {} did not answer in time", id.to_string()));
    }
    co_await wait_until(environment_.clock, environment_.clock.now() + pause, changed_);
    pause = std::min(pause * 2, retry_max);
  }
}

Async<Result<std::shared_ptr<transport::IncomingStream>>> Membership::open_stream(
    NodeId id, transport::Method method, Bytes request, Duration budget,
    std::function<bool()> wanted) {
  for (;;) {
    if (!wanted()) co_return error(Code::cancelled, "not wanted any more");
    const auto found = nodes_.find(id);
    if (found == nodes_.end()) {
      co_return error(Code::unavailable, fmt::format("node {} is dead", id.to_string()));
    }
    const std::shared_ptr<transport::Peer> peer = found->second.peer;
    if (peer && peer->is_open()) {
      transport::Message message{request, {}};
      auto stream = peer->open_stream(method, std::move(message), budget);
      if (stream) co_return stream;
      if (stream.error().code() != Code::unavailable) co_return std::move(stream).error();
    }
    co_await wait_until(environment_.clock, environment_.clock.now() + retry_max, changed_);
  }
}

Async<void> Membership::watch() {
  for (;;) {
    const Instant due = environment_.clock.now() + options_.heartbeat;
    co_await sleep_until(environment_.clock, due);
    const Instant now = environment_.clock.now();
    // While this process did not run (a stopped process, a machine that slept) nobody could be
    // heard.
    const Duration missed = now - due;
    if (missed > options_.heartbeat) {
      log::warning("head_was_stalled", {{"ms", missed / std::chrono::milliseconds(1)}});
      for (auto& [id, node] : nodes_) node.heard += missed;
    }
    std::vector<NodeId> silent;
    for (auto& [id, node] : nodes_) {
      if (now - node.heard >= options_.window) {
        silent.push_back(id);
      } else if (now - node.heard >= options_.window / 2) {
        spawn(scope_, probe(id));
      }
    }
    for (const NodeId id : silent) {
      const auto ms = options_.window / std::chrono::milliseconds(1);
      lose(id, fmt::format("node {} was not heard of for {} ms", id.short_string(), ms));
    }
  }
}

Async<void> Membership::probe(NodeId id) {
  auto found = nodes_.find(id);
  if (found == nodes_.end() || found->second.info.address.port == 0) co_return;
  const int at_once = probes_running_ < further_probes_max ? probes_max : 1;
  if (found->second.probes >= at_once) co_return;
  ++found->second.probes;
  ++probes_running_;
  const uint64_t registrations = found->second.registrations;
  transport::Endpoint endpoint;
  endpoint.host = found->second.info.address.host;
  endpoint.port = found->second.info.address.port;
  const std::string where = endpoint.to_string();
  const Instant deadline = environment_.clock.now() + options_.window / 2;
  const auto reach = co_await environment_.network.probe(std::move(endpoint), deadline);
  --probes_running_;
  found = nodes_.find(id);
  if (found == nodes_.end()) co_return;
  Node& node = found->second;
  node.probes = std::max(node.probes - 1, 0);          // It may have been lost, and be here anew.
  if (node.registrations != registrations) co_return;  // It is back.
  if (reach == transport::Reach::refused && !node.peer) {
    lose(id,
         fmt::format("node {} is gone: nobody listens on {} any more", id.short_string(), where));
    co_return;
  }
  const Instant now = environment_.clock.now();
  if (reach != transport::Reach::answers || now - node.heard < options_.window / 2) co_return;
  if (node.peer) {
    // It lives, and its connection does not. It comes over another.
    log::warning("node_unheard", {{"node", id}, {"name", node.info.name}});
    std::exchange(node.peer, nullptr)->close();
    node.apart_since = now;
  }
  // One that answers and never comes is not waited for without end.
  if (now - node.apart_since < return_windows * options_.window) node.heard = now;
}

void Membership::lose(NodeId id, const std::string& reason) {
  const auto found = nodes_.find(id);
  if (found == nodes_.end()) return;
  log::warning("node_lost", {{"node", id}, {"name", found->second.info.name}, {"why", reason}});
  protocol::NodeInfo info = std::move(found->second.info);
  // A worker that lives on finds out, and registers anew.
  if (const auto peer = std::exchange(found->second.peer, nullptr)) peer->close();
  info.state = "dead";
  dead_.push_back(std::move(info));
  if (dead_.size() > options_.history_max) dead_.pop_front();
  nodes_.erase(found);
  Batch batch;
  erase_node(batch, id);
  journal_.write(std::move(batch));
  for (NodeListener* listener : listeners_) listener->node_lost(id, reason);
  changed_.pulse();
}

}  // namespace troupe::head
