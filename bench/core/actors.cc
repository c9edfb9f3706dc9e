// Calls of actors: one caller or several, one actor or several; and how fast actors are made.
#include <spawn.h>
#include <sys/wait.h>

#include "rows.h"

extern char** environ;

namespace bench {

class Server {
 public:
  std::string small_value() { return "ok"; }
  std::string small_value_arg(int64_t) { return "ok"; }
};
TROUPE_ACTOR(Server(), small_value, small_value_arg);

using Servers = std::vector<troupe::ActorRef<Server>>;

namespace {

// Makes the calls make(0), make(1)... and waits for all.
template <class Make>
void call_many(size_t count, const Make& make) {
  std::vector<troupe::ObjectRef<std::string>> refs;
  refs.reserve(count);
  for (size_t i = 0; i < count; ++i) refs.push_back(make(i));
  for (const auto& ref : refs) (void)ref.get(patience).value();
}

void call_in_turn(const Servers& servers, size_t count) {
  call_many(count,
            [&](size_t i) { return servers[i % servers.size()].call<&Server::small_value>(); });
}

}  // namespace

// A client of its own process.
class Caller {
 public:
  explicit Caller(Servers servers)
      : session_(troupe::connect().value()), servers_(std::move(servers)) {}
  // `count` calls to each.
  std::string call(uint64_t count) {
    call_many(count * servers_.size(),
              [&](size_t i) { return servers_[i / count].call<&Server::small_value>(); });
    return "ok";
  }
  // The same with one put integer as the argument of all.
  std::string call_with_ref(uint64_t count) {
    const auto argument = session_.put(int64_t{0}).value();
    call_many(count * servers_.size(), [&](size_t i) {
      return servers_[i / count].call<&Server::small_value_arg>(argument);
    });
    return "ok";
  }

 private:
  troupe::Session session_;
  Servers servers_;
};
TROUPE_ACTOR(Caller(Servers), call, call_with_ref);

std::string call_servers(const Servers& servers, uint64_t count) {
  call_in_turn(servers, count);
  return "ok";
}
TROUPE_TASK(call_servers);

namespace {

void add_servers(const troupe::Session& session, Actors<Server>& servers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    servers.refs.push_back(session.create<Server>({}).value());
  }
  servers.wait_alive();
}

void one_to_one(Harness& harness, const troupe::Session& session) {
  harness.row("1_1_actor_calls_sync", [&] {
    Actors<Server> servers;
    add_servers(session, servers, 1);
    const auto& server = servers.refs[0];
    harness.measure({.name = "1_1_actor_calls_sync", .is_one_call = true},
                    [&] { (void)server.call<&Server::small_value>().get(patience).value(); });
  });
  harness.row("1_1_actor_calls_async", [&] {
    Actors<Server> servers;
    add_servers(session, servers, 1);
    harness.measure({.name = "1_1_actor_calls_async", .multiplier = 1000},
                    [&] { call_in_turn(servers.refs, 1000); });
  });
}

// Through a limited handle, and without, in turn: a busy machine is busy for both.
void one_to_one_limited(Harness& harness, const troupe::Session& session) {
  harness.row("1_1_actor_calls_limited", [&] {
    constexpr size_t count = 5000;
    Actors<Server> servers;
    add_servers(session, servers, 1);
    const auto& server = servers.refs[0];
    const auto limited = server.limited(1000);
    const auto unlimited_call = [&](size_t) { return server.call<&Server::small_value>(); };
    const auto limited_call = [&](size_t) { return limited.call<&Server::small_value>(); };
    double unlimited_seconds = 0;
    double limited_seconds = 0;
    double rounds = 0;
    for (int warm_up = 0; warm_up < 10; ++warm_up) call_many(count, limited_call);
    for (; limited_seconds < harness.options().window_seconds * 4; ++rounds) {
      unlimited_seconds += seconds_of([&] { call_many(count, unlimited_call); });
      limited_seconds += seconds_of([&] { call_many(count, limited_call); });
    }
    harness.print("1_1_actor_calls_limited", count * rounds / limited_seconds, "calls/s",
                  {{"over_unlimited", unlimited_seconds / limited_seconds}});
  });
}

void one_to_n(Harness& harness, const troupe::Session& session) {
  constexpr uint64_t count = 5000;
  const int64_t n = half_the_cores();
  Actors<Server> servers;
  add_servers(session, servers, n);
  Actors<Caller> callers;
  callers.refs.push_back(session.create<Caller>({}, servers.refs).value());
  callers.wait_alive();
  harness.measure({.name = "1_n_actor_calls_async",
                   .multiplier = static_cast<double>(count) * static_cast<double>(n)},
                  [&] { (void)callers.refs[0].call<&Caller::call>(count).get(patience).value(); });
}

void n_to_n(Harness& harness, const troupe::Session& session) {
  constexpr uint64_t count = 5000;
  constexpr int64_t task_count = 4;
  Actors<Server> servers;
  add_servers(session, servers, half_the_cores());
  harness.measure({.name = "n_n_actor_calls_async", .multiplier = task_count * count}, [&] {
    std::vector<troupe::ObjectRef<std::string>> refs;
    for (int64_t i = 0; i < task_count; ++i) {
      refs.push_back(session.submit(call_servers, servers.refs, count));
    }
    get_all(session, refs);
  });
}

void n_to_n_with_ref(Harness& harness, const troupe::Session& session) {
  constexpr uint64_t count = 1000;
  const int64_t n = half_the_cores();
  Actors<Server> servers;
  add_servers(session, servers, n);
  Actors<Caller> callers;
  for (const auto& server : servers.refs) {
    callers.refs.push_back(session.create<Caller>({}, Servers{server}).value());
  }
  callers.wait_alive();
  harness.measure({.name = "n_n_actor_calls_with_arg_async",
                   .multiplier = static_cast<double>(count) * static_cast<double>(n)},
                  [&] {
                    std::vector<troupe::ObjectRef<std::string>> refs;
                    for (const auto& caller : callers.refs) {
                      refs.push_back(caller.call<&Caller::call_with_ref>(count));
                    }
                    get_all(session, refs);
                  });
}

// What the machine can do: start a program that does nothing, and wait for its end.
void start_process() {
  char path[] = "/bin/true";
  char* arguments[] = {path, nullptr};
  pid_t pid = 0;
  const bool started = ::posix_spawn(&pid, path, nullptr, nullptr, arguments, environ) == 0;
  if (!started || ::waitpid(pid, nullptr, 0) != pid) throw std::runtime_error("no process starts");
}

void fork_process() {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  if (pid < 0 || ::waitpid(pid, nullptr, 0) != pid) throw std::runtime_error("no process starts");
}

void machine_row(Harness& harness, const std::string& name, const std::function<void()>& start) {
  harness.row(name, [&] {
    const Measured measured = harness.windows({.is_one_call = true}, start);
    harness.print(
        name, measured.rate, "processes/s",
        {{"spread", measured.spread}, {"p50_us", measured.p50_us}, {"p99_us", measured.p99_us}});
  });
}

void created(Harness& harness, const troupe::Session& session) {
  constexpr int64_t batch = 16;
  Actors<Server> servers;
  harness.measure(
      {.name = "actors_created_own_process", .unit = "actors/s", .multiplier = batch},
      [&] { add_servers(session, servers, batch); },
      [&] {
        for (const auto& server : servers.refs) server.kill().value();
        servers.refs.clear();
      });
}

troupe::ActorOptions light_options() {
  return {.process = troupe::ActorProcess::shared};
}

void light_created(Harness& harness, const troupe::Session& session) {
  constexpr size_t batch = 10'000;
  // Keeps the process, which a program of light actors has before it makes the next ones.
  Actors<Server> first;
  first.refs.push_back(session.create<Server>(light_options()).value());
  Servers servers;
  harness.measure(
      {.name = "actors_created_shared_process", .unit = "actors/s", .multiplier = batch},
      [&] {
        servers = session.create_many<Server>(light_options(), batch).value();
        session.wait_alive(servers, patience).value();
      },
      [&] {
        session.kill(servers).value();
        servers.clear();
      });
}

void idle_light(Harness& harness, const troupe::Session& session) {
  constexpr size_t count = 10'000;
  Actors<Server> servers;
  // A process that no other row has used.
  auto options = light_options();
  options.environment = {{"ROW", "idle"}};
  servers.refs.push_back(session.create<Server>(options).value());
  servers.wait_alive();
  const auto pid = static_cast<pid_t>(servers.refs[0].status().value().pid);
  const uint64_t before = resident_bytes(pid);
  auto more = session.create_many<Server>(options, count).value();
  session.wait_alive(more, patience).value();
  const uint64_t created = resident_bytes(pid);
  servers.refs.insert(servers.refs.end(), more.begin(), more.end());
  // Each has answered a call.
  call_in_turn(servers.refs, count + 1);
  harness.print("idle_light_actor_bytes", static_cast<double>(resident_bytes(pid) - before) / count,
                "bytes", {{"before_a_call", static_cast<double>(created - before) / count}});
  session.kill(servers.refs).value();
  servers.refs.clear();
}

}  // namespace

void actor_rows(Harness& harness, const troupe::Session& session) {
  one_to_one(harness, session);
  one_to_one_limited(harness, session);
  harness.row("1_n_actor_calls_async", [&] { one_to_n(harness, session); });
  harness.row("n_n_actor_calls_async", [&] { n_to_n(harness, session); });
  harness.row("n_n_actor_calls_with_arg_async", [&] { n_to_n_with_ref(harness, session); });
  harness.row("actors_created_own_process", [&] { created(harness, session); });
  harness.row("actors_created_shared_process", [&] { light_created(harness, session); });
  harness.row("idle_light_actor_bytes", [&] { idle_light(harness, session); });
  machine_row(harness, "machine_processes_started", start_process);
  machine_row(harness, "machine_forks", fork_process);
}

}  // namespace bench
