// Where the heads of one cluster agree on which of them leads: a small service of its own, which
// holds one record and one lease. etcd in life (runtime/etcd), a model in simulation.
//
// A head that leads holds the lease and renews it. Whoever takes the lead does so in one step that
// fails if anybody leads, or if the record has changed since it was read; and only a head that the
// record names as in sync may, for the others lack something that was promised.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "transport/async.h"

namespace troupe::head {

struct LeadRecord {
  uint64_t term = 0;                 // Of the last head that led; 0: none ever did.
  std::vector<std::string> in_sync;  // The heads that have all that was promised; who leads first.
  std::string leader;                // Its name; empty: nobody holds the lease.
  std::string address;               // HOST:PORT of the leader.
  int64_t lease = 0;                 // The leader's; 0: nobody's.
  int64_t revision = 0;              // Of term and in_sync: another one after each change; 0: none.
};

// Belongs to its loop. Each call ends within a time of its own, with unavailable or
// deadline_exceeded if the service does not answer: then nobody knows whether it was done, and
// read() tells.
class Coordinator {
 public:
  virtual ~Coordinator() = default;

  // If nobody leads, term and in_sync are the last leader's. What it returns is no
  // older than the call.
  virtual Async<Result<LeadRecord>> read() = 0;
  // Takes the lead as `wanted` says, with a new lease that lasts lease_time() from the call on, if
  // nobody leads and the record's revision is still wanted.revision. Returns what is recorded.
  // Errors: conflict (somebody leads, or the record has changed).
  virtual Async<Result<LeadRecord>> lead(LeadRecord wanted) = 0;
  // The lease lasts lease_time() from this call on. Errors: conflict (it is over).
  virtual Async<Status> renew(int64_t lease) = 0;
  // Records mine.in_sync, if the lease is still mine.lease and the revision mine.revision. Returns
  // what is recorded. Errors: conflict.
  virtual Async<Result<LeadRecord>> set_in_sync(LeadRecord mine) = 0;
  // Ends a lease: one's own, or that of a leader which is surely dead. Nothing if it is over.
  virtual Async<Status> end_lease(int64_t lease) = 0;

  // Constant.
  virtual Duration lease_time() const = 0;
};

}  // namespace troupe::head
