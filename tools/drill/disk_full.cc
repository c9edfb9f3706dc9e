// The head's disk is full, as far as the head can tell: its limit of a file's size (RLIMIT_FSIZE)
// is set to nothing from outside, so that each of its writes to a file would fail. Nothing of the
// real disk is used up, and no privilege is needed. Promises are refused with the cause, reads and
// calls go on, and with the limit lifted all goes on as before.
#include <fmt/format.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstring>

#include "drill/work.h"

namespace troupe::drill {

using namespace std::chrono_literals;

namespace {

constexpr size_t promises_before = 40;
constexpr int refusals = 20;

// The soft limit alone: the hard one lets it be lifted again.
Status limit_files(pid_t process, rlim_t bytes) {
  rlimit limit{};
  if (::prlimit(process, RLIMIT_FSIZE, nullptr, &limit) == 0) {
    limit.rlim_cur = std::min(bytes, limit.rlim_max);
    if (::prlimit(process, RLIMIT_FSIZE, &limit, nullptr) == 0) return ok();
  }
  return error(Code::denied,
               fmt::format("limit the head's files: prlimit: {}", std::strerror(errno)));
}

bool names_the_cause(const Status& refused) {
  return !refused && refused.error().code() == Code::exhausted &&
         refused.error().message().find("ulimit") != std::string::npos;
}

void expect_reads(const Session& session, const TallyRef& tally, Report& report) {
  if (const auto status = tally.status(); !status) {
    report.complain("the head does not say how an actor is: " + status.error().to_string());
  }
  const auto object = session.put(std::vector<int64_t>(200'000, 7));
  if (!object) {
    report.complain("an object cannot be put: " + object.error().to_string());
  } else if (const auto back = object->get(patience); !back || back->back() != 7) {
    report.complain("an object cannot be read");
  }
}

Status fill_and_make_room(const Cluster& cluster, const Session& session, const TallyRef& tally,
                          const Caller& caller, Promises& promises, Report& report) {
  TROUPE_TRY(const pid_t head, cluster.pid_of("head"));
  const auto full = Clock::now();
  TROUPE_CHECK(limit_files(head, 0));
  Status made = ok();
  comes_true([&] { return !(made = promises.make(session)); }, patience);
  const double detect = seconds_since(full);
  const uint64_t calls_before = caller.acknowledged();
  for (int i = 0; i < refusals; ++i) {
    if (!names_the_cause(made)) {
      report.complain(made ? "a promise was given without room for it"
                           : "a promise was not refused with the cause: " +
                                 made.error().to_string());
    }
    made = promises.make(session);
  }
  expect_reads(session, tally, report);
  if (!comes_true([&] { return caller.acknowledged() > calls_before; }, patience)) {
    report.complain("calls do not go on");
  }
  TROUPE_TRY(const pid_t now, cluster.pid_of("head"));
  if (now != head) report.complain("the head has ended");
  const auto room = Clock::now();
  TROUPE_CHECK(limit_files(now, RLIM_INFINITY));
  if (!comes_true([&] { return promises.make(session).has_value(); }, patience)) {
    report.complain("with room again nothing is promised");
  }
  report.measured(detect, seconds_since(room));
  return ok();
}

}  // namespace

Status disk_full(const Plan& plan, Report& report) {
  Cluster cluster{plan.state};
  TROUPE_CHECK(cluster.up({"--workers", "1"}));
  {
    TROUPE_TRY(const Session session, join(cluster));
    TROUPE_TRY(const auto tally, create_tally(session, {}));
    Caller caller{tally};
    Promises promises;
    while (promises.size() < promises_before) TROUPE_CHECK(promises.make(session));
    for (int round = 0; round < plan.rounds; ++round) {
      TROUPE_CHECK(fill_and_make_room(cluster, session, tally, caller, promises, report));
    }
    // What the disk holds, not what this head remembers.
    pause(1100ms);
    TROUPE_TRY(const auto killed, cluster.kill("head"));
    (void)killed;
    TROUPE_CHECK(promises.make(session));
    caller.stop();
    promises.check(session, report);
    caller.check(report);
  }
  return cluster.down();
}

}  // namespace troupe::drill
