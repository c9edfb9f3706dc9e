// One of several heads: it stands by, then it leads, and then its process ends.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "head/head.h"
#include "head/standby.h"

namespace troupe::head {

// Everything runs on the environment's loop. Stop it before it is destroyed.
class Candidate {
 public:
  // `store` and `coordinator` outlive it. It listens where `head_options` says, also while it
  // stands by; the ports are the same ones.
  Candidate(transport::Environment environment, Store& store, Coordinator& coordinator,
            HeadOptions head_options, StandbyOptions standby_options);
  ~Candidate();

  // From here on it is reached, and says that it does not lead. Errors: those of Network::listen.
  Status listen();
  const std::vector<transport::Endpoint>& endpoints() const { return head_options_.listen; }

  // Stands by, leads, and returns why it cannot do either any more: a new life of the process then
  // stands by. Cancel it or let it end before stop().
  Async<Error> live();
  // Gives the lead up, if it has it and `resigns`, so that nobody need wait until the lease is
  // over.
  Async<void> stop(bool resigns = true);

  bool leads() const { return head_ != nullptr && is_up_; }
  // Null while it stands by.
  Head* head() { return head_.get(); }
  Replicator* replicator() { return replicator_.get(); }
  const Standby& standby() const { return *standby_; }

 private:
  transport::Environment environment_;
  Store& store_;
  Coordinator& coordinator_;
  HeadOptions head_options_;
  const std::string name_;
  std::unique_ptr<Standby> standby_;
  std::unique_ptr<Replicator> replicator_;
  std::unique_ptr<Head> head_;
  bool is_up_ = false;
};

}  // namespace troupe::head
