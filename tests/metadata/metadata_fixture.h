// What the metadata tests share: a scratch directory, and rows of two tables that belong together.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "metadata/rocks_store.h"
#include "metadata/store.h"

namespace troupe {

class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "troupe_metadata_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no scratch directory");
    path_ = name;
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline ClusterId test_cluster() {
  return ClusterId::parse("000102030405060708090a0b0c0d0e0f").value();
}

inline std::unique_ptr<Store> open_or_create(const std::filesystem::path& path,
                                             std::shared_ptr<DiskFaults> faults = nullptr) {
  RocksOptions options{.create = true, .cluster_id = test_cluster()};
  options.faults = std::move(faults);
  return open_rocksdb(path, options).value();
}

// Batch `i` puts one row in each of two tables: after any crash both are there or neither.
inline Batch pair_of_rows(int i) {
  Batch batch;
  batch.put(Table::actors, std::to_string(i), std::string(100, 'a'));
  batch.put(Table::names, std::to_string(i), std::to_string(i));
  return batch;
}

// How many of the pairs 0, 1, 2, ... are there; fails the test if one is torn or one is skipped.
inline int count_pairs(Store& store) {
  int pairs = 0;
  for (;; ++pairs) {
    const std::string key = std::to_string(pairs);
    const bool first = store.get(Table::actors, key).value().has_value();
    const bool second = store.get(Table::names, key).value().has_value();
    EXPECT_EQ(first, second) << "batch " << pairs << " is torn";
    if (!first || !second) break;
  }
  EXPECT_EQ(store.scan(Table::actors, "").value().size(), static_cast<size_t>(pairs));
  return pairs;
}

inline std::vector<std::filesystem::path> files_ending(const std::filesystem::path& directory,
                                                       std::string_view ending) {
  std::vector<std::filesystem::path> found;
  for (const auto& entry : std::filesystem::directory_iterator{directory}) {
    if (entry.path().string().ends_with(ending)) found.push_back(entry.path());
  }
  return found;
}

inline void flip_byte(const std::filesystem::path& file, uint64_t offset) {
  std::fstream stream{file, std::ios::in | std::ios::out | std::ios::binary};
  stream.seekg(static_cast<std::streamoff>(offset));
  const char byte = static_cast<char>(stream.get() ^ 0x40);
  stream.seekp(static_cast<std::streamoff>(offset));
  stream.put(byte);
  ASSERT_TRUE(stream.good());
}

}  // namespace troupe
