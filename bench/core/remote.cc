// Calls between two nodes of this machine, over TLS.
#include "rows.h"

namespace bench {

class Remote {
 public:
  std::string small_value() { return "ok"; }
};
TROUPE_ACTOR(Remote(), small_value);

void remote_rows(Harness& harness, const troupe::Session& session) {
  const auto create = [&](Actors<Remote>& actors) {
    troupe::ActorOptions options;
    options.placement.labels = {troupe::label::equals("bench", "far")};
    actors.refs.push_back(session.create<Remote>(options).value());
    actors.wait_alive();
  };
  harness.row("1_1_remote_actor_calls_sync", [&] {
    Actors<Remote> actors;
    create(actors);
    harness.measure({.name = "1_1_remote_actor_calls_sync", .is_one_call = true}, [&] {
      (void)actors.refs[0].call<&Remote::small_value>().get(patience).value();
    });
  });
  harness.row("1_1_remote_actor_calls_async", [&] {
    constexpr size_t count = 1000;
    Actors<Remote> actors;
    create(actors);
    harness.measure({.name = "1_1_remote_actor_calls_async", .multiplier = count}, [&] {
      std::vector<troupe::ObjectRef<std::string>> refs;
      refs.reserve(count);
      for (size_t i = 0; i < count; ++i) {
        refs.push_back(actors.refs[0].call<&Remote::small_value>());
      }
      get_all(session, refs);
    });
  });
  harness.row("remote_tasks_sync", [&] {
    troupe::TaskOptions there;
    there.placement.labels = {troupe::label::equals("bench", "far")};
    harness.measure({.name = "remote_tasks_sync", .is_one_call = true},
                    [&] { (void)session.submit(there, small_value).get(patience).value(); });
  });
}

}  // namespace bench
