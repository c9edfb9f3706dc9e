// The entry of troupe-actor: the host, with a session for the user code that it loads.
#include <cstdlib>

#include "actor/fork_server.h"
#include "actor/main.h"

#include "session_impl.h"
#include "troupe/module.h"

extern "C" __attribute__((visibility("default"))) int troupe_actor_main(int argc, char** argv) {
  troupe::actor::serve_forks(argc, argv);
  troupe::actor::set_client_hook([](troupe::client::Client& client) {
    troupe::detail::set_process_session(std::make_shared<troupe::detail::SessionImpl>(client));
  });
  const char* file = std::getenv("TROUPE_MODULE_FILE");
  const char* name = std::getenv("TROUPE_MODULE");
  if (file != nullptr && name != nullptr) troupe::detail::set_module_alias(file, name);
  return troupe::actor::actor_main(argc, argv);
}
