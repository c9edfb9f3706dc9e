// The head's durable tables: what someone was promised is here before the promise is answered.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace troupe {

// A table is a column family of its own; its name is on disk, its number is not.
enum class Table : uint8_t {
  meta,
  nodes,
  jobs,
  actors,
  names,
  deployments,
  placement_groups,
  users,
  events,
};
inline constexpr std::array tables{Table::meta,
                                   Table::nodes,
                                   Table::jobs,
                                   Table::actors,
                                   Table::names,
                                   Table::deployments,
                                   Table::placement_groups,
                                   Table::users,
                                   Table::events};
std::string_view table_name(Table table);

// Rows of `meta` whose key begins so belong to the store: schema version, cluster id, epoch.
// They can be read like any other row; a batch that writes them is refused (invalid).
inline constexpr std::string_view store_prefix = "store/";
inline constexpr std::string_view schema_key = "store/schema";
inline constexpr std::string_view cluster_key = "store/cluster";
inline constexpr std::string_view epoch_key = "store/epoch";
// The layout of the tables that this build reads and writes.
inline constexpr uint64_t schema_version = 1;

struct Mutation {
  Table table = Table::meta;
  std::string key;
  std::optional<std::string> value;  // None deletes the row; deleting no row is fine.
};

// Mutations that become true together or not at all, in order: a later one of a key wins.
class Batch {
 public:
  Batch& put(Table table, std::string key, std::string value) {
    return add({table, std::move(key), std::move(value)});
  }
  Batch& erase(Table table, std::string key) { return add({table, std::move(key), std::nullopt}); }
  Batch& add(Mutation mutation);
  // Puts another batch's mutations after this one's.
  Batch& append(Batch other);

  bool empty() const { return mutations_.empty(); }
  size_t size() const { return mutations_.size(); }
  // Keys and values, in bytes.
  size_t bytes() const { return bytes_; }
  const std::vector<Mutation>& mutations() const { return mutations_; }

 private:
  std::vector<Mutation> mutations_;
  size_t bytes_ = 0;
};

// Errors: invalid (it writes a row that belongs to the store).
Status check_batch(const Batch& batch);

using Rows = std::vector<std::pair<std::string, std::string>>;

// A page of a scan: rows whose key is greater than `after`, at most `rows_max` of them.
struct Page {
  std::string after;  // Empty: from the prefix's first row.
  size_t rows_max = std::numeric_limits<size_t>::max();
};

// The store's files as they were at one moment; they are gone with this object. Most are names that
// they have beside those in the store, so they must not be changed.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual const std::filesystem::path& folder() const = 0;
};

// All rows as they were at one moment, whatever is committed meanwhile. Destroy it before the
// store.
class Snapshot {
 public:
  virtual ~Snapshot() = default;
  // As Store::scan.
  virtual Result<Rows> scan(Table table, std::string_view prefix, const Page& page) = 0;
};

// Thread-safe. Every function may block on a disk: never call one on an io thread.
// Reads see every commit that returned before they began.
// Errors of all: data_loss (a file is damaged), unavailable (the disk does not answer, or an
// earlier commit failed), exhausted (the disk is full).
class Store {
 public:
  virtual ~Store() = default;

  virtual Result<std::optional<std::string>> get(Table table, std::string_view key) = 0;
  // Rows whose key begins with `prefix`, in the order of their keys' bytes.
  virtual Result<Rows> scan(Table table, std::string_view prefix, const Page& page = {}) = 0;
  virtual Result<std::unique_ptr<Snapshot>> snapshot() = 0;

  // Durable on return: one write and one sync. `epoch` is the leadership term of the head that
  // commits; a higher one than the recorded is recorded with the batch, also with an empty one.
  // Errors: conflict (the epoch is older than the recorded: another head took over), invalid (see
  // check_batch), outcome_unknown (the disk failed: after reopening all of it or nothing is there).
  // After a failed write the store takes no more commits (unavailable) until it is opened anew.
  virtual Status commit(const Batch& batch, uint64_t epoch) = 0;

  // The highest epoch recorded; 0 before the first commit.
  virtual uint64_t epoch() const = 0;
  virtual ClusterId cluster_id() const = 0;
  // OK, or why the store takes no more commits. Never blocks on the disk.
  virtual Status health() const = 0;
  // Whether so much more can surely be written: asked before a commit, for after a failed one there
  // is no other. Asks the system for numbers that it has in memory, so an io thread may.
  // Errors: exhausted (how much room there is).
  virtual Status room(uint64_t bytes) const {
    (void)bytes;
    return ok();
  }

  // All that was committed so far, and perhaps some of what is being committed. Commits go on
  // meanwhile. Destroy it before the store.
  // Errors: unimplemented (the store has no files).
  virtual Result<std::unique_ptr<Checkpoint>> checkpoint();
  // Where its files are; empty: it has none.
  virtual std::filesystem::path folder() const { return {}; }

  // A hash over all rows of all tables, equal for equal contents in any implementation, also in one
  // that has more tables: an empty table counts for nothing. Reads everything; consistent only
  // while nothing commits. For tests, for comparing replicas, and for what is in a backup.
  Result<std::string> state_hash();
};

}  // namespace troupe
