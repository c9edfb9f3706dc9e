#include "metadata/map_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace troupe {
namespace {

uint64_t to_number(const std::string& text) {
  uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

}  // namespace

MapStore::MapStore(const MapOptions& options) : options_(options) {
  durable_[{Table::meta, std::string(schema_key)}] = std::to_string(schema_version);
  durable_[{Table::meta, std::string(cluster_key)}] = options.cluster_id.to_string();
  state_ = durable_;
}

Result<std::optional<std::string>> MapStore::get(Table table, std::string_view key) {
  const std::lock_guard lock{mutex_};
  const auto row = state_.find({table, std::string(key)});
  if (row == state_.end()) return std::optional<std::string>{};
  return std::optional{row->second};
}

class MapStore::Copy final : public Snapshot {
 public:
  explicit Copy(State state) : state_(std::move(state)) {}
  Result<Rows> scan(Table table, std::string_view prefix, const Page& page) override {
    return scan_state(state_, table, prefix, page);
  }

 private:
  const State state_;
};

Result<Rows> MapStore::scan(Table table, std::string_view prefix, const Page& page) {
  const std::lock_guard lock{mutex_};
  return scan_state(state_, table, prefix, page);
}

Result<std::unique_ptr<Snapshot>> MapStore::snapshot() {
  const std::lock_guard lock{mutex_};
  return std::make_unique<Copy>(state_);
}

Rows MapStore::scan_state(const State& state, Table table, std::string_view prefix,
                          const Page& page) {
  Rows rows;
  auto row = page.after.empty() || page.after < prefix
                 ? state.lower_bound({table, std::string(prefix)})
                 : state.upper_bound({table, page.after});
  for (; row != state.end() && rows.size() < page.rows_max; ++row) {
    const auto& [row_table, key] = row->first;
    if (row_table != table || !key.starts_with(prefix)) break;
    rows.emplace_back(key, row->second);
  }
  return rows;
}

void MapStore::apply(State& state, const Batch& record) {
  for (const Mutation& mutation : record.mutations()) {
    if (mutation.value) {
      state[{mutation.table, mutation.key}] = *mutation.value;
    } else {
      state.erase({mutation.table, mutation.key});
    }
  }
}

Status MapStore::commit(const Batch& batch, uint64_t epoch) {
  TROUPE_CHECK(check_batch(batch));
  const std::lock_guard lock{mutex_};
  const uint64_t recorded = recorded_epoch();
  if (!health_) {
    return error(Code::unavailable, "the store failed earlier: " + health_.error().message());
  }
  if (epoch < recorded) {
    return error(Code::conflict,
                 fmt::format("epoch {} is older than the recorded epoch {}", epoch, recorded));
  }
  if (batch.empty() && epoch == recorded) return ok();
  if (next_failure_) {
    health_ = *std::exchange(next_failure_, std::nullopt);
    return health_;
  }
  Batch record = batch;
  if (epoch > recorded) {
    record.put(Table::meta, std::string(epoch_key), std::to_string(epoch));
  }
  apply(state_, record);
  log_.push_back(std::move(record));
  if (!options_.lazy_sync) {
    for (const Batch& unsynced : log_) apply(durable_, unsynced);
    log_.clear();
  }
  return ok();
}

uint64_t MapStore::epoch() const {
  const std::lock_guard lock{mutex_};
  return recorded_epoch();
}

uint64_t MapStore::recorded_epoch() const {
  const auto row = state_.find({Table::meta, std::string(epoch_key)});
  return row == state_.end() ? 0 : to_number(row->second);
}

Status MapStore::health() const {
  const std::lock_guard lock{mutex_};
  return health_;
}

void MapStore::sync() {
  const std::lock_guard lock{mutex_};
  for (const Batch& record : log_) apply(durable_, record);
  log_.clear();
}

size_t MapStore::unsynced_records() const {
  const std::lock_guard lock{mutex_};
  return log_.size();
}

void MapStore::crash(size_t records_kept) {
  const std::lock_guard lock{mutex_};
  const size_t kept = std::min(records_kept, log_.size());
  for (size_t i = 0; i < kept; ++i) apply(durable_, log_[i]);
  log_.clear();
  state_ = durable_;
  next_failure_.reset();
  health_ = ok();
}

void MapStore::set_free(uint64_t bytes) {
  const std::lock_guard lock{mutex_};
  free_bytes_ = bytes;
}

Status MapStore::room(uint64_t bytes) const {
  const std::lock_guard lock{mutex_};
  if (free_bytes_ >= bytes) return ok();
  return error(Code::exhausted, fmt::format("the disk is full: {} bytes are free, {} are needed",
                                            free_bytes_, bytes));
}

void MapStore::fail_next_commit(Error error) {
  const std::lock_guard lock{mutex_};
  next_failure_ = std::move(error);
}

}  // namespace troupe
