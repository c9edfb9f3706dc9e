// The same heads under faults drawn by a seed: whoever leads has all that was promised until then,
// and once the faults stop all heads agree. TROUPE_SEEDS: how many (default 40).
#include <cstdlib>

#include "tests/head/candidate_fixture.h"

namespace troupe::head {
namespace {

constexpr size_t promises_max = 600;  // The head forgets jobs that ended long ago.

size_t seeds_wanted() {
  const char* text = std::getenv("TROUPE_SEEDS");
  return text != nullptr ? static_cast<size_t>(std::atoi(text)) : 40;
}

class CandidateFaults : public CandidateTest {
 public:
  explicit CandidateFaults(uint64_t seed) : CandidateTest(seed) {}
  void TestBody() override {}

  // What went wrong first; empty: nothing.
  std::string run(Duration faults_for) {
    SetUp();
    if (simulation.random().below(2) == 0) coordinator_patience = 150ms;
    model.on_change([this](const LeadRecord& record) { note(record); });
    for (size_t i = 0; i < heads; ++i) start(i);
    for (int i = 0; i < 3; ++i) spawn(scope, ask_for_promises());
    simulation.on_step([this] { look(); });
    const Instant end = simulation.clock().now() + faults_for;
    while (simulation.clock().now() < end && wrong_.empty()) {
      disturb();
      simulation.run_for(std::chrono::milliseconds(10 + simulation.random().below(700)));
      bring_back();
    }
    calm();
    const bool settled = simulation.run_until(
        [&] { return leader() && in_sync().size() == heads && all_hashes_agree_now(); }, 30s);
    if (wrong_.empty() && !settled) wrong_ = "not settled after 30 s: " + describe();
    if (wrong_.empty() && !all_kept()) wrong_ = "a promise is lost at the end";
    asks_ = false;
    simulation.on_step({});
    TearDown();
    return wrong_;
  }
  size_t promises() const { return promised.size(); }
  uint64_t terms() const { return term_; }

 private:
  void note(const LeadRecord& record) {
    if (record.term < term_) wrong_ = "a term goes back";
    if (record.term == term_ && record.leader != leader_) wrong_ = "two heads lead in one term";
    term_ = record.term;
    leader_ = record.leader;
  }
  // After each instant.
  void look() {
    const auto leads = leader();
    if (!leads || !wrong_.empty()) return;
    const uint64_t term = machines[*leads]->candidate->replicator()->term();
    if (std::exchange(looked_at_, term) == term) return;
    if (!all_kept()) {
      wrong_ = "at " + std::to_string(simulation.clock().now().time_since_epoch() / 1ms) +
               " ms: " + name_of(*leads) + " leads and lacks a promise";
    }
  }
  std::string describe() const {
    std::string text;
    for (size_t i = 0; i < heads; ++i) {
      const Machine& machine = *machines[i];
      text += name_of(i) + (machine.candidate == nullptr ? " is down" : " is up") +
              (machine.ended ? ", " + machine.ended->to_string() : "") + "; ";
    }
    for (const std::string& name : in_sync()) text += name + " ";
    return text + "in sync";
  }
  bool all_hashes_agree_now() {
    return simulation.clock().now() > calm_since_ + 3s && all_hashes_agree();
  }

  void disturb() {
    Random& random = simulation.random();
    const size_t i = random.below(heads);
    const size_t other = (i + 1 + random.below(heads - 1)) % heads;
    Machine& machine = *machines[i];
    const std::string here = "machine-" + name_of(i);
    const std::string there = "machine-" + name_of(other);
    switch (random.below(15)) {
      case 0:
      case 1:
        if (machine.candidate) kill(i);
        break;
      case 2:
        if (machine.candidate && !machine.host->is_paused()) machine.host->pause();
        break;
      case 3:
      case 4:
        for (const auto& one : machines) {
          if (one->host != nullptr && one->host->is_paused()) one->host->resume();
        }
        break;
      case 5:
        simulation.network().partition(here, there);
        break;
      case 6:
        simulation.network().cut(here, there, sim::Fault::partition_one_way);
        break;
      case 7:
        simulation.network().partition("driver", here);
        break;
      case 8:
        if (machine.candidate) machine.coordinator->cut(true, true);
        break;
      case 9:
        if (machine.candidate) machine.coordinator->cut(false, true);
        break;
      case 10:
        if (machine.candidate) machine.coordinator->set_latency(coordinator_patience * 2);
        break;
      case 11:
        if (const auto leads = leader()) {
          Machine& leading = *machines[*leads];
          spawn(*leading.scope, hand_over(leading.candidate.get()));
        }
        break;
      case 12:
        machine.store.fail_next_commit(error(Code::outcome_unknown, "the disk failed"));
        break;
      default:
        simulation.network().heal();
        for (const auto& one : machines) {
          if (!one->candidate) continue;
          one->coordinator->cut(false, false);
          one->coordinator->set_latency(2ms);
        }
    }
  }
  // As the keeper does.
  void bring_back() {
    for (size_t i = 0; i < heads; ++i) {
      Machine& machine = *machines[i];
      if (machine.host != nullptr && machine.host->is_paused()) continue;
      if (machine.candidate && machine.ended) kill(i);
      if (machine.candidate || simulation.random().below(3) == 0) continue;
      machine.store.crash();
      start(i);
    }
  }
  void calm() {
    simulation.network().heal();
    for (size_t i = 0; i < heads; ++i) {
      Machine& machine = *machines[i];
      if (machine.host->is_paused()) machine.host->resume();
      if (machine.candidate) kill(i);
      machine.store.crash();
      start(i);
    }
    calm_since_ = simulation.clock().now();
  }

  // Ends with its scope if the head does not live that long.
  static Async<void> hand_over(Candidate* candidate) {
    protocol::TransferLead to_any;
    (void)co_await candidate->replicator()->hand_over(std::move(to_any));
  }

  Async<void> ask_for_promises() {
    size_t at = 0;
    while (asks_ && promised.size() < promises_max) {
      auto outcome = std::make_shared<std::optional<Result<JobId>>>();
      co_await begin_job(at, 2s, outcome);
      if (*outcome && **outcome) {
        promised.insert(***outcome);
      } else {
        at = (at + 1) % heads;
      }
      co_await sleep_for(client->clock(),
                         std::chrono::milliseconds(20 + simulation.random().below(200)));
    }
  }

  std::string wrong_;
  std::string leader_;
  uint64_t term_ = 0;
  uint64_t looked_at_ = 0;
  Instant calm_since_;
  bool asks_ = true;
};

TEST(CandidateSeeds, WhoeverLeadsHasAllThatWasPromised) {
  size_t promises = 0;
  uint64_t terms = 0;
  const size_t seeds = seeds_wanted();
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    CandidateFaults heads_of_seed{seed};
    const std::string wrong = heads_of_seed.run(60s);
    EXPECT_EQ(wrong, "") << "seed " << seed;
    promises += heads_of_seed.promises();
    terms += heads_of_seed.terms();
  }
  // It was no idle run.
  EXPECT_GT(promises, seeds * 50);
  EXPECT_GT(terms, seeds * 5);
  RecordProperty("promises", std::to_string(promises));
  RecordProperty("terms", std::to_string(terms));
}

}  // namespace
}  // namespace troupe::head
