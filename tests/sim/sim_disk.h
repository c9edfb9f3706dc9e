// The head's disk: a MapStore whose log is synced by every commit, and the ways in which a disk
// fails. It outlives the heads; each head opens it anew, and a head that was killed writes no more.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/random.h"
#include "metadata/map_store.h"
#include "tests/sim/faults.h"
#include "tests/sim/history.h"
#include "transport/async.h"

namespace troupe::sim {

class SimDisk {
 public:
  struct Options {
    ClusterId cluster;
    bool lazy_sync = false;  // A disk that loses what it promised: for the checks' own test.
  };
  // All outlive the disk.
  SimDisk(const Options& options, TimerClock& clock, History& history, FaultCounts& counts,
          uint64_t seed);
  ~SimDisk();

  // What the next head opens; the one opened before writes nothing from here on.
  std::shared_ptr<Store> open();
  // A power cut, or kill -9: what was not synced is gone, but for what the armed fault keeps.
  void crash();

  // How long a blocking call of the head takes: at least `least`, and up to twice that.
  void set_latency(Duration least, std::optional<Fault> why);
  // The executor of blocking work on a process's clock.
  Executor executor(Executor loop, TimerClock& clock);

  // Until it is turned off every commit fails, also those of heads that start. Each second time the
  // system says beforehand that there is no room.
  void set_full(bool full);
  // The next commit fails, and is there afterwards or not.
  void fail_next_commit() { fails_next_ = true; }
  // The next opening cannot be read.
  void fail_next_read() { unreadable_ = true; }
  // In the middle of the next commit that writes something `die` is called, which must kill the
  // head at once; `how` says what is left: unsynced_lost, unsynced_kept or wal_torn.
  void crash_in_next_commit(Fault how, std::function<void()> die);
  // Called with each fault that was felt, beside its being counted.
  void on_fault(std::function<void()> hook) { on_fault_ = std::move(hook); }
  // Nothing of the above is to happen any more.
  void heal();

  uint64_t epoch() const { return map_.epoch(); }
  bool has(Table table, std::string_view key) { return map_.get(table, key).value().has_value(); }
  // Store::state_hash() of what is there.
  std::string state_hash() { return map_.state_hash().value(); }

 private:
  class Opened;
  struct Executing;
  friend struct DiskExecutor;

  Status commit(const Batch& batch, uint64_t epoch);
  Status die_in_commit(const Batch& batch, uint64_t epoch);
  void write_half(const Batch& batch, uint64_t epoch);
  Duration take_latency();
  void note(Fault fault) {
    counts_.note(fault);
    if (on_fault_) on_fault_();
  }

  const Options options_;
  TimerClock& clock_;
  History& history_;
  FaultCounts& counts_;
  SeededRandom random_;
  MapStore map_;
  std::weak_ptr<Opened> opened_;
  Duration latency_{};
  std::optional<Fault> slow_;
  uint64_t commits_ = 0;
  bool full_ = false;
  bool says_full_ = false;
  bool fails_next_ = false;
  bool unreadable_ = false;
  struct Crash {
    Fault how;
    std::function<void()> die;
  };
  std::optional<Crash> crash_next_;
  std::function<void()> on_fault_;
};

}  // namespace troupe::sim
