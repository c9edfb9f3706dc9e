// Gathers what the cluster's processes have noted of what they did.
#pragma once

#include "head/membership.h"
#include "transport/environment.h"

namespace troupe::head {

// Answers get_timelines: passes on what each node's worker streams, one node after the other, with
// its clock in terms of the head's in place of what the worker said of it. Half of the time that
// the worker took to say it is how wrong that may be; clocks that differ by less are taken for one
// machine's. Of a node that does not answer comes a message of kind "missing" that names it, with
// the reason as its only name. Errors: those of OutgoingStream::send, invalid.
Async<Status> pass_timelines(transport::Environment environment, Membership& membership,
                             transport::Message message, transport::CallContext call,
                             transport::OutgoingStream& out);

}  // namespace troupe::head
