// The worker's connection to the head: registers, beats, reports exits, and comes back after a
// break for as long as it takes.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "transport/environment.h"
#include "transport/peer.h"
#include "worker/options.h"

namespace troupe::worker {

class HeadLink {
 public:
  // What the link asks of the worker, on the loop.
  struct Questions {
    std::function<protocol::RegisterNode()> registration;  // With all that runs.
    std::function<protocol::Hello()> hello;
    std::function<uint64_t()> store_used_bytes;
    std::function<uint64_t()> store_spilled_bytes;
    std::function<std::vector<protocol::ActorGauges>()> changed_gauges;
    std::function<void()> heard;  // Not asked: heard() is later than before.
  };

  // All outlive the link. `service` answers the head's calls over the same connection.
  HeadLink(transport::Environment environment, Scope& scope, const WorkerOptions& options,
           transport::Service& service, Questions questions);

  void start();

  // Whether a request of the head is to be obeyed. Errors: denied (it came over another connection
  // than the one that this worker opened to its head, or from an older leadership term).
  Status check(const transport::CallContext& call, uint64_t epoch);
  // Tells the head, again and again until it has heard.
  void report_exit(protocol::ProcessExited exit);
  // A newer incarnation runs here, so the head knows that older ones ended.
  void forget_exits(ActorId actor, uint32_t below_incarnation);

  bool is_registered() const { return registered_; }
  // When it sent the last of what a head has answered, which knew then that this node lives.
  Instant heard() const { return heard_; }
  // How often it registered.
  uint64_t registrations() const { return registrations_; }
  uint64_t epoch() const { return epoch_; }
  size_t unreported_exits() const { return exits_.size(); }
  // Nil or closed while the head is away.
  const std::shared_ptr<transport::Peer>& peer() const { return peer_; }

 private:
  Async<void> keep_connected();
  Async<Status> serve_one_connection();
  // The head that leads, of all, each asked once. Errors: of the last one that was asked.
  Async<Result<std::shared_ptr<transport::Peer>>> dial();
  Async<Result<std::shared_ptr<transport::Peer>>> dial_one(transport::Endpoint head);
  Async<Status> register_node(std::shared_ptr<transport::Peer> peer);
  Async<Status> beat(std::shared_ptr<transport::Peer> peer);
  Async<void> report_exits();
  protocol::Heartbeat heartbeat();
  Status observe(uint64_t epoch);
  void note_heard(Instant sent);
  Duration with_jitter(Duration delay);

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  transport::Service& service_;
  Questions questions_;
  std::shared_ptr<transport::Peer> peer_;
  size_t next_head_ = 0;  // The one that led, as far as is known.
  Duration patience_;     // With one of several that says nothing.
  bool registered_ = false;
  uint64_t registrations_ = 0;
  uint64_t epoch_ = 0;  // The highest ever seen.
  Instant heard_;
  uint64_t sequence_ = 0;
  Duration heartbeat_period_ = std::chrono::seconds(1);
  using ExitKey = std::pair<ProcessId, ActorId>;
  std::map<ExitKey, protocol::ProcessExited> exits_;  // Not acknowledged.
  Event changed_;                                     // Registered, or an exit to report.
};

}  // namespace troupe::worker
