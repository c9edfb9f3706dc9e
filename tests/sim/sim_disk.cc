#include "tests/sim/sim_disk.h"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution.hpp>
#include <boost/asio/query.hpp>

#include "tests/sim/planted.h"

namespace troupe::sim {
namespace asio = boost::asio;

// Runs what blocks on the disk after as long as the disk takes, one after the other.
struct DiskExecutor {
  Executor loop;
  SimDisk* disk;
  TimerClock* clock;

  asio::execution_context& query(asio::execution::context_t) const noexcept {
    return asio::query(loop, asio::execution::context);
  }
  DiskExecutor require(asio::execution::blocking_t::never_t) const noexcept { return *this; }
  template <class Function>
  void execute(Function function) const {
    auto shared = std::make_shared<Function>(std::move(function));
    clock->call_at(clock->now() + disk->take_latency(), [shared] { std::move (*shared)(); });
  }
  friend bool operator==(const DiskExecutor& a, const DiskExecutor& b) noexcept {
    return a.disk == b.disk && a.clock == b.clock;
  }
  friend bool operator!=(const DiskExecutor& a, const DiskExecutor& b) noexcept {
    return !(a == b);
  }
};

// One head's view. Fails once another was opened, or the head was killed.
class SimDisk::Opened final : public Store {
 public:
  explicit Opened(SimDisk& disk) : disk_(&disk), cluster_(disk.options_.cluster) {}

  Result<std::optional<std::string>> get(Table table, std::string_view key) override {
    TROUPE_CHECK(usable());
    return disk_->map_.get(table, key);
  }
  Result<Rows> scan(Table table, std::string_view prefix, const Page& page) override {
    TROUPE_CHECK(usable());
    if (std::exchange(disk_->unreadable_, false)) {
      disk_->note(Fault::disk_unreadable);
      return error(Code::unavailable, "the disk cannot be read");
    }
    return disk_->map_.scan(table, prefix, page);
  }
  Result<std::unique_ptr<Snapshot>> snapshot() override {
    TROUPE_CHECK(usable());
    return disk_->map_.snapshot();
  }
  Status commit(const Batch& batch, uint64_t epoch) override {
    TROUPE_CHECK(usable());
    Status committed = disk_->commit(batch, epoch);
    if (!committed && committed.error().code() != Code::conflict &&
        committed.error().code() != Code::invalid) {
      health_ = committed;
    }
    return committed;
  }
  uint64_t epoch() const override { return disk_ == nullptr ? 0 : disk_->map_.epoch(); }
  ClusterId cluster_id() const override { return cluster_; }
  Status health() const override { return health_; }
  Status room(uint64_t) const override {
    if (disk_ == nullptr || !disk_->full_ || !disk_->says_full_) return ok();
    disk_->note(Fault::disk_full);
    return error(Code::exhausted, "the disk is full");
  }
  void close() { disk_ = nullptr; }

 private:
  Status usable() const {
    if (disk_ == nullptr) return error(Code::unavailable, "its process is dead");
    return health_;
  }

  SimDisk* disk_;  // Null: closed.
  const ClusterId cluster_;
  Status health_ = ok();
};

SimDisk::SimDisk(const Options& options, TimerClock& clock, History& history, FaultCounts& counts,
                 uint64_t seed)
    : options_(options),
      clock_(clock),
      history_(history),
      counts_(counts),
      random_(seed),
      map_(MapOptions{options.cluster, true}) {}

SimDisk::~SimDisk() {
  if (const auto last = opened_.lock()) last->close();
}

std::shared_ptr<Store> SimDisk::open() {
  if (const auto last = opened_.lock()) last->close();
  const auto opened = std::make_shared<Opened>(*this);
  opened_ = opened;
  return opened;
}

void SimDisk::crash() {
  if (const auto last = opened_.lock()) last->close();
  opened_.reset();
  map_.crash();
}

void SimDisk::set_latency(Duration least, std::optional<Fault> why) {
  latency_ = least;
  slow_ = why;
}

Duration SimDisk::take_latency() {
  if (latency_ <= Duration::zero()) return {};
  if (slow_) note(*slow_);
  return latency_ +
         Duration(static_cast<int64_t>(random_.below(static_cast<uint64_t>(latency_.count()) + 1)));
}

Executor SimDisk::executor(Executor loop, TimerClock& clock) {
  return DiskExecutor{std::move(loop), this, &clock};
}

void SimDisk::set_full(bool full) {
  full_ = full;
  says_full_ = full && !is_planted("hide-full-disk") && random_.chance(0.5);
}

void SimDisk::crash_in_next_commit(Fault how, std::function<void()> die) {
  crash_next_ = Crash{how, std::move(die)};
}

void SimDisk::heal() {
  latency_ = {};
  slow_.reset();
  full_ = fails_next_ = unreadable_ = false;
  crash_next_.reset();
}

Status SimDisk::commit(const Batch& batch, uint64_t epoch) {
  const bool writes = !batch.empty() || epoch > map_.epoch();
  if (writes && full_) {
    note(Fault::disk_full);
    if (is_planted("hide-full-disk")) return ok();
    return error(Code::exhausted, "the disk is full");
  }
  if (writes && crash_next_) return die_in_commit(batch, epoch);
  if (writes && std::exchange(fails_next_, false)) {
    note(Fault::disk_error);
    const bool is_there = random_.chance(0.5);
    history_.add(clock_.now(), is_there ? "disk error, written" : "disk error, not written");
    if (is_there && map_.commit(batch, epoch)) map_.sync();
    if (is_planted("hide-disk-error")) return ok();
    return error(Code::outcome_unknown, "the disk failed");
  }
  TROUPE_CHECK(map_.commit(batch, epoch));
  const bool forgets = options_.lazy_sync || is_planted("skip-sync") ||
                       (is_planted("skip-some-syncs") && ++commits_ % 8 == 0);
  if (!forgets) map_.sync();
  return ok();
}

void SimDisk::write_half(const Batch& batch, uint64_t epoch) {
  Batch half;
  for (size_t i = 0; i < (batch.size() + 1) / 2; ++i) half.add(batch.mutations()[i]);
  if (map_.commit(half, epoch)) map_.sync();
}

Status SimDisk::die_in_commit(const Batch& batch, uint64_t epoch) {
  const Crash crash = *std::exchange(crash_next_, std::nullopt);
  history_.add(clock_.now(), "crash in a commit: " + std::string(fault_name(crash.how)));
  note(crash.how);
  switch (crash.how) {
    case Fault::unsynced_kept:
      if (map_.commit(batch, epoch)) map_.sync();
      break;
    case Fault::wal_torn:  // Its checksum is wrong: whoever opens the log cuts it off there.
      if (is_planted("replay-torn-tail")) write_half(batch, epoch);
      break;
    default:
      break;
  }
  crash.die();
  return error(Code::unavailable, "its process is dead");
}

}  // namespace troupe::sim
