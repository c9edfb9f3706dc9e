#include "worker/head_link.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "security/audit.h"
#include "worker/machine.h"

namespace troupe::worker {

using transport::Method;
using transport::Peer;

namespace {

constexpr Duration connect_budget = std::chrono::seconds(5);
// One of several heads may be gone without a word, while another one leads; or all are slow.
constexpr Duration patience_first = std::chrono::milliseconds(300);
constexpr Duration register_budget = std::chrono::seconds(5);
constexpr size_t reports_at_once = 512;
constexpr Duration report_budget = std::chrono::seconds(5);
constexpr Duration beat_budget_least = std::chrono::seconds(1);
constexpr int beats_missed_max = 3;

}  // namespace

HeadLink::HeadLink(transport::Environment environment, Scope& scope, const WorkerOptions& options,
                   transport::Service& service, Questions questions)
    : environment_(environment),
      scope_(scope),
      options_(options),
      service_(service),
      questions_(std::move(questions)),
      patience_(patience_first),
      changed_(environment.loop) {}

void HeadLink::start() {
  spawn(scope_, keep_connected());
  spawn(scope_, report_exits());
}

Status HeadLink::check(const transport::CallContext& call, uint64_t epoch) {
  if (!peer_ || call.peer != peer_) {
    security::Audit{}.refuse(security::audit_name(call.peer->identity()),
                             "ask as " + call.peer->remote().kind, "not the head");
    return error(Code::denied, "only the head may ask this of a worker");
  }
  return observe(epoch);
}

Status HeadLink::observe(uint64_t epoch) {
  if (epoch < epoch_) {
    security::Audit{}.refuse("head", fmt::format("ask in epoch {}", epoch),
                             fmt::format("epoch {} was seen", epoch_));
    return error(Code::denied,
                 fmt::format("epoch {} is past: this node has seen {}", epoch, epoch_));
  }
  epoch_ = epoch;
  return ok();
}

Duration HeadLink::with_jitter(Duration delay) {
  // Between half and all of it, so that the workers of a lost head do not return in step.
  const auto half = static_cast<uint64_t>(delay.count()) / 2;
  return Duration{static_cast<int64_t>(half + environment_.random.below(half + 1))};
}

Async<void> HeadLink::keep_connected() {
  Duration delay = options_.reconnect_first;
  for (;;) {
    const Instant heard_before = heard_;
    const Status ended = co_await serve_one_connection();
    if (peer_) peer_->close();
    registered_ = false;
    if (heard_ > heard_before) delay = options_.reconnect_first;
    const Duration pause = with_jitter(delay);
    log::warning("head_away",
                 {{"why", ended.error()}, {"retry_ms", pause / std::chrono::milliseconds(1)}});
    co_await sleep_for(environment_.clock, pause);
    delay = std::min(delay * 2, options_.reconnect_longest);
  }
}

// Returns why the connection could not be made or did not last.
Async<Status> HeadLink::serve_one_connection() {
  auto peer = co_await dial();
  if (!peer) co_return std::move(peer).error();
  peer_ = *peer;
  TROUPE_CO_CHECK(co_await register_node(*peer));
  co_return co_await beat(*peer);
}

Async<Result<std::shared_ptr<Peer>>> HeadLink::dial() {
  Error failure = error(Code::unavailable, "no head is known");
  bool all_silent = true;
  for (size_t tries = 0; tries < options_.heads.size(); ++tries) {
    auto peer = co_await dial_one(options_.heads[next_head_]);
    if (peer) {
      patience_ = patience_first;
      co_return peer;
    }
    failure = std::move(peer).error();
    all_silent = all_silent && failure.code() == Code::deadline_exceeded;
    next_head_ = (next_head_ + 1) % options_.heads.size();
  }
  if (all_silent) patience_ = std::min(patience_ * 2, connect_budget);
  co_return failure;
}

Async<Result<std::shared_ptr<Peer>>> HeadLink::dial_one(transport::Endpoint head) {
  const Duration budget = options_.heads.size() > 1 ? patience_ : connect_budget;
  const Instant deadline = environment_.clock.now() + budget;
  auto connection = co_await environment_.network.connect(head, deadline);
  if (!connection) co_return std::move(connection).error();
  const transport::PeerIdentity& identity = (*connection)->peer();
  if (!identity.local && identity.role != transport::Role::head) {
    security::Audit{}.refuse(security::audit_name(identity), "be the head", "its role");
    co_return error(Code::denied, "the certificate at the head's address is not a head's");
  }
  protocol::Hello self = questions_.hello();
  auto peer = co_await Peer::start(scope_, environment_, std::move(*connection), service_,
                                   std::move(self), deadline);
  if (!peer) co_return std::move(peer).error().context("head " + head.to_string());
  co_return peer;
}

Async<Status> HeadLink::register_node(std::shared_ptr<Peer> peer) {
  // Counted as it is taken, not as it is answered: the head's first requests may overtake its
  // answer.
  ++registrations_;
  protocol::RegisterNode registration = questions_.registration();
  registration.sequence = registrations_;
  const size_t actors = registration.actors.size();
  const Instant sent = environment_.clock.now();
  auto reply = co_await transport::call<protocol::NodeRegistered>(
      peer, Method::register_node, std::move(registration), register_budget);
  if (!reply) co_return std::move(reply).error().context("register with the head");
  if (!options_.cluster.is_nil() && !reply->cluster.is_nil() &&
      reply->cluster != options_.cluster) {
    co_return error(Code::denied, "the head is of cluster " + reply->cluster.to_string());
  }
  TROUPE_CO_CHECK(observe(reply->epoch));
  if (reply->heartbeat_us > 0) heartbeat_period_ = std::chrono::microseconds(reply->heartbeat_us);
  registered_ = true;
  note_heard(sent);
  log::info("node_registered", {{"node", options_.node},
                                {"epoch", epoch_},
                                {"actors", actors},
                                {"head", options_.heads[next_head_].to_string()}});
  changed_.pulse();
  co_return ok();
}

protocol::Heartbeat HeadLink::heartbeat() {
  protocol::Heartbeat beat;
  beat.node = options_.node;
  beat.epoch = epoch_;
  beat.sequence = ++sequence_;
  beat.store_used_bytes = questions_.store_used_bytes();
  beat.store_spilled_bytes = questions_.store_spilled_bytes();
  beat.gauges = questions_.changed_gauges();
  beat.store_capacity_bytes = options_.store_capacity_bytes;
  if (options_.usage != nullptr) {
    beat.memory_used_bytes = options_.usage->memory_used_bytes();
    beat.cpu_used_milli = options_.usage->cpu_used_milli();
  }
  return beat;
}

void HeadLink::note_heard(Instant sent) {
  heard_ = std::max(heard_, sent);
  questions_.heard();
}

Async<Status> HeadLink::beat(std::shared_ptr<Peer> peer) {
  int missed = 0;
  for (;;) {
    const Instant next = environment_.clock.now() + heartbeat_period_;
    if (co_await wait_until(environment_.clock, next, peer->closed())) {
      co_return error(Code::unavailable, "the head closed the connection");
    }
    const Duration budget = std::max(heartbeat_period_, beat_budget_least);
    protocol::Heartbeat request = heartbeat();
    const Instant sent = environment_.clock.now();
    auto reply = co_await transport::call<protocol::HeartbeatReply>(peer, Method::heartbeat,
                                                                    std::move(request), budget);
    if (!reply) {
      // Another head may lead.
      const bool is_patient = options_.heads.size() == 1 && ++missed < beats_missed_max;
      if (peer->is_open() && is_patient) continue;
      co_return std::move(reply).error().context("heartbeat");
    }
    missed = 0;
    TROUPE_CO_CHECK(observe(reply->epoch));
    if (reply->register_again) {
      TROUPE_CO_CHECK(co_await register_node(peer));
    } else {
      note_heard(sent);
    }
  }
}

void HeadLink::report_exit(protocol::ProcessExited exit) {
  const ExitKey key{exit.process, exit.actor};
  exits_[key] = std::move(exit);
  changed_.pulse();
}

void HeadLink::forget_exits(ActorId actor, uint32_t below_incarnation) {
  std::erase_if(exits_, [&](const auto& entry) {
    return entry.second.actor == actor && entry.second.incarnation < below_incarnation;
  });
}

Async<void> HeadLink::report_exits() {
  Duration delay = options_.reconnect_first;
  for (;;) {
    if (exits_.empty() || !registered_) {
      co_await changed_.wait();
      continue;
    }
    // Those of one process that hosted many light actors go together.
    std::vector<std::pair<ExitKey, transport::OutgoingCall>> calls;
    std::optional<Error> unheard;
    for (const auto& [key, exit] : exits_) {
      if (calls.size() == reports_at_once) break;
      protocol::ProcessExited report = exit;
      report.node = options_.node;
      report.epoch = epoch_;
      transport::Message message{protocol::encode(report), {}};
      auto call = peer_->begin_call(Method::process_exited, std::move(message), report_budget);
      if (!call) {
        unheard = call.error();
        break;
      }
      calls.emplace_back(key, std::move(*call));
    }
    for (auto& [key, call] : calls) {
      auto heard = co_await call.reply();
      // not_found and conflict say that the head has moved on: it needs this report no more.
      if (heard || heard.error().code() == Code::not_found ||
          heard.error().code() == Code::conflict) {
        exits_.erase(key);
      } else {
        unheard = heard.error();
      }
    }
    if (!unheard) {
      delay = options_.reconnect_first;
      continue;
    }
    log::warning("exit_not_reported", {{"exits", exits_.size()}, {"why", *unheard}});
    co_await sleep_for(environment_.clock, with_jitter(delay));
    delay = std::min(delay * 2, options_.reconnect_longest);
  }
}

}  // namespace troupe::worker
