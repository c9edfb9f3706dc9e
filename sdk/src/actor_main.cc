// The entry of troupe-actor: the host, with a session for the user code that it loads.
#include <cstdlib>
#include <string>

#include "actor/fork_server.h"
#include "actor/main.h"

#include "session_impl.h"
#include "troupe/module.h"

extern "C" __attribute__((visibility("default"))) int troupe_actor_main(int argc, char** argv) {
  troupe::actor::serve_forks(argc, argv);
  const char* given = std::getenv("TROUPE_NAMESPACE");
  const std::string name_space = given != nullptr ? given : "";
  troupe::actor::set_client_hook([name_space](troupe::client::Client& client) {
    auto session = std::make_shared<troupe::detail::SessionImpl>(client);
    session->set_name_space(name_space);
    troupe::detail::set_process_session(std::move(session));
  });
  const char* file = std::getenv("TROUPE_MODULE_FILE");
  const char* name = std::getenv("TROUPE_MODULE");
  if (file != nullptr && name != nullptr) troupe::detail::set_module_alias(file, name);
  return troupe::actor::actor_main(argc, argv);
}
