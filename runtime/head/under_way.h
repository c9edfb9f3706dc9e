// Bytes that are on their way to the disk, and so count as taken.
#pragma once

#include <cstdint>

namespace troupe::head {

class UnderWay {
 public:
  // `all` outlives it.
  UnderWay(uint64_t& all, uint64_t bytes) : all_(all), bytes_(bytes) { all_ += bytes_; }
  ~UnderWay() { all_ -= bytes_; }
  UnderWay(const UnderWay&) = delete;
  UnderWay& operator=(const UnderWay&) = delete;

 private:
  uint64_t& all_;
  const uint64_t bytes_;
};

}  // namespace troupe::head
