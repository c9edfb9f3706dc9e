// JSON over HTTPS with the members of one etcd.
#pragma once

#include <boost/json/object.hpp>
#include <memory>
#include <string>
#include <vector>

#include "security/credentials.h"
#include "transport/async.h"
#include "transport/network.h"

namespace troupe::etcd {

// Asks one member after the other, beginning with the one that answered last, on connections that
// are kept; calls may overlap. Belongs to its loop.
class EtcdHttp {
 public:
  // The credentials outlive it. `attempt_budget`: how long one member may take.
  EtcdHttp(Executor loop, TimerClock& clock, security::Credentials& credentials,
           std::vector<transport::Endpoint> members, Duration attempt_budget);
  ~EtcdHttp();

  // The first answer before `deadline`. A member that failed may have done what was asked, so it
  // may be done twice. Errors: those that etcd answers (not_found, exhausted, denied, invalid,
  // unavailable), denied (one side refuses the other's certificate), unavailable and
  // deadline_exceeded (no member gave an answer that can be used).
  Async<Result<boost::json::object>> post(std::string path, boost::json::object request,
                                          Instant deadline);

 private:
  class Connection;
  struct Member {
    transport::Endpoint endpoint;
    std::vector<std::unique_ptr<Connection>> idle;
  };
  Async<Result<boost::json::object>> ask(size_t member, std::string path, std::string body);
  void keep(size_t member, std::unique_ptr<Connection> connection);

  Executor loop_;
  TimerClock& clock_;
  security::Credentials& credentials_;
  Duration attempt_budget_;
  std::vector<Member> members_;
  size_t preferred_ = 0;
};

}  // namespace troupe::etcd
