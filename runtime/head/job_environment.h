// What a job may ask for in its environment, and what becomes of it when another program of the
// job asks for more. Pure.
#pragma once

#include <optional>
#include <string>

#include "protocol/messages.h"

namespace troupe::head {

// Errors: invalid (says which variable or package, and why).
Status check(const protocol::JobEnvironment& environment);

// The environment with what the other adds; nothing if it adds nothing. Packages can be added at
// any time, a working directory and variables only while they are open. Errors: conflict.
Result<std::optional<protocol::JobEnvironment>> merge(const protocol::JobEnvironment& environment,
                                                      protocol::JobEnvironment other, bool open);

bool names(const protocol::JobEnvironment& environment, const std::string& package);

// Whether others can connect to a process with this address.
bool can_be_reached(const protocol::ProcessAddress& address);

}  // namespace troupe::head
