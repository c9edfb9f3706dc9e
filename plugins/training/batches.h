// Which sequences of the data each step learns from.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "llm/gpt2.h"
#include "training/token_file.h"

namespace troupe::training {

struct BatchShape {
  int64_t batch = 0;  // Sequences a step, over all ranks.
  int64_t sequence_length = 0;
};

// Sequences with their targets, filled by the classes below.
class SequenceBuffer {
 public:
  void clear() {
    rows_ = 0;
    tokens_.clear();
    targets_.clear();
  }
  // The tokens [start, start + length) and, as targets, those one further on.
  Status append(const TokenFile& data, uint64_t start, int64_t length);
  llm::TokenBatch batch() const;

 private:
  int64_t rows_ = 0;
  std::vector<int32_t> tokens_, targets_, scratch_;
};

// Each epoch shows every window of the data once, in an order and from an offset that the seed
// gives anew. What row r of step s holds depends on the seed, s and r alone, not on the number of
// ranks or on where training was resumed. Keeps a reference to the data. Not thread-safe.
class BatchSampler {
 public:
  // Errors: invalid (too little data for one sequence).
  static Result<BatchSampler> make(const TokenFile& data, BatchShape shape, uint64_t seed);

  // The position in the data where row `row` of step `step` starts.
  uint64_t start(uint64_t step, int64_t row);
  // Replaces `out` by the rows [begin, end) of a step.
  Status fill(uint64_t step, int64_t begin, int64_t end, SequenceBuffer& out);

  uint64_t windows() const { return windows_; }  // Sequences an epoch.

 private:
  BatchSampler(const TokenFile& data, BatchShape shape, uint64_t seed, uint64_t windows);
  void shuffle(uint64_t epoch);

  const TokenFile* data_;
  BatchShape shape_;
  uint64_t seed_;
  uint64_t windows_;
  uint64_t epoch_ = ~uint64_t{0};  // Of the order below.
  uint64_t offset_ = 0;
  std::vector<uint32_t> order_;
};

}  // namespace troupe::training
