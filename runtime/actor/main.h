// The main function of troupe-actor.
#pragma once

#include <functional>

#include "client/client.h"

namespace troupe::actor {

// Called once the process has joined its node, before any module is loaded. The SDK gives user code
// a session over the same client.
void set_client_hook(std::function<void(client::Client&)> hook);

// Joins the node over descriptor 3, hosts what the worker assigns, ends with it.
int actor_main(int argc, char** argv);

}  // namespace troupe::actor
