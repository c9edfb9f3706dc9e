// The Store in life: one RocksDB, a column family a table, a synced write-ahead log.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "base/ids.h"
#include "base/status.h"
#include "metadata/store.h"

namespace troupe {

// Faults that a test puts between RocksDB and its files. Called from RocksDB's threads too, before
// the operation; a result other than 0 is an errno that the operation then fails with.
class DiskFaults {
 public:
  virtual ~DiskFaults() = default;
  virtual int before_append(const std::string& path, size_t bytes) = 0;
  virtual int before_sync(const std::string& path) = 0;
  // The sync succeeded: what was appended before it will survive a power cut.
  virtual void after_sync(const std::string& path) = 0;
};

struct RocksOptions {
  // Make the directory (0700) and the tables if there are none.
  bool create = false;
  // Changes nothing in the directory, and takes no lock: the caller sees to it that nobody else
  // writes there. Commits are refused (invalid). Not together with `create`.
  bool read_only = false;
  // Must equal the recorded one. Nil accepts any, and is refused together with `create`.
  ClusterId cluster_id;
  // Tests only: faulty files, and the schema that another build would write and read.
  std::shared_ptr<DiskFaults> faults;
  uint64_t schema = schema_version;
};

// Opens the tables under `path`; one process at a time may. Blocks while the log is replayed and
// all tables are read to verify their checksums.
// Errors: not_found (nothing there and not `create`), conflict (another head uses the directory, it
// belongs to another cluster, or a restore into it was cut short), unimplemented (a newer Troupe
// wrote it), data_loss (damaged, the message names the file where RocksDB does), exhausted (disk
// full), denied (no permission).
Result<std::unique_ptr<Store>> open_rocksdb(const std::filesystem::path& path,
                                            const RocksOptions& options);

// Beside `path`: where a restore makes the new store. While it is there no new one is made at
// `path`, for a restore that was cut short must not end in an empty store.
std::filesystem::path restoring_beside(const std::filesystem::path& path);

}  // namespace troupe
