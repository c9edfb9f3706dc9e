#include "llm/optimizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "llm/cpu/kernels.h"
#include "llm/cpu/threads.h"

namespace troupe::llm {
namespace {

// Square sums are taken over pieces of this size and added in order, so that the norm, and with
// it training, does not depend on the number of threads.
constexpr int64_t piece = int64_t{1} << 17;

const cpu::OptimizerKernels& best_kernels() {
  return cpu::best_kernels<float, float>().optimizer;
}

double norm_of(std::span<const float> values, int threads) {
  const cpu::OptimizerKernels& kernels = best_kernels();
  const auto count = static_cast<int64_t>(values.size());
  const int64_t pieces = (count + piece - 1) / piece;
  std::vector<double> sums(static_cast<size_t>(pieces));
  cpu::parallel_parts(threads, pieces, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) {
      sums[static_cast<size_t>(i)] =
          kernels.sum_of_squares(values.data() + i * piece, std::min(piece, count - i * piece));
    }
  });
  double sum = 0;
  for (const double s : sums) sum += s;
  return std::sqrt(sum);
}

}  // namespace

AdamW::AdamW(const Gpt2Layout& layout, const AdamWOptions& options) : options_(options) {
  for (const Parameter& p : layout.parameters()) {
    const bool decays = p.is_matrix();
    if (ranges_.empty() || ranges_.back().decays != decays) {
      ranges_.push_back({p.offset, p.offset, decays});
    }
    ranges_.back().end = p.offset + p.count;
  }
  state_.m.assign(layout.total(), 0);
  state_.v.assign(layout.total(), 0);
}

Result<float> AdamW::step(std::span<float> parameters, std::span<const float> gradients,
                          float learning_rate) {
  TROUPE_ASSERT(parameters.size() == state_.m.size() && gradients.size() == state_.m.size(),
                "optimizer step over buffers of another layout");
  const double norm = norm_of(gradients, options_.threads);
  if (!std::isfinite(norm)) {
    return error(Code::invalid,
                 fmt::format("the gradient's norm is {} at step {}", norm, state_.step));
  }
  ++state_.step;
  const double limit = options_.gradient_norm_max;
  const auto t = static_cast<double>(state_.step);
  cpu::AdamWStep step{
      .learning_rate = learning_rate,
      .beta1 = options_.beta1,
      .beta2 = options_.beta2,
      .epsilon = options_.epsilon,
      .weight_decay = 0,
      .gradient_scale = limit > 0 && norm > limit ? static_cast<float>(limit / norm) : 1.0f,
      .m_correction = static_cast<float>(1 / (1 - std::pow(double{options_.beta1}, t))),
      .v_correction = static_cast<float>(1 / (1 - std::pow(double{options_.beta2}, t)))};
  const cpu::OptimizerKernels& kernels = best_kernels();
  for (const Range& range : ranges_) {
    step.weight_decay = range.decays ? options_.weight_decay : 0;
    const auto count = static_cast<int64_t>(range.end - range.begin);
    // A few biases are not worth waking a thread.
    const int threads = count < piece ? 1 : options_.threads;
    cpu::parallel_parts(threads, count, [&](int64_t begin, int64_t end, int64_t) {
      const size_t first = range.begin + static_cast<size_t>(begin);
      kernels.adamw(parameters.data() + first, state_.m.data() + first, state_.v.data() + first,
                    gradients.data() + first, end - begin, step);
    });
  }
  return static_cast<float>(norm);
}

Status AdamW::restore(AdamWState state) {
  if (state.m.size() != state_.m.size() || state.v.size() != state_.v.size()) {
    return error(Code::invalid,
                 fmt::format("optimizer state of {} and {} elements for {} parameters",
                             state.m.size(), state.v.size(), state_.m.size()));
  }
  state_ = std::move(state);
  return ok();
}

float CosineSchedule::learning_rate(uint64_t step) const {
  if (step < warmup_steps) {
    return peak * static_cast<float>(step + 1) / static_cast<float>(warmup_steps);
  }
  if (step >= total_steps) return floor;
  const double progress =
      static_cast<double>(step - warmup_steps) / static_cast<double>(total_steps - warmup_steps);
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return static_cast<float>(double{floor} + (double{peak} - double{floor}) * cosine);
}

}  // namespace troupe::llm
