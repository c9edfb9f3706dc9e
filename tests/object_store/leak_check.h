// A fixture that fails a test which leaves descriptors or mapped segments behind.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace troupe::object_store {

inline int64_t open_descriptors() {
  const std::filesystem::directory_iterator entries{"/proc/self/fd"};
  return std::distance(begin(entries), end(entries));
}

inline int64_t mapped_segments() {
  std::ifstream maps{"/proc/self/maps"};
  int64_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("troupe-objects") != std::string::npos) ++count;
  }
  return count;
}

class LeakChecked : public testing::Test {
 protected:
  ~LeakChecked() override {
    EXPECT_EQ(open_descriptors(), descriptors_);
    EXPECT_EQ(mapped_segments(), segments_);
  }

 private:
  const int64_t descriptors_ = open_descriptors();
  const int64_t segments_ = mapped_segments();
};

}  // namespace troupe::object_store
