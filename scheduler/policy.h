// The order in which requests run: strategies behind one interface.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace troupe::scheduler {

// Lower goes first. Requests of equal rank go in the order of their arrival.
struct Rank {
  int64_t major = 0;
  int64_t minor = 0;
  auto operator<=>(const Rank&) const = default;
};

// What a policy may look at. Times are of the whole request, all of its units together.
struct Standing {
  static constexpr Duration unknown_run_time = Duration::max();

  int32_t priority = 0;  // Of a gang at least that of what waits for it or lies in it.
  uint16_t weight = 1;
  bool restart = false;
  bool runs = false;
  int64_t gpu_milli = 0;                 // Of all units.
  Duration run_time = unknown_run_time;  // What it is expected to run in all.
  Instant arrived;
  Instant since;           // It runs, or waits, without a break.
  Duration ran{};          // Held what it needs, over all stints before `since`.
  Duration progress{};     // Of that, what brought it forward, as its workers reported.
  Duration promoted_at{};  // What it had run when it was promoted last.
  Duration joined_at{};    // The pool's virtual time when it arrived.

  Duration stint(Instant now) const { return runs ? now - since : Duration::zero(); }
  // Attained service until `now`, and since it was promoted. No report takes any of it back: who
  // yields just before its allotment is used up gains nothing.
  Duration ran_until(Instant now) const { return ran + stint(now); }
  Duration counted_until(Instant now) const { return ran_until(now) - promoted_at; }
};

// Pure: the same standing gets the same rank.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  virtual Rank rank(const Standing& standing, Instant now) const = 0;
  // When the rank, or what promotes() says, may be another if nothing happens to it but time. Of
  // what runs, changes by running_slope() alone do not count.
  virtual Instant changes_at(const Standing& standing, Instant now) const {
    (void)standing, (void)now;
    return Instant::max();
  }
  // What a nanosecond of running adds to the major rank of each that runs.
  virtual int64_t running_slope() const { return 0; }
  // One that waits and may run as if what it ran before did not count.
  virtual bool promotes(const Standing& standing, Instant now) const {
    (void)standing, (void)now;
    return false;
  }
  // How far it is, for policies by which each starts where the others are: the pool's virtual time
  // is the farthest at which anything was placed or had its rank changed (start-time fair queueing:
  // Goyal, Vin and Cheng, SIGCOMM 1996).
  virtual Duration virtual_time(const Standing& standing, Instant now) const {
    (void)standing, (void)now;
    return {};
  }
  // Whether one of a lower rank, which can pause, makes room for one of a higher one.
  virtual bool preempts() const { return false; }
};

// Strict priority, restarts before first starts, then first come, first served.
std::unique_ptr<Policy> make_priority_policy();
// A request gains a priority with each step that it waits; what waits at priority p for a step goes
// with what arrives at p + 1. Starvation is bounded: of two that differ by d the lower one waits
// for those that arrive up to d steps later.
struct AgingOptions {
  Duration step = std::chrono::minutes(10);
  bool preempts = false;  // What has been placed keeps the place in line that it had.
};
std::unique_ptr<Policy> make_aging_policy(AgingOptions options = {});
// First come, first served.
std::unique_ptr<Policy> make_fifo_policy();
// Shortest expected run time first; what nobody knows last. Never preempts.
std::unique_ptr<Policy> make_sjf_policy();
// Shortest remaining time first, preemptive (Schrage and Miller 1966). Those that nobody knows go
// last, by what they ran.
std::unique_ptr<Policy> make_srtf_policy();

// Multilevel feedback on attained service, GPUs times time (OSTEP, chapter 8; in its GPU form
// Tiresias, NSDI 2019, section 3): down a level at each threshold, counted over all stints; first
// come, first served within a level; one that waited for `promotion` times what it ran starts anew
// at the top.
struct MlfqOptions {
  // Ascending, in GPU-time (of what has no GPU, time). Each eight times the one before: on the
  // Philly trace better than fewer or other ones (bench/scheduler).
  std::vector<Duration> thresholds{std::chrono::hours(1), std::chrono::hours(8),
                                   std::chrono::hours(64), std::chrono::hours(512)};
  int64_t promotion = 8;  // 0: never.
};
std::unique_ptr<Policy> make_mlfq_policy(MlfqOptions options = {});

// Round robin by GPU-time (of what has no GPU, time) and weight: nobody begins a round while one
// that waits is in an earlier one. Of two that stay, neither gets 2 quanta a weight more than the
// other.
struct RoundRobinOptions {
  Duration quantum = std::chrono::hours(1);  // Of GPU-time, for a weight of 1.
};
std::unique_ptr<Policy> make_round_robin_policy(RoundRobinOptions options = {});

inline constexpr std::array<std::string_view, 7> policy_names = {
    "aging", "fifo", "mlfq", "priority", "rr", "sjf", "srtf"};
// With its defaults. Errors: invalid (no such policy; the message names all).
Result<std::unique_ptr<Policy>> make_policy(std::string_view name);

}  // namespace troupe::scheduler
