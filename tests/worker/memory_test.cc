// Who is ended when memory runs out.
#include <map>

#include "tests/worker/fixture.h"
#include "worker/memory_monitor.h"

namespace troupe::worker {
namespace {

constexpr bool replaceable = true;

class ChooseVictims : public testing::Test {
 protected:
  Candidate process(uint64_t bytes, bool is_replaceable) {
    return {ProcessId::random(random_), bytes, is_replaceable};
  }
  SeededRandom random_{3};
};

TEST_F(ChooseVictims, TheLargestThatCanBeReplacedGoesFirst) {
  const Candidate small = process(10, replaceable);
  const Candidate large = process(30, replaceable);
  const Candidate precious = process(90, false);
  EXPECT_EQ(choose_victims({small, precious, large}, 20), std::vector{large.process});
}

TEST_F(ChooseVictims, SeveralGoIfOneIsNotEnoughAndNoMoreThanThat) {
  const Candidate small = process(10, replaceable);
  const Candidate middle = process(20, replaceable);
  const Candidate large = process(30, replaceable);
  EXPECT_EQ(choose_victims({small, middle, large}, 45),
            (std::vector{large.process, middle.process}));
}

TEST_F(ChooseVictims, OfThoseThatCannotBeReplacedOneAtMost) {
  const Candidate one = process(10, false);
  const Candidate other = process(20, false);
  EXPECT_EQ(choose_victims({one, other}, 100), std::vector{other.process});
  const Candidate small = process(5, replaceable);
  EXPECT_EQ(choose_victims({one, other, small}, 100), (std::vector{small.process, other.process}));
}

TEST_F(ChooseVictims, ASmallOneIsSparedIfALaterOneIsEnough) {
  const Candidate small = process(5, replaceable);
  const Candidate precious = process(50, false);
  EXPECT_EQ(choose_victims({small, precious}, 40), std::vector{precious.process});
}

TEST_F(ChooseVictims, WhoHasNothingIsLeftAlone) {
  EXPECT_TRUE(choose_victims({process(0, replaceable)}, 10).empty());
  EXPECT_TRUE(choose_victims({process(10, replaceable)}, 0).empty());
}

class FakeUsage final : public MachineUsage {
 public:
  uint64_t memory_bytes() override {  // The monitor alone asks.
    ++looks;
    return 1000;
  }
  uint64_t memory_used_bytes() override { return used; }
  uint64_t process_bytes(uint32_t pid) override { return processes[pid]; }
  uint64_t cpu_used_milli() override { return 0; }

  uint64_t used = 100;
  int looks = 0;
  std::map<uint32_t, uint64_t> processes;
};

class MemoryTest : public WorkerTest {
 protected:
  void SetUp() override {
    WorkerTest::SetUp();
    options.usage = &usage;
  }
  Async<uint32_t> start(ActorId id, int32_t max_restarts, uint64_t bytes) {
    auto request = start_request(id, 1, "run");
    request.spec.max_restarts = max_restarts;
    const auto started = co_await start_actor(std::move(request));
    const uint32_t pid = started.value().pid;
    usage.processes[pid] = bytes;
    co_return pid;
  }

  FakeUsage usage;
  ActorId other = ActorId::random(random);
};

TEST_F(MemoryTest, AShortMachineEndsWhatCanBeStartedAgainAndSaysWhy) {
  with_worker([this]() -> Async<void> {
    co_await start(actor, -1, 300);
    co_await start(other, 0, 600);
    usage.used = 960;
    co_await head->until([this] { return !head->exits.empty(); });
    EXPECT_EQ(head->exits[0].actor, actor);
    const std::string& reason = head->exits[0].reason;
    EXPECT_NE(reason.find("of memory are in use"), std::string::npos) << reason;
    EXPECT_NE(reason.find("largest: "), std::string::npos) << reason;
    usage.used = 500;
    EXPECT_EQ(worker->processes(), 1u);
  });
}

TEST_F(MemoryTest, BelowTheMarkNobodyIsEnded) {
  options.memory_high = 0.97;
  with_worker([this]() -> Async<void> {
    co_await start(actor, -1, 300);
    usage.used = 960;
    const int before = usage.looks;
    co_await head->until([&] { return usage.looks > before + 2; });
    EXPECT_TRUE(head->exits.empty());
  });
}

TEST_F(MemoryTest, SwitchedOffItEndsNobody) {
  options.memory_high = 0;
  with_worker([this]() -> Async<void> {
    co_await start(actor, -1, 300);
    usage.used = 1000;
    const int before = head->beats;
    co_await head->until([&] { return head->beats > before + 3; });
    EXPECT_TRUE(head->exits.empty());
    EXPECT_EQ(usage.looks, 0);
  });
}

}  // namespace
}  // namespace troupe::worker
