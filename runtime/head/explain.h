// What the head knows of why something waits: of anything with an id.
#pragma once

#include "head/actors.h"
#include "head/groups.h"
#include "head/jobs.h"
#include "head/leases.h"
#include "head/membership.h"

namespace troupe::head {

struct Known {
  const Membership& membership;
  const Groups& groups;
  const Actors& actors;
  const Leases& leases;
  const Jobs& jobs;
  Instant now;
};

// Of a node, an actor, a lease, a placement group, a job, or a process of one of them.
// Errors: not_found.
Result<protocol::Explanation> explain(const Known& known, RawId id);

}  // namespace troupe::head
