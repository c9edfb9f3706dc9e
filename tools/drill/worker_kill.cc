// A worker is killed. Its actors restart elsewhere; those of other workers go on.
#include <fmt/format.h>

#include "drill/work.h"

namespace troupe::drill {

using namespace std::chrono_literals;

namespace {

constexpr size_t own_processes = 3;
constexpr size_t light_actors = 30;

Result<std::vector<TallyRef>> create_there(const Session& session) {
  ActorOptions options;
  options.max_restarts = -1;
  options.placement.labels = {label::equals("drill", "far").soft()};
  TROUPE_TRY(auto actors, create_tallies(session, options, own_processes));
  options.process = ActorProcess::shared;
  TROUPE_TRY(const auto light, create_tallies(session, options, light_actors));
  actors.insert(actors.end(), light.begin(), light.end());
  return actors;
}

Status run_round(const Cluster& cluster, const Session& session, Report& report) {
  TROUPE_TRY(const auto actors, create_there(session));
  report.acknowledged += actors.size();
  TROUPE_TRY(const auto start, cluster.kill("worker-1"));
  const bool noticed = comes_true(
      [&] {
        const auto now = actors.front().status();
        return now && (now->incarnation != 1 || now->state != "alive");
      },
      patience);
  const double detect = seconds_since(start);
  if (!noticed) report.complain("the head never said that the actors of the worker have died");
  for (const TallyRef& actor : actors) {
    const bool runs = comes_true([&] { return incarnation_of(actor, 1s).has_value(); }, patience);
    const auto now = actor.status();
    if (runs && now && now->state == "alive" && now->incarnation == 2) continue;
    if (!runs) ++report.lost;
    report.complain(now ? fmt::format("an actor is {} in incarnation {}: {}", now->state,
                                      now->incarnation, now->reason)
                        : "an actor is unknown: " + now.error().to_string());
  }
  report.measured(detect, seconds_since(start));
  TROUPE_CHECK(session.kill(actors));
  if (!comes_true([&] { return cluster.has_alive(2); }, patience)) {
    report.complain("the worker was not started again");
  }
  return ok();
}

}  // namespace

Status worker_kill(const Plan& plan, Report& report) {
  Cluster cluster{plan.state};
  TROUPE_CHECK(cluster.up(
      {"--workers", "2", "--label", "worker-0:drill=near", "--label", "worker-1:drill=far"}));
  {
    TROUPE_TRY(const Session session, join(cluster));
    ActorOptions near;
    near.placement.labels = {label::equals("drill", "near")};
    TROUPE_TRY(auto tally, create_tally(session, near));
    Caller caller{std::move(tally)};
    for (int round = 0; round < plan.rounds; ++round) {
      pause(1100ms);  // A worker that lived for a second is started again at once.
      TROUPE_CHECK(run_round(cluster, session, report));
    }
    caller.stop();
    caller.check(report);
  }
  return cluster.down();
}

}  // namespace troupe::drill
