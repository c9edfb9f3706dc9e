#include "training/batches.h"

#include <fmt/format.h>

#include <limits>
#include <numeric>
#include <utility>

#include "base/random.h"

namespace troupe::training {

Status SequenceBuffer::append(const TokenFile& data, uint64_t start, int64_t length) {
  scratch_.resize(static_cast<size_t>(length) + 1);
  TROUPE_CHECK(data.read(start, scratch_));
  tokens_.insert(tokens_.end(), scratch_.begin(), scratch_.end() - 1);
  targets_.insert(targets_.end(), scratch_.begin() + 1, scratch_.end());
  ++rows_;
  return ok();
}

llm::TokenBatch SequenceBuffer::batch() const {
  const auto length = rows_ == 0 ? 0 : static_cast<int64_t>(tokens_.size()) / rows_;
  return {.batch = rows_, .length = length, .tokens = tokens_, .targets = targets_};
}

Result<BatchSampler> BatchSampler::make(const TokenFile& data, BatchShape shape, uint64_t seed) {
  // The last target lies at offset + windows * length, and the offset is below the length.
  const auto length = static_cast<uint64_t>(shape.sequence_length);
  const uint64_t windows = data.size() < 2 * length ? 0 : (data.size() - length) / length;
  if (windows == 0 || windows > std::numeric_limits<uint32_t>::max()) {
    return error(Code::invalid, fmt::format("{} training tokens are too few, or too many, for "
                                            "sequences of {}",
                                            data.size(), length));
  }
  return BatchSampler{data, shape, seed, windows};
}

BatchSampler::BatchSampler(const TokenFile& data, BatchShape shape, uint64_t seed, uint64_t windows)
    : data_(&data), shape_(shape), seed_(seed), windows_(windows) {}

void BatchSampler::shuffle(uint64_t epoch) {
  // Mixed by the generator's own seeding, so neighbouring epochs share nothing.
  SeededRandom of_seed{seed_};
  SeededRandom random{of_seed.next() + epoch};
  offset_ = random.below(static_cast<uint64_t>(shape_.sequence_length));
  order_.resize(windows_);
  std::iota(order_.begin(), order_.end(), 0u);
  for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
  epoch_ = epoch;
}

uint64_t BatchSampler::start(uint64_t step, int64_t row) {
  const uint64_t drawn = step * static_cast<uint64_t>(shape_.batch) + static_cast<uint64_t>(row);
  if (drawn / windows_ != epoch_) shuffle(drawn / windows_);
  return offset_ + order_[drawn % windows_] * static_cast<uint64_t>(shape_.sequence_length);
}

Status BatchSampler::fill(uint64_t step, int64_t begin, int64_t end, SequenceBuffer& out) {
  out.clear();
  for (int64_t row = begin; row < end; ++row) {
    TROUPE_CHECK(out.append(*data_, start(step, row), shape_.sequence_length));
  }
  return ok();
}

}  // namespace troupe::training
