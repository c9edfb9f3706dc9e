// The head and its store are lost. What a backup holds is brought back, verified, by the commands
// that an operator would use.
#include <fmt/format.h>

#include <boost/json.hpp>

#include "drill/work.h"

namespace troupe::drill {

namespace json = boost::json;
namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

constexpr size_t promises_before = 60;
constexpr size_t promises_after = 10;

// No keeper: on an empty store it would start a head that knows nothing.
Status start(Cluster& cluster) {
  return cluster.up({"--workers", "2", "--no-keeper"});
}

Status add_until(const Session& session, Promises& promises, size_t count) {
  while (promises.size() < count) TROUPE_CHECK(promises.make(session));
  return ok();
}

Status run_round(Cluster& cluster, Promises& promises, int round, Report& report) {
  const std::string backups = cluster.state().parent_path() / "backups";
  json::value taken;
  Promises late{fmt::format("late-{}", round)};
  {
    TROUPE_TRY(const Session session, join(cluster));
    TROUPE_CHECK(add_until(session, promises,
                           promises_before + static_cast<size_t>(round) * promises_after));
    TROUPE_TRY(taken, cluster.ask({"backup", backups}));
    TROUPE_CHECK(add_until(session, late, promises_after));
  }
  TROUPE_TRY(const auto lost, cluster.kill("head"));
  std::error_code failed;
  fs::remove_all(cluster.state() / "metadata", failed);
  if (failed) return error(Code::unavailable, "lose the store: " + failed.message());
  if (!comes_true([&] { return !cluster.ask({"status"}); }, patience)) {
    report.complain("'troupe status' does not say that the head is gone");
  }
  const double detect = seconds_since(lost);
  TROUPE_CHECK(cluster.down());
  TROUPE_TRY(const json::value restored, cluster.ask({"restore", backups}));
  if (restored.at("state_hash") != taken.at("state_hash")) {
    report.complain("the restored state is not the one that was backed up");
  }
  TROUPE_CHECK(start(cluster));
  TROUPE_TRY(const Session session, join(cluster));
  promises.check(session, report);
  report.measured(detect, seconds_since(lost));
  if (late.found(session) > 0) report.complain("something is there that no backup had");
  return ok();
}

}  // namespace

Status restore(const Plan& plan, Report& report) {
  Cluster cluster{plan.state};
  TROUPE_CHECK(start(cluster));
  Promises promises;
  for (int round = 0; round < plan.rounds; ++round) {
    TROUPE_CHECK(run_round(cluster, promises, round, report));
  }
  return cluster.down();
}

}  // namespace troupe::drill
