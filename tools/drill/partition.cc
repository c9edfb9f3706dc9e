// A worker is cut off from the head, without a word: nothing passes in either direction, over any
// connection. Its actors restart elsewhere; when the wire is mended, none runs twice.
#include <fmt/format.h>
#include <signal.h>

#include <boost/json.hpp>

#include "drill/proxy.h"
#include "drill/work.h"

namespace troupe::drill {

namespace json = boost::json;
using namespace std::chrono_literals;

namespace {

constexpr size_t own_processes = 2;
constexpr size_t light_actors = 20;
// Who is called dead sooner after the cut was not given the window of 5 s since it was heard of
// last, at most a heartbeat of half a second before the cut.
constexpr double silence_least_s = 4.25;

// The two wires between the head and worker-1.
struct Wires {
  std::unique_ptr<Proxy> to_head;
  std::unique_ptr<Proxy> to_worker;

  void cut() const {
    to_head->cut();
    to_worker->cut();
  }
  void mend() const {
    to_head->mend();
    to_worker->mend();
  }
};

// Has the keeper start worker-1 again behind the proxies: it finds the head through one, and says
// that it is reached through the other.
Result<Wires> put_between(const Cluster& cluster) {
  Wires wires;
  TROUPE_TRY(wires.to_head, Proxy::start());
  TROUPE_TRY(wires.to_worker, Proxy::start());
  TROUPE_TRY(json::value record, cluster.read_record());
  const std::string head{record.at("heads").at(0).as_string()};
  wires.to_head->lead_to(static_cast<uint16_t>(std::stoi(head.substr(head.rfind(':') + 1))));
  TROUPE_TRY(const uint16_t port, free_port());
  wires.to_worker->lead_to(port);
  const std::string head_by_wire = fmt::format("127.0.0.1:{}", wires.to_head->port());
  for (json::value& daemon : record.at("daemons").as_array()) {
    if (daemon.at("name").as_string() != "worker-1") continue;
    json::array& arguments = daemon.at("arguments").as_array();
    for (size_t i = 0; i + 1 < arguments.size(); ++i) {
      if (arguments[i] == "--head") arguments[i + 1] = head_by_wire;
    }
    for (const std::string& more :
         {std::string("--port"), std::to_string(port), std::string("--advertised-port"),
          std::to_string(wires.to_worker->port())}) {
      arguments.emplace_back(more);
    }
  }
  TROUPE_CHECK(cluster.write_record(record));
  TROUPE_TRY(const auto killed, cluster.kill("worker-1"));
  (void)killed;
  const bool is_back = comes_true(
      [&] {
        return cluster.log_of("worker-1").find("head=" + head_by_wire) != std::string::npos &&
               cluster.has_alive(2);
      },
      patience);
  if (!is_back) return error(Code::deadline_exceeded, "worker-1 did not come by the new wire");
  return wires;
}

struct Cast {
  std::vector<TallyRef> actors;
  std::vector<std::string> names;
  std::vector<pid_t> pids;  // Of those with a process of their own.
};

Result<Cast> create_there(const Session& session, int round) {
  Cast cast;
  ActorOptions options;
  options.max_restarts = -1;
  options.placement.labels = {label::equals("drill", "far").soft()};
  const auto add = [&](const std::string& name, size_t count) -> Status {
    options.name = fmt::format("{}-{}", name, round);
    TROUPE_TRY(const auto made, create_tallies(session, options, count));
    cast.actors.insert(cast.actors.end(), made.begin(), made.end());
    for (size_t i = 0; i < count; ++i) cast.names.push_back(fmt::format("{}-{}", options.name, i));
    return ok();
  };
  TROUPE_CHECK(add("own", own_processes));
  for (const TallyRef& actor : cast.actors) {
    TROUPE_TRY(const auto status, actor.status());
    cast.pids.push_back(static_cast<pid_t>(status.pid));
  }
  options.process = ActorProcess::shared;
  TROUPE_CHECK(add("light", light_actors));
  return cast;
}

// Asked by a session that knows nothing of where they were before.
void expect_all_again(const Session& session, const Cast& cast, Report& report) {
  for (const std::string& name : cast.names) {
    std::string last = "it is unknown";
    const bool runs = comes_true(
        [&] {
          const auto actor = session.find<Tally>(name);
          if (!actor) return false;
          const auto incarnation = incarnation_of(*actor, 1s);
          last = incarnation ? fmt::format("incarnation {} answers", *incarnation)
                             : incarnation.error().to_string();
          return incarnation && *incarnation == 2;
        },
        patience);
    if (runs) continue;
    ++report.lost;
    report.complain(fmt::format("actor {} does not run elsewhere: {}", name, last));
  }
}

// The wire is mended: what was started anew elsewhere ends here, and old handles find the new ones.
void expect_none_twice(const Cluster& cluster, const Cast& cast, Report& report) {
  for (const pid_t pid : cast.pids) {
    if (!comes_true([&] { return ::kill(pid, 0) != 0; }, patience)) {
      report.complain(fmt::format("process {} of an actor that runs elsewhere lives on", pid));
    }
  }
  for (const TallyRef& actor : cast.actors) {
    const auto is_new = [&] {
      const auto incarnation = incarnation_of(actor, 1s);
      return incarnation && *incarnation == 2;
    };
    if (!comes_true(is_new, patience)) report.complain("a caller does not find a new incarnation");
  }
  if (!comes_true([&] { return cluster.has_alive(2); }, patience)) {
    report.complain("the worker did not come back when the wire was mended");
  }
}

Status run_round(const Cluster& cluster, const Wires& wires, const Session& session, int round,
                 Report& report) {
  TROUPE_TRY(const Cast cast, create_there(session, round));
  report.acknowledged += cast.actors.size();
  const auto start = Clock::now();
  wires.cut();
  const bool noticed = comes_true(
      [&] {
        const auto now = cast.actors.front().status();
        return now && (now->incarnation != 1 || now->state != "alive");
      },
      patience);
  const double detect = seconds_since(start);
  if (!noticed) report.complain("the head never said that the worker is dead");
  if (detect < silence_least_s) {
    report.complain(fmt::format("called dead after {:.2f} s, within its window of 5 s", detect));
  }
  {
    TROUPE_TRY(const Session other, join(cluster));
    expect_all_again(other, cast, report);
  }
  report.measured(detect, seconds_since(start));
  wires.mend();
  expect_none_twice(cluster, cast, report);
  return session.kill(cast.actors);
}

}  // namespace

Status partition(const Plan& plan, Report& report) {
  Cluster cluster{plan.state};
  TROUPE_CHECK(cluster.up(
      {"--workers", "2", "--label", "worker-0:drill=near", "--label", "worker-1:drill=far"}));
  TROUPE_TRY(const Wires wires, put_between(cluster));
  {
    TROUPE_TRY(const Session session, join(cluster));
    ActorOptions near;
    near.placement.labels = {label::equals("drill", "near")};
    TROUPE_TRY(auto tally, create_tally(session, near));
    Caller caller{std::move(tally)};
    for (int round = 0; round < plan.rounds; ++round) {
      TROUPE_CHECK(run_round(cluster, wires, session, round, report));
    }
    caller.stop();
    caller.check(report);
  }
  return cluster.down();
}

}  // namespace troupe::drill
