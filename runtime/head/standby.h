// A head that stands by: follows the one that leads, and leads once nobody does.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "head/coordinator.h"
#include "head/replicator.h"
#include "head/standby_files.h"
#include "transport/environment.h"
#include "transport/router.h"

namespace troupe::head {

struct StandbyOptions {
  ClusterId cluster;
  std::string name;     // Of this head, among the heads of the cluster.
  std::string address;  // HOST:PORT where it answers when it leads.
  uint32_t pid = 0;
  // May lead a cluster of which the coordinator knows nothing: true of one head.
  bool is_first = false;
  // How often it looks who leads, while somebody does and while nobody does.
  Duration look = std::chrono::milliseconds(150);
  Duration look_soon = std::chrono::milliseconds(50);
  StandbyFilesOptions files;
};

// Everything runs on the environment's loop. Stop it before it is destroyed.
class Standby final : public transport::Router {
 public:
  // All outlive it.
  Standby(transport::Environment environment, Store& store, Coordinator& coordinator,
          StandbyOptions options);
  ~Standby() override;

  // Tells whoever comes to these that it does not lead. Errors: those of Network::listen.
  Status listen(const std::vector<transport::Endpoint>& endpoints);
  // With the ports that the system chose.
  const std::vector<transport::Endpoint>& endpoints() const { return endpoints_; }
  // Where it answers when it leads, once that is known.
  void set_address(std::string address) { options_.address = std::move(address); }

  // Returns once this head leads; nobody is told anything from then on. Errors: data_loss, and the
  // other ones of its store; not_found (the coordinator has forgotten a cluster that it knew).
  Async<Result<Lead>> wait_for_lead();
  // Ends what goes on, and closes its ports. A wait for the lead must have ended.
  Async<void> stop();

  // How far its copy goes. For tests and for `troupe status`.
  const Place& place() const { return place_; }

 private:
  struct Session;

  // Whether this head may lead, as the record stands. Errors: not_found.
  Result<bool> may_lead(const LeadRecord& record) const;
  Async<Result<Lead>> take_lead(LeadRecord record);
  // Until the connection ends, or another head leads.
  Async<Status> follow(LeadRecord record);
  Async<Status> watch_leader(const LeadRecord& record, std::shared_ptr<transport::Peer> peer);
  Async<void> bury(const LeadRecord& record);
  Async<Result<transport::Message>> replicate(transport::Message message,
                                              transport::CallContext call);
  // Answered once this head has the files that the rows name; without rows: that its own do.
  Async<Result<transport::Message>> bring_files(protocol::Replicate request,
                                                transport::CallContext call);
  Async<void> apply();
  Async<Status> apply_some();
  Async<Result<std::vector<FilesOfRow>>> read_files(const Batch& batch);
  // False: it follows nobody any more, and lacks some.
  Async<bool> await_files(const StandbyFiles::Need& need);
  void drop_arrived();
  Result<Batch> erase_all();
  Async<void> settled();

  Async<void> accept_from(transport::Listener& listener);
  Async<void> turn_away(std::unique_ptr<transport::Connection> connection);

  transport::Environment environment_;
  Store& store_;
  Coordinator& coordinator_;
  StandbyOptions options_;
  Scope scope_;
  protocol::Hello hello_;
  std::vector<std::unique_ptr<transport::Listener>> listeners_;
  std::vector<transport::Endpoint> endpoints_;

  // --- The copy.
  struct Arrived {
    protocol::Replicate batch;
    History::Message message;
  };
  Place place_;
  bool is_half_copied_ = false;
  History history_{Place{}};
  std::shared_ptr<transport::Peer> leader_;  // Whom it follows.
  uint64_t term_ = 0;                        // Of the leader.
  uint64_t expected_ = 0;                    // The sequence that comes next.
  bool copy_began_ = false;
  bool takes_batches_ = false;
  StandbyFiles files_;
  // The leader has it surely off the record until it says that it has its files: it may apply
  // batches without theirs. Else it must not, for it may be promoted, and the leader removes what
  // its newest rows do not name.
  bool may_lack_files_ = false;
  std::deque<Arrived> arrived_;
  uint64_t arrived_count_ = 0;
  uint64_t applied_count_ = 0;
  uint64_t dropped_count_ = 0;  // Up to here they were not applied, if they had not been before.
  bool applying_ = false;
  Status health_ = ok();
  Event applied_;
};

}  // namespace troupe::head
