// Calls of actors that work on several at once: threads, and coroutine methods.
#include "rows.h"

namespace bench {

class ThreadedServer {
 public:
  std::string small_value() { return "ok"; }
};
TROUPE_ACTOR(ThreadedServer(), small_value);

class AsyncServer {
 public:
  troupe::Coroutine<std::string> small_value() { co_return "ok"; }
  troupe::Coroutine<std::string> small_value_with_arg(int64_t) { co_return "ok"; }
};
TROUPE_ACTOR(AsyncServer(), small_value, small_value_with_arg);

using AsyncServers = std::vector<troupe::ActorRef<AsyncServer>>;

namespace {

template <auto method, class Server, class... Arguments>
void call_many(const troupe::Session& session, const std::vector<troupe::ActorRef<Server>>& servers,
               int64_t count, const Arguments&... arguments) {
  std::vector<troupe::ObjectRef<std::string>> refs;
  refs.reserve(static_cast<size_t>(count));
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    refs.push_back(servers[i % servers.size()].template call<method>(arguments...));
  }
  get_all(session, refs);
}

}  // namespace

// A client of its own process.
class AsyncCaller {
 public:
  explicit AsyncCaller(AsyncServers servers)
      : session_(troupe::connect().value()), servers_(std::move(servers)) {}
  // `count` calls to each.
  std::string call(int64_t count) {
    const auto all = count * static_cast<int64_t>(servers_.size());
    call_many<&AsyncServer::small_value>(session_, servers_, all);
    return "ok";
  }

 private:
  troupe::Session session_;
  AsyncServers servers_;
};
TROUPE_ACTOR(AsyncCaller(AsyncServers), call);

std::string call_async_servers(const AsyncServers& servers, int64_t count) {
  call_many<&AsyncServer::small_value>(troupe::connect().value(), servers, count);
  return "ok";
}
TROUPE_TASK(call_async_servers);

namespace {

template <class Server>
void add(const troupe::Session& session, Actors<Server>& servers, int64_t count,
         const troupe::ActorOptions& options = {}) {
  for (int64_t i = 0; i < count; ++i) {
    servers.refs.push_back(session.create<Server>(options).value());
  }
  servers.wait_alive();
}

void threads(Harness& harness, const troupe::Session& session) {
  Actors<ThreadedServer> servers;
  add(session, servers, 1, {.max_concurrency = 16});
  harness.measure({.name = "1_1_actor_calls_concurrent", .multiplier = 1000},
                  [&] { call_many<&ThreadedServer::small_value>(session, servers.refs, 1000); });
}

void one_to_one(Harness& harness, const troupe::Session& session) {
  harness.row("1_1_async_actor_calls_sync", [&] {
    Actors<AsyncServer> servers;
    add(session, servers, 1);
    const auto& server = servers.refs[0];
    harness.measure({.name = "1_1_async_actor_calls_sync", .is_one_call = true},
                    [&] { (void)server.call<&AsyncServer::small_value>().get(patience).value(); });
  });
  harness.row("1_1_async_actor_calls_async", [&] {
    Actors<AsyncServer> servers;
    add(session, servers, 1);
    harness.measure({.name = "1_1_async_actor_calls_async", .multiplier = 1000},
                    [&] { call_many<&AsyncServer::small_value>(session, servers.refs, 1000); });
  });
  harness.row("1_1_async_actor_calls_with_args_async", [&] {
    Actors<AsyncServer> servers;
    add(session, servers, 1);
    harness.measure({.name = "1_1_async_actor_calls_with_args_async", .multiplier = 1000}, [&] {
      call_many<&AsyncServer::small_value_with_arg>(session, servers.refs, 1000, int64_t{1});
    });
  });
}

void one_to_n(Harness& harness, const troupe::Session& session) {
  constexpr int64_t count = 5000;
  const int64_t n = half_the_cores();
  Actors<AsyncServer> servers;
  add(session, servers, n);
  Actors<AsyncCaller> callers;
  callers.refs.push_back(session.create<AsyncCaller>({}, servers.refs).value());
  callers.wait_alive();
  harness.measure(
      {.name = "1_n_async_actor_calls_async", .multiplier = static_cast<double>(count * n)},
      [&] { (void)callers.refs[0].call<&AsyncCaller::call>(count).get(patience).value(); });
}

void n_to_n(Harness& harness, const troupe::Session& session) {
  constexpr int64_t count = 5000;
  constexpr int64_t task_count = 4;
  Actors<AsyncServer> servers;
  add(session, servers, half_the_cores());
  harness.measure({.name = "n_n_async_actor_calls_async", .multiplier = task_count * count}, [&] {
    std::vector<troupe::ObjectRef<std::string>> refs;
    for (int64_t i = 0; i < task_count; ++i) {
      refs.push_back(session.submit(call_async_servers, servers.refs, count));
    }
    get_all(session, refs);
  });
}

}  // namespace

void concurrent_actor_rows(Harness& harness, const troupe::Session& session) {
  harness.row("1_1_actor_calls_concurrent", [&] { threads(harness, session); });
  one_to_one(harness, session);
  harness.row("1_n_async_actor_calls_async", [&] { one_to_n(harness, session); });
  harness.row("n_n_async_actor_calls_async", [&] { n_to_n(harness, session); });
}

}  // namespace bench
