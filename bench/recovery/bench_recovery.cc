// How long a cluster takes to notice a death and to be whole again, and whether it loses a promise
// meanwhile. `bench_recovery [one-head|three-heads|overload]`; three_hosts.py runs its part
// `hosts`, lossy_hosts.py its part `far`.
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <troupe/troupe.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "cluster.h"

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto patience = 60s;
constexpr int head_kills = 50;
constexpr int head_restarts = 11;
constexpr int worker_kills = 50;
constexpr int silences = 5;
constexpr int failover_kills = 100;
constexpr int cuts = 15;
constexpr size_t light_actors = 10'000;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
  std::fflush(stdout);
}

double quantile(std::vector<double> values, double part) {
  std::ranges::sort(values);
  const auto last = static_cast<double>(values.size() - 1);
  return values[static_cast<size_t>(part * last + 0.5)];
}

}  // namespace

class Member {
 public:
  Member() {}
  int64_t one() { return 1; }
  void wait_10_ms() { ::poll(nullptr, 0, 10); }
  void wait_1_s() { ::poll(nullptr, 0, 1000); }
};
TROUPE_ACTOR(Member(), one, wait_10_ms, wait_1_s);

void work_10_ms() {
  ::poll(nullptr, 0, 10);
}
TROUPE_TASK(work_10_ms);

namespace {

class Daemons {
 public:
  explicit Daemons(const std::string& state)
      : record_(state + "/cluster.json"), logs_(state + "/logs/") {}

  pid_t pid_of(std::string_view daemon) const {
    std::ifstream in{record_};
    const std::string text{std::istreambuf_iterator<char>{in}, {}};
    const boost::json::value record = boost::json::parse(text);
    for (const auto& item : record.at("daemons").as_array()) {
      if (item.at("name").as_string() == daemon) return item.at("pid").to_number<pid_t>();
    }
    throw std::runtime_error("the cluster has no " + std::string(daemon));
  }
  void signal(std::string_view daemon, int number) const { ::kill(pid_of(daemon), number); }
  // Of several heads the one that led last, by what they have logged.
  std::string leader() const {
    std::string found;
    uint64_t highest = 0;
    for (const char* name : {"head", "head-1", "head-2"}) {
      std::ifstream in{logs_ + name + ".log"};
      for (std::string line; std::getline(in, line);) {
        constexpr std::string_view mark = "head_leads term=";
        const size_t at = line.find(mark);
        if (at == std::string::npos) continue;
        const uint64_t term = std::stoull(line.substr(at + mark.size()));
        if (term > highest) found = name;
        highest = std::max(highest, term);
      }
    }
    return found;
  }

 private:
  std::string record_;
  std::string logs_;
};

troupe::PlacementGroup promise(const troupe::Session& session) {
  return session.create_placement_group({.bundles = {{.cpu = 0.001}}}).value();
}

// From the death of the head to the next promise.
std::vector<double> restarts(const troupe::Session& session, const Daemons& daemons, int rounds) {
  std::vector<double> took;
  for (int round = 0; round < rounds; ++round) {
    daemons.signal("head", SIGKILL);
    const auto start = Clock::now();
    const auto group = promise(session);
    took.push_back(seconds_since(start));
    group.remove().value();
    ::poll(nullptr, 0, 1500);  // Workers come back, and the keeper takes it for a new death.
  }
  return took;
}

void head_is_killed(const troupe::Session& session, const Daemons& daemons) {
  std::atomic<bool> over = false;
  std::vector<troupe::PlacementGroup> kept;
  uint64_t refused = 0;
  std::thread client{[&] {
    while (!over) {
      auto group = session.create_placement_group({.bundles = {{.cpu = 0.001}}});
      if (!group) {
        ++refused;
      } else if (kept.size() < 500) {
        kept.push_back(std::move(*group));
      } else {
        (void)group->remove();
      }
    }
  }};
  std::minstd_rand random{11};
  std::uniform_int_distribution<int> wait_ms{1, 300};
  for (int kill = 0; kill < head_kills; ++kill) {
    const pid_t before = daemons.pid_of("head");
    ::kill(before, SIGKILL);
    while (daemons.pid_of("head") == before) ::poll(nullptr, 0, 5);
    ::poll(nullptr, 0, wait_ms(random));
  }
  over = true;
  client.join();
  uint64_t lost = 0;
  for (const auto& group : kept) {
    if (!group.status()) ++lost;
  }
  for (const auto& group : kept) (void)group.remove();
  row("head_kills", head_kills, "kills");
  row("promises_checked", static_cast<double>(kept.size()), "promises");
  row("promises_lost", static_cast<double>(lost), "promises");
  row("promises_refused", static_cast<double>(refused), "promises");
}

void heads(const troupe::Session& session, const Daemons& daemons) {
  row("head_restart_ms", quantile(restarts(session, daemons, head_restarts), 0.5) * 1e3, "ms");
  {
    const troupe::ActorOptions light{.max_restarts = -1, .process = troupe::ActorProcess::shared};
    const auto actors = session.create_many<Member>(light, light_actors).value();
    session.wait_alive(actors, patience).value();
    row("head_restart_10k_actors_ms",
        quantile(restarts(session, daemons, head_restarts), 0.5) * 1e3, "ms");
    session.kill(actors).value();
  }
  head_is_killed(session, daemons);
}

// From the harm to the head that leads to the next promise, which another one gives.
template <class Harm, class Mend>
std::vector<double> failovers(const troupe::Session& session, const Daemons& daemons, int rounds,
                              Harm harm, Mend mend) {
  std::vector<double> took;
  for (int round = 0; round < rounds; ++round) {
    const std::string leader = daemons.leader();
    harm(leader);
    const auto start = Clock::now();
    const auto group = promise(session);
    took.push_back(seconds_since(start));
    mend(leader);
    group.remove().value();
    ::poll(nullptr, 0, 1500);  // It is back, and in sync.
  }
  return took;
}

void failover_rows(std::string_view name, const std::vector<double>& took) {
  row(fmt::format("{}_p50_s", name), quantile(took, 0.5), "s");
  row(fmt::format("{}_p99_s", name), quantile(took, 0.99), "s");
}

auto sending(const Daemons& daemons, int signal) {
  return [&daemons, signal](const std::string& head) { daemons.signal(head, signal); };
}

constexpr auto nothing = [](const std::string&) {};

void several_heads() {
  const auto cluster = bench::Cluster::start(2, 3);
  if (!cluster) throw std::runtime_error("no cluster of three heads");
  const auto session = troupe::connect().value();
  const Daemons daemons{cluster->state()};
  row("failovers", failover_kills, "kills");
  failover_rows("failover",
                failovers(session, daemons, failover_kills, sending(daemons, SIGKILL), nothing));
  failover_rows(
      "failover_from_silence",
      failovers(session, daemons, silences, sending(daemons, SIGSTOP), sending(daemons, SIGCONT)));
}

// Calls of a second, one always under way: how many were dropped.
class RunningCalls {
 public:
  explicit RunningCalls(troupe::ActorRef<Member> actor)
      : actor_(std::move(actor)), thread_([this](const std::stop_token& stop) {
          while (!stop.stop_requested()) {
            ++calls_;
            if (!actor_.call<&Member::wait_1_s>().get(patience)) ++dropped_;
          }
        }) {}
  void print() {
    thread_.request_stop();
    thread_.join();
    row("hosts_running_calls", calls_, "calls");
    row("hosts_running_calls_dropped", dropped_, "calls");
  }

 private:
  const troupe::ActorRef<Member> actor_;
  int calls_ = 0;
  int dropped_ = 0;
  std::jthread thread_;
};

// Of a cluster that runs, each head on a host of its own; `links` are HEAD=NAMESPACE/DEVICE.
void several_hosts(const std::string& state, const std::vector<std::string>& links) {
  ::setenv("TROUPE_STATE", state.c_str(), 1);
  const auto session = troupe::connect().value();
  const Daemons daemons{state};
  const auto actor =
      session.create<Member>({.placement = {.labels = {troupe::label::equals("bench", "far")}}})
          .value();
  actor.wait_alive(patience).value();
  RunningCalls calls{actor};
  row("hosts_failovers", failover_kills, "kills");
  failover_rows("hosts_failover",
                failovers(session, daemons, failover_kills, sending(daemons, SIGKILL), nothing));
  const auto set_link = [&](const std::string& head, const char* to) {
    for (const std::string& link : links) {
      const size_t equals = link.find('=');
      const size_t slash = link.find('/');
      if (link.substr(0, equals) != head) continue;
      const std::string command =
          fmt::format("ip -n {} link set {} {}", link.substr(equals + 1, slash - equals - 1),
                      link.substr(slash + 1), to);
      if (std::system(command.c_str()) != 0) throw std::runtime_error(command + " failed");
    }
  };
  failover_rows(
      "hosts_failover_from_cut",
      failovers(
          session, daemons, cuts, [&](const std::string& head) { set_link(head, "down"); },
          [&](const std::string& head) { set_link(head, "up"); }));
  calls.print();
}

// Until the head says that the actor is no longer what it was; then until it answers again.
struct Recovery {
  std::vector<double> noticed;
  std::vector<double> whole;
};

template <class Harm, class Mend>
Recovery recover(const troupe::Session& session, int rounds, Harm harm, Mend mend) {
  Recovery recovery;
  for (int round = 0; round < rounds; ++round) {
    const auto far = session.create<Member>(
        {.max_restarts = -1,
         .placement = {.labels = {troupe::label::equals("bench", "far").soft()}}});
    const auto actor = far.value();
    actor.wait_alive(patience).value();
    const auto before = actor.status().value();
    harm();
    const auto start = Clock::now();
    for (;;) {
      const auto now = actor.status().value();
      if (now.incarnation != before.incarnation || now.state != before.state) break;
      ::poll(nullptr, 0, 1);
    }
    recovery.noticed.push_back(seconds_since(start));
    while (!actor.call<&Member::one>().get(patience)) {
    }
    recovery.whole.push_back(seconds_since(start));
    mend();
    actor.kill().value();
    ::poll(nullptr, 0, 1000);  // The worker comes back.
  }
  return recovery;
}

void workers(const troupe::Session& session, const Daemons& daemons) {
  const auto kill = [&] { daemons.signal("worker-1", SIGKILL); };
  const Recovery killed = recover(session, worker_kills, kill, [] {});
  row("worker_kill_detect_p50_s", quantile(killed.noticed, 0.5), "s");
  row("worker_kill_detect_p99_s", quantile(killed.noticed, 0.99), "s");
  row("actor_recovery_p50_s", quantile(killed.whole, 0.5), "s");
  row("actor_recovery_p99_s", quantile(killed.whole, 0.99), "s");
  const auto stop = [&] { daemons.signal("worker-1", SIGSTOP); };
  const auto go_on = [&] { daemons.signal("worker-1", SIGCONT); };
  const Recovery silent = recover(session, silences, stop, go_on);
  row("silent_node_detect_p99_s", quantile(silent.noticed, 0.99), "s");
  row("actor_recovery_from_silence_p99_s", quantile(silent.whole, 0.99), "s");
}

// Of calls or tasks of 10 ms that `begin` begins with a time of a second each, evenly for some
// seconds: how many a second were done in it.
template <class Begin>
double done_in_time(Begin begin, double per_second) {
  constexpr double seconds = 10;
  std::vector<decltype(begin())> refs;
  const auto start = Clock::now();
  while (seconds_since(start) < seconds) {
    const auto due = static_cast<size_t>(seconds_since(start) * per_second);
    while (refs.size() < due) refs.push_back(begin());
    ::poll(nullptr, 0, 1);
  }
  double done = 0;
  for (const auto& ref : refs) done += ref.get(patience) ? 1 : 0;
  return done / seconds;
}

// What is done at ten times the load, against what is done at the load that it can take.
template <class Begin>
double goodput(std::string_view what, Begin begin, double capacity) {
  const double peak = done_in_time(begin, capacity);
  const double rest = done_in_time(begin, capacity * 10);
  row(fmt::format("{}_done_at_capacity", what), peak, "per second");
  row(fmt::format("{}_done_at_10x", what), rest, "per second");
  return rest / peak;
}

void overload(const troupe::Session& session) {
  constexpr size_t probe = 500;
  std::vector<troupe::ObjectRef<void>> refs;
  const auto start = Clock::now();
  for (size_t i = 0; i < probe; ++i) refs.push_back(session.submit(work_10_ms));
  for (const auto& ref : refs) ref.get(patience).value();
  const double tasks = static_cast<double>(probe) / seconds_since(start);
  const double of_tasks = goodput(
      "tasks", [&] { return session.submit({.timeout = 1s}, work_10_ms); }, tasks);
  const auto member = session.create<Member>({}).value();
  const double of_calls = goodput(
      "calls", [&] { return member.call<&Member::wait_10_ms>({.timeout = 1s}); }, 95);
  row("overload_goodput", std::min(of_tasks, of_calls), "of the peak");
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string_view part = argc > 1 ? argv[1] : "";
  if (part == "far" && argc == 3) {
    ::setenv("TROUPE_STATE", argv[2], 1);
    const auto session = troupe::connect().value();
    session.submit({.placement = {.labels = {troupe::label::equals("bench", "far")}}}, work_10_ms)
        .get(patience)
        .value();
    ::poll(nullptr, 0, 1000);
    return 0;
  }
  if (part == "hosts" && argc > 2) {
    several_hosts(argv[2], {argv + 3, argv + argc});
    return 0;
  }
  if (part.empty() || part == "one-head") {
    const auto cluster = bench::Cluster::start(2);
    if (!cluster) return 1;
    const auto session = troupe::connect().value();
    const Daemons daemons{cluster->state()};
    heads(session, daemons);
    workers(session, daemons);
  }
  if (part.empty() || part == "three-heads") several_heads();
  if (part.empty() || part == "overload") {
    const auto cluster = bench::Cluster::start(2);
    if (!cluster) return 1;
    overload(troupe::connect().value());
  }
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
