// The head is killed. Promises are kept, actors and calls go on, and the next head gives promises.
#include <fmt/format.h>

#include <future>

#include "drill/work.h"

namespace troupe::drill {

using namespace std::chrono_literals;

namespace {

// From `start` until the keeper, who watches the head, says that it has died.
double noticed_by_keeper(const Cluster& cluster, pid_t head, Clock::time_point start) {
  const std::string mark = fmt::format("daemon_died daemon=head pid={} ", head);
  comes_true([&] { return cluster.log_of("keeper").find(mark) != std::string::npos; }, patience);
  return seconds_since(start);
}

}  // namespace

Status head_kill(const Plan& plan, Report& report) {
  Cluster cluster{plan.state};
  TROUPE_CHECK(cluster.up({"--workers", "2"}));
  {
    TROUPE_TRY(const Session session, join(cluster));
    TROUPE_TRY(auto tally, create_tally(session, {}));
    Caller caller{std::move(tally)};
    Promises promises;
    Asker asker{session, promises};
    for (int round = 0; round < plan.rounds; ++round) {
      pause(1500ms);  // Work; and a head that lived for a second is started again at once.
      const uint64_t calls_before = caller.acknowledged();
      TROUPE_TRY(const pid_t head, cluster.pid_of("head"));
      TROUPE_TRY(const auto start, cluster.kill("head"));
      auto detected =
          std::async(std::launch::async, [&] { return noticed_by_keeper(cluster, head, start); });
      TROUPE_CHECK(promises.make(session));
      const double recover = seconds_since(start);
      report.measured(detected.get(), recover);
      if (caller.acknowledged() == calls_before) {
        report.complain("no call was answered while the head was away");
      }
    }
    pause(500ms);
    asker.stop();
    caller.stop();
    promises.check(session, report);
    caller.check(report);
  }
  return cluster.down();
}

}  // namespace troupe::drill
