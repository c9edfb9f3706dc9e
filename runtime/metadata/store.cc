#include "metadata/store.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <memory>

namespace troupe {

std::string_view table_name(Table table) {
  switch (table) {
    case Table::meta:
      return "meta";
    case Table::nodes:
      return "nodes";
    case Table::jobs:
      return "jobs";
    case Table::actors:
      return "actors";
    case Table::names:
      return "names";
    case Table::deployments:
      return "deployments";
    case Table::placement_groups:
      return "placement_groups";
    case Table::users:
      return "users";
    case Table::events:
      return "events";
  }
  TROUPE_ASSERT(false, "a table that the enumeration does not have");
}

Batch& Batch::add(Mutation mutation) {
  bytes_ += mutation.key.size() + (mutation.value ? mutation.value->size() : 0);
  mutations_.push_back(std::move(mutation));
  return *this;
}

Batch& Batch::append(Batch other) {
  bytes_ += other.bytes_;
  if (mutations_.empty()) {
    mutations_ = std::move(other.mutations_);
    return *this;
  }
  for (Mutation& mutation : other.mutations_) mutations_.push_back(std::move(mutation));
  return *this;
}

Status check_batch(const Batch& batch) {
  for (const Mutation& mutation : batch.mutations()) {
    if (mutation.table == Table::meta && mutation.key.starts_with(store_prefix)) {
      return error(Code::invalid, fmt::format("row {} of meta belongs to the store", mutation.key));
    }
  }
  return ok();
}

Result<std::unique_ptr<Checkpoint>> Store::checkpoint() {
  return error(Code::unimplemented, "this store has no files");
}

Result<std::string> Store::state_hash() {
  // Every length goes in before its bytes, so no two contents run together into one stream.
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash{XXH3_createState(),
                                                                      &XXH3_freeState};
  TROUPE_ASSERT(hash != nullptr, "out of memory for a hash");
  XXH3_128bits_reset(hash.get());
  const auto feed = [&](std::string_view text) {
    const uint64_t size = text.size();
    XXH3_128bits_update(hash.get(), &size, sizeof size);
    XXH3_128bits_update(hash.get(), text.data(), text.size());
  };
  constexpr size_t page_rows = 4096;
  for (const Table table : tables) {
    uint64_t rows = 0;
    Page page{.after = {}, .rows_max = page_rows};
    for (bool more = true; more;) {
      TROUPE_TRY(Rows part, scan(table, {}, page));
      if (rows == 0 && !part.empty()) feed(table_name(table));
      for (const auto& [key, value] : part) {
        feed(key);
        feed(value);
      }
      rows += part.size();
      more = part.size() == page_rows;
      if (more) page.after = std::move(part.back().first);
    }
    if (rows > 0) XXH3_128bits_update(hash.get(), &rows, sizeof rows);
  }
  const XXH128_hash_t digest = XXH3_128bits_digest(hash.get());
  return fmt::format("{:016x}{:016x}", digest.high64, digest.low64);
}

}  // namespace troupe
