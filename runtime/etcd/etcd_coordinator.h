// The heads' coordinator, kept in etcd.
#pragma once

#include <boost/json/array.hpp>
#include <memory>
#include <string>
#include <vector>

#include "etcd/etcd_http.h"
#include "head/coordinator.h"
#include "security/credentials.h"

namespace troupe::etcd {

struct EtcdOptions {
  std::vector<std::string> endpoints;    // HOST:PORT of etcd's members.
  std::string prefix;                    // "/troupe/<cluster id>"
  security::CredentialsPem credentials;  // Of etcd's authority.
  std::chrono::seconds lease_time{2};
  Duration attempt_budget = std::chrono::seconds(1);  // Of one member's answer.
  Duration call_budget = std::chrono::milliseconds(1500);
};

class EtcdCoordinator final : public head::Coordinator {
 public:
  // Connects only when it is asked something. Errors: invalid (an endpoint, the prefix, the lease
  // time), and those of security::Credentials::load.
  static Result<std::unique_ptr<EtcdCoordinator>> create(Executor loop, TimerClock& clock,
                                                         EtcdOptions options);

  // Besides coordinator.h's, all may fail with denied (one side refuses the other's certificate),
  // exhausted (etcd's space is used up) and data_loss (what is recorded cannot be read).
  Async<Result<head::LeadRecord>> read() override;
  // Errors: also invalid (etcd does not grant leases of lease_time()).
  Async<Result<head::LeadRecord>> lead(head::LeadRecord wanted) override;
  Async<Status> renew(int64_t lease) override;
  Async<Result<head::LeadRecord>> set_in_sync(head::LeadRecord mine) override;
  Async<Status> end_lease(int64_t lease) override;
  Duration lease_time() const override { return options_.lease_time; }

 private:
  struct Outcome {
    bool done = false;  // What was compared was so.
    head::LeadRecord record;
    std::string sync_value;
    std::string raft_term;
  };

  EtcdCoordinator(Executor loop, TimerClock& clock, EtcdOptions options,
                  std::unique_ptr<security::Credentials> credentials,
                  std::vector<transport::Endpoint> members);
  Instant call_end() const { return clock_.now() + options_.call_budget; }
  Async<Result<int64_t>> grant(Instant deadline);
  Async<Status> revoke(int64_t lease, Instant deadline);
  // Does `changes` if all of `compared` is so, and reads both keys: one step.
  Async<Result<Outcome>> transact(boost::json::array compared, boost::json::array changes,
                                  Instant deadline);
  Result<Outcome> read_outcome(const boost::json::object& answer) const;

  TimerClock& clock_;
  EtcdOptions options_;
  std::unique_ptr<security::Credentials> credentials_;
  EtcdHttp http_;
  std::string leader_key_;  // In base64, as the sync key.
  std::string sync_key_;
  uint64_t changes_ = 0;  // How often set_in_sync was called.
};

}  // namespace troupe::etcd
