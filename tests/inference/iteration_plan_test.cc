#include "inference/iteration_plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"

namespace troupe::inference {
namespace {

using Indices = std::vector<size_t>;

TEST(IterationPlan, DecodesGoFirstAndPromptsFillTheBatch) {
  const std::vector<SequenceView> views{{.running = true, .tokens = 100, .cached = 20, .blocks = 7},
                                        {.running = true, .tokens = 9, .cached = 8, .blocks = 1},
                                        {.tokens = 5}};
  const auto plan = plan_iteration({.sequences_max = 4, .batch_tokens_max = 83}, views, 100);
  ASSERT_EQ(plan.chunks.size(), 3u);
  EXPECT_EQ(plan.chunks[0].sequence, 1u);
  EXPECT_EQ(plan.chunks[1].tokens, 80);
  EXPECT_EQ(plan.chunks[2].sequence, 2u);
  EXPECT_EQ(plan.chunks[2].tokens, 2);
  EXPECT_EQ(plan.admitted, Indices{2});
}

TEST(IterationPlan, PreemptsTheNewestWhenBlocksRunOut) {
  const std::vector<SequenceView> views{{.running = true, .tokens = 17, .cached = 16, .blocks = 1},
                                        {.running = true, .tokens = 9, .cached = 8, .blocks = 1},
                                        {.running = true, .tokens = 12, .cached = 11, .blocks = 1}};
  const auto plan = plan_iteration({}, views, 0);
  EXPECT_EQ(plan.preempted, Indices{2});
  EXPECT_EQ(plan.chunks.size(), 2u);
  EXPECT_TRUE(plan.admitted.empty());  // Not the one that just lost its blocks.
}

TEST(IterationPlan, PrefersAStalledVictim) {
  const std::vector<SequenceView> views{
      {.running = true, .stalled = true, .tokens = 9, .cached = 8, .blocks = 1},
      {.running = true, .tokens = 17, .cached = 16, .blocks = 1}};
  const auto plan = plan_iteration({}, views, 0);
  EXPECT_EQ(plan.preempted, Indices{0});
  ASSERT_EQ(plan.chunks.size(), 1u);
  EXPECT_EQ(plan.chunks[0].sequence, 1u);
}

TEST(IterationPlan, AHeadThatDoesNotFitHoldsBackThoseBehindIt) {
  const std::vector<SequenceView> views{
      {.running = true, .tokens = 9, .cached = 8, .blocks = 1}, {.tokens = 64}, {.tokens = 1}};
  const auto plan = plan_iteration({}, views, 4);
  EXPECT_TRUE(plan.admitted.empty());
  EXPECT_EQ(plan_iteration({}, views, 5).admitted, Indices{1});
}

TEST(IterationPlan, AStalledSequenceMakesRoomForOneThatWaits) {
  const std::vector<SequenceView> views{
      {.running = true, .stalled = true, .tokens = 9, .cached = 8, .blocks = 1}, {.tokens = 3}};
  const auto plan = plan_iteration({.sequences_max = 1}, views, 0);
  EXPECT_EQ(plan.preempted, Indices{0});
  EXPECT_EQ(plan.admitted, Indices{1});
}

// A life of random sequences, with the model left out.
class Life {
 public:
  explicit Life(uint64_t seed) : random_(seed) {
    blocks_ = 2 + static_cast<int64_t>(random_.below(20));
    free_ = blocks_;
    limits_.sequences_max = 1 + static_cast<int64_t>(random_.below(8));
    limits_.batch_tokens_max = limits_.sequences_max + static_cast<int64_t>(random_.below(40));
  }

  void run() {
    int64_t to_come = 40;
    for (int iteration = 0; to_come > 0 || !views_.empty(); ++iteration) {
      ASSERT_LT(iteration, 20000) << "someone starves: " << views_.size() << " left, " << blocks_
                                  << " blocks, batch " << limits_.batch_tokens_max;
      while (to_come > 0 && random_.chance(0.3)) {
        --to_come;
        const int64_t room = blocks_ * 16;
        const int64_t prompt =
            1 + static_cast<int64_t>(random_.below(static_cast<uint64_t>(room - 1)));
        views_.push_back({.tokens = prompt});
        ends_.push_back(prompt + 1 +
                        static_cast<int64_t>(random_.below(static_cast<uint64_t>(room - prompt))));
      }
      for (SequenceView& view : views_) {
        if (view.stalled && random_.chance(0.3)) view.stalled = false;
      }
      step();
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_EQ(free_, blocks_);
  }

 private:
  void step() {
    const IterationPlan plan = plan_iteration(limits_, views_, free_);
    for (const size_t i : plan.preempted) {
      ASSERT_TRUE(views_[i].running);
      free_ += views_[i].blocks;
      views_[i] = {.stalled = views_[i].stalled, .tokens = views_[i].tokens};
    }
    for (const size_t i : plan.admitted) {
      ASSERT_FALSE(views_[i].running || views_[i].stalled);
      for (size_t older = 0; older < i; ++older) {
        ASSERT_TRUE(views_[older].running || views_[older].stalled) << "overtaken";
      }
      views_[i].running = true;
      take(i, blocks_of(views_[i].tokens));
    }
    int64_t batch = 0;
    std::vector<bool> planned(views_.size());
    for (const auto& chunk : plan.chunks) {
      SequenceView& view = views_[chunk.sequence];
      ASSERT_TRUE(view.running && !view.stalled && !planned[chunk.sequence]);
      ASSERT_GT(chunk.tokens, 0);
      planned[chunk.sequence] = true;
      batch += chunk.tokens;
      view.cached += chunk.tokens;
      ASSERT_LE(view.cached, view.tokens);
      take(chunk.sequence, blocks_of(view.cached) - view.blocks);
    }
    ASSERT_LE(batch, limits_.batch_tokens_max);
    ASSERT_LE(std::ranges::count(views_, true, &SequenceView::running), limits_.sequences_max);
    const auto ready = std::ranges::find(views_, false, &SequenceView::stalled);
    if (ready != views_.end() && ready->running) {
      ASSERT_TRUE(planned[static_cast<size_t>(ready - views_.begin())]) << "the oldest must get on";
    }
    for (size_t i = views_.size(); i-- > 0;) {
      if (!planned[i] || views_[i].cached < views_[i].tokens) continue;
      if (++views_[i].tokens < ends_[i]) {
        views_[i].stalled = random_.chance(0.05);  // Its client has no room for the new text.
        continue;
      }
      free_ += views_[i].blocks;
      views_.erase(views_.begin() + static_cast<long>(i));
      ends_.erase(ends_.begin() + static_cast<long>(i));
    }
  }

  void take(size_t i, int64_t count) {
    if (count <= 0) return;
    free_ -= count;
    views_[i].blocks += count;
    ASSERT_GE(free_, 0);
  }

  SeededRandom random_;
  IterationLimits limits_;
  int64_t blocks_ = 0;
  int64_t free_ = 0;
  std::vector<SequenceView> views_;
  std::vector<int64_t> ends_;
};

TEST(IterationPlan, KeepsItsPromisesOverRandomLives) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    Life(seed).run();
    ASSERT_FALSE(HasFatalFailure());
  }
}

}  // namespace
}  // namespace troupe::inference
