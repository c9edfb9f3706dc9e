#include "inference/iteration_plan.h"

#include <algorithm>
#include <optional>

#include "llm/inference_model.h"

namespace troupe::inference {

int64_t blocks_of(int64_t tokens) {
  return (tokens + llm::kv_block_tokens - 1) / llm::kv_block_tokens;
}

namespace {

class Planner {
 public:
  Planner(const IterationLimits& limits, std::span<const SequenceView> views, int64_t free_blocks)
      : views_(views), limits_(limits), budget_(limits.batch_tokens_max), free_(free_blocks) {
    running_.reserve(views.size());
    for (const SequenceView& view : views) {
      running_.push_back(view.running);
      running_count_ += view.running ? 1 : 0;
    }
  }

  IterationPlan make() {
    decode();
    // What was preempted for want of blocks must not come back, or let others in, at once.
    const bool room = plan_.preempted.empty();
    continue_prompts();
    if (room) admit();
    return std::move(plan_);
  }

 private:
  static int64_t remaining(const SequenceView& view) { return view.tokens - view.cached; }

  bool runs(size_t i) const { return running_[i] && !views_[i].stalled; }

  void decode() {
    for (size_t i = 0; i < views_.size() && budget_ > 0; ++i) {
      if (!runs(i) || remaining(views_[i]) != 1) continue;
      const int64_t need = std::max<int64_t>(0, blocks_of(views_[i].tokens) - views_[i].blocks);
      // The victim is `i` itself or has no chunk yet: it is stalled, or younger.
      while (need > free_ && running_[i]) preempt(stalled_one().value_or(newest()));
      if (!running_[i]) continue;
      free_ -= need;
      add_chunk(i, 1);
    }
  }

  // Their blocks were reserved when they were admitted.
  void continue_prompts() {
    for (size_t i = 0; i < views_.size() && budget_ > 0; ++i) {
      if (runs(i) && remaining(views_[i]) > 1) add_chunk(i, remaining(views_[i]));
    }
  }

  void admit() {
    for (size_t i = 0; i < views_.size() && budget_ > 0; ++i) {
      if (running_[i] || views_[i].stalled) continue;
      const int64_t need = blocks_of(views_[i].tokens);
      while (!fits(need) && reclaimable(need)) preempt(*stalled_one());
      if (!fits(need)) return;
      free_ -= need;
      running_[i] = true;
      ++running_count_;
      plan_.admitted.push_back(i);
      add_chunk(i, views_[i].tokens);
    }
  }

  bool fits(int64_t need) const {
    return running_count_ < limits_.sequences_max && need + running_count_ <= free_;
  }
  // Whether preempting the stalled would make room: otherwise they keep what they have.
  bool reclaimable(int64_t need) const {
    int64_t count = running_count_;
    int64_t free = free_;
    for (size_t i = 0; i < views_.size(); ++i) {
      if (!running_[i] || !views_[i].stalled) continue;
      --count;
      free += views_[i].blocks;
    }
    return count < running_count_ && count < limits_.sequences_max && need + count <= free;
  }

  std::optional<size_t> stalled_one() const {
    for (size_t i = views_.size(); i-- > 0;) {
      if (running_[i] && views_[i].stalled) return i;
    }
    return std::nullopt;
  }
  size_t newest() const {
    size_t i = views_.size() - 1;
    while (!running_[i]) --i;
    return i;
  }

  void preempt(size_t i) {
    running_[i] = false;
    --running_count_;
    free_ += views_[i].blocks;
    plan_.preempted.push_back(i);
  }
  void add_chunk(size_t i, int64_t tokens) {
    tokens = std::min(tokens, budget_);
    budget_ -= tokens;
    plan_.chunks.push_back({i, tokens});
  }

  std::span<const SequenceView> views_;
  const IterationLimits& limits_;
  int64_t budget_;  // Tokens.
  int64_t free_;    // Blocks.
  std::vector<bool> running_;
  int64_t running_count_ = 0;
  IterationPlan plan_;
};

}  // namespace

IterationPlan plan_iteration(const IterationLimits& limits,
                             std::span<const SequenceView> by_arrival, int64_t free_blocks) {
  return Planner(limits, by_arrival, free_blocks).make();
}

}  // namespace troupe::inference
