// The entry of troupe-actor: the host, with a session for the user code that it loads.
#include "actor/main.h"

#include "session_impl.h"

extern "C" __attribute__((visibility("default"))) int troupe_actor_main(int argc, char** argv) {
  troupe::actor::set_client_hook([](troupe::client::Client& client) {
    troupe::detail::set_process_session(std::make_shared<troupe::detail::SessionImpl>(client));
  });
  return troupe::actor::actor_main(argc, argv);
}
