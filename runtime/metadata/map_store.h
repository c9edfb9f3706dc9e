// The Store in simulation: ordered maps, and a model of a write-ahead log that a crash cuts short.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "metadata/store.h"

namespace troupe {

struct MapOptions {
  ClusterId cluster_id;
  // commit() returns before its record is synced, and only sync() makes it durable: the disk of a
  // broken store, with which a test proves that its checks would notice a lost promise.
  bool lazy_sync = false;
};

// Deterministic, no I/O. Object and disk in one: it outlives the simulated head that uses it.
class MapStore final : public Store {
 public:
  explicit MapStore(const MapOptions& options);

  Result<std::optional<std::string>> get(Table table, std::string_view key) override;
  Result<Rows> scan(Table table, std::string_view prefix, const Page& page = {}) override;
  Result<std::unique_ptr<Snapshot>> snapshot() override;
  Status commit(const Batch& batch, uint64_t epoch) override;
  uint64_t epoch() const override;
  ClusterId cluster_id() const override { return options_.cluster_id; }
  Status health() const override;

  // Makes every record of the log durable.
  void sync();
  // Committed, yet not durable.
  size_t unsynced_records() const;
  // What the next opening after a power cut finds: the durable records and the first `records_kept`
  // of the others (a disk may have written more than it was told to). Healthy again.
  void crash(size_t records_kept = 0);
  // The next commit writes nothing and fails with `error`, as if the disk had; the store is then
  // unhealthy until crash().
  void fail_next_commit(Error error);
  // So much room is left from now on, whatever is written.
  void set_free(uint64_t bytes);
  Status room(uint64_t bytes) const override;

 private:
  using Key = std::pair<Table, std::string>;
  using State = std::map<Key, std::string>;
  class Copy;

  static Rows scan_state(const State& state, Table table, std::string_view prefix,
                         const Page& page);
  static void apply(State& state, const Batch& record);
  uint64_t recorded_epoch() const;

  const MapOptions options_;
  mutable std::mutex mutex_;  // Guards all below.
  State state_;               // What reads see: durable_ and then log_.
  State durable_;             // What a crash leaves.
  std::vector<Batch> log_;
  std::optional<Error> next_failure_;
  Status health_;
  uint64_t free_bytes_ = std::numeric_limits<uint64_t>::max();
};

}  // namespace troupe
