// The walk from one process to the next, over answers that a test gives.
#include "client/explainer.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <optional>

#include "tests/sim/simulation.h"

namespace troupe::client {
namespace {

using namespace std::chrono_literals;
using protocol::Explanation;
using protocol::Explanations;
using protocol::WaitsFor;

protocol::ProcessAddress at(uint64_t process) {
  protocol::ProcessAddress address;
  address.process = ProcessId{RawId{1, process}};
  return address;
}
WaitsFor object(uint64_t id, uint64_t owner) {
  return {"object", RawId{2, id}, {}, at(owner)};
}
WaitsFor call(uint64_t id, uint64_t process) {
  return {"call", RawId{3, id}, {}, at(process)};
}
WaitsFor lease(uint64_t id) {
  return {"lease", RawId{4, id}, {}, {}};
}

Explanation told(std::string_view state, std::vector<WaitsFor> waits_for = {}) {
  Explanation made;
  made.state = state;
  made.waits_for = std::move(waits_for);
  return made;
}

class Scripted final : public Witnesses {
 public:
  explicit Scripted(sim::Simulation& simulation) : simulation_(simulation) {}

  Async<Result<Explanations>> objects(protocol::ProcessAddress owner, std::vector<ObjectId> objects,
                                      Instant deadline) override {
    ++questions;
    most_at_once = std::max(most_at_once, objects.size());
    std::vector<RawId> ids(objects.begin(), objects.end());
    co_return co_await answer(owner.process, std::move(ids), deadline);
  }
  Async<Result<Explanations>> calls(protocol::ProcessAddress process, protocol::ExplainCalls asked,
                                    Instant deadline) override {
    ++questions;
    std::vector<RawId> ids(asked.tasks.begin(), asked.tasks.end());
    if (ids.empty()) ids.push_back(asked.actor);
    co_return co_await answer(process.process, std::move(ids), deadline);
  }
  Async<Result<Explanation>> head(RawId id, Instant) override {
    ++questions;
    const auto found = answers.find(id);
    if (found == answers.end()) co_return error(Code::not_found, "nothing with this id");
    co_return found->second;
  }

  std::map<RawId, Explanation> answers;
  std::function<Explanation(RawId)> otherwise;
  std::map<ProcessId, Error> failures;
  std::optional<ProcessId> stands_still;
  size_t questions = 0;
  size_t most_at_once = 0;

 private:
  Async<Result<Explanations>> answer(ProcessId process, std::vector<RawId> ids, Instant deadline) {
    if (stands_still == process) {
      co_await sleep_until(simulation_.clock(), deadline);
      co_return error(Code::deadline_exceeded, "no answer in time");
    }
    if (const auto failure = failures.find(process); failure != failures.end()) {
      co_return failure->second;
    }
    Explanations all;
    for (const RawId id : ids) {
      const auto found = answers.find(id);
      if (found != answers.end()) all.items.push_back(found->second);
      if (found == answers.end() && otherwise) all.items.push_back(otherwise(id));
    }
    co_return all;
  }
  sim::Simulation& simulation_;
};

class ExplainerTest : public testing::Test {
 protected:
  ~ExplainerTest() override { EXPECT_TRUE(simulation.run(scope.stop(), 1min)); }

  std::shared_ptr<WaitGraph> explain(std::vector<WaitsFor> roots, ExplainLimits limits = {}) {
    Explainer explainer{simulation.environment(host), scope, witnesses, limits};
    std::shared_ptr<WaitGraph> graph;
    const Instant began = simulation.clock().now();
    EXPECT_TRUE(simulation.run(into(explainer, std::move(roots), graph), 1min));
    took = simulation.clock().now() - began;
    return graph;
  }
  static const WaitGraph::Node& node_of(const WaitGraph& graph, const WaitsFor& subject) {
    for (const auto& node : graph.nodes()) {
      if (node.subject.id == subject.id && node.subject.kind == subject.kind) return node;
    }
    throw std::runtime_error("it is not in the graph");
  }

  sim::Simulation simulation{1};
  sim::SimHost& host = simulation.network().add_host({"asker", "machine", {}});
  Scope scope{simulation.executor()};
  Scripted witnesses{simulation};
  Duration took{};

 private:
  static Async<void> into(Explainer& explainer, std::vector<WaitsFor> roots,
                          std::shared_ptr<WaitGraph>& out) {
    out = co_await explainer.explain(std::move(roots));
  }
};

TEST_F(ExplainerTest, FollowsAChainToItsEnd) {
  witnesses.answers[object(1, 1).id] = told(wait_state::sent, {call(1, 2)});
  witnesses.answers[call(1, 2).id] = told(wait_state::waiting, {object(2, 2)});
  witnesses.answers[object(2, 2).id] = told(wait_state::queued, {lease(1)});
  witnesses.answers[lease(1).id] = told("pending");
  const auto graph = explain({object(1, 1)});
  ASSERT_EQ(graph->nodes().size(), 4u);
  EXPECT_EQ(graph->nodes()[3].said.state, "pending");
  EXPECT_EQ(graph->lines().back().depth, 3u);
  EXPECT_EQ(witnesses.questions, 4u);
  EXPECT_TRUE(graph->deadlock().empty());
  EXPECT_FALSE(graph->is_cut());
}

TEST_F(ExplainerTest, AsksAboutEachThingOnceInACircle) {
  witnesses.answers[call(1, 1).id] = told(wait_state::waiting, {object(2, 1)});
  witnesses.answers[object(2, 1).id] = told(wait_state::sent, {call(2, 1)});
  witnesses.answers[call(2, 1).id] = told(wait_state::queued, {call(1, 1)});
  const auto graph = explain({call(1, 1)});
  EXPECT_EQ(witnesses.questions, 3u);
  EXPECT_EQ(graph->deadlock().size(), 3u);
}

TEST_F(ExplainerTest, AsksAProcessForManyThingsInOneMessage) {
  std::vector<WaitsFor> many;
  for (uint64_t i = 1; i <= 100; ++i) many.push_back(object(i, 5));
  witnesses.answers[call(1, 1).id] = told(wait_state::waiting, many);
  witnesses.otherwise = [](RawId) { return told("ready"); };
  EXPECT_EQ(explain({call(1, 1)})->nodes().size(), 101u);
  EXPECT_EQ(witnesses.questions, 2u);
  EXPECT_EQ(witnesses.most_at_once, 100u);
}

TEST_F(ExplainerTest, AProcessThatDoesNotAnswerIsTheReasonAndTheHeadSaysWhereItIs) {
  witnesses.answers[object(1, 1).id] = told(wait_state::sent, {call(1, 2)});
  witnesses.stands_still = at(2).process;
  auto process = told("alive");
  process.why = "it hosts actor left on node worker-1, which is suspect";
  witnesses.answers[at(2).process] = process;
  const auto graph = explain({object(1, 1)});
  const auto& silent = node_of(*graph, call(1, 2));
  EXPECT_EQ(silent.answer, WaitGraph::Answer::silent);
  EXPECT_NE(silent.said.why.find("does not answer: no answer in time"), std::string::npos);
  EXPECT_NE(graph->text().find("which is suspect"), std::string::npos) << graph->text();
  EXPECT_LT(took, 2s);
}

TEST_F(ExplainerTest, AProcessThatIsGoneAndThatNobodyKnowsIsSaidToBe) {
  witnesses.failures[at(2).process] = error(Code::unavailable, "the connection was refused");
  const auto graph = explain({object(1, 2)});
  EXPECT_NE(graph->text().find("does not answer: the connection was refused"), std::string::npos);
  EXPECT_NE(graph->text().find("nothing with this id"), std::string::npos) << graph->text();
}

TEST_F(ExplainerTest, AnAnswerForFewerThingsIsNoAnswer) {
  const auto graph = explain({object(1, 1), object(2, 1)});
  EXPECT_EQ(graph->nodes()[0].answer, WaitGraph::Answer::silent);
  EXPECT_NE(graph->text().find("fewer things"), std::string::npos);
}

TEST_F(ExplainerTest, AChainWithoutEndIsCutByItsDepth) {
  witnesses.otherwise = [](RawId id) {
    return told(wait_state::sent, {object(id.low + 1, id.low % 2 + 1)});
  };
  const auto graph = explain({object(1, 1)}, {.depth_max = 10});
  EXPECT_TRUE(graph->is_cut());
  EXPECT_EQ(witnesses.questions, 10u);
  EXPECT_NE(graph->text().find("cut short"), std::string::npos);
  EXPECT_TRUE(graph->deadlock().empty());
}

TEST_F(ExplainerTest, AThicketIsCutByItsQuestionsAndItsNodes) {
  witnesses.otherwise = [](RawId id) {
    std::vector<WaitsFor> next;
    for (uint64_t i = 1; i <= 8; ++i) next.push_back(object(id.low * 8 + i, id.low * 8 + i));
    return told(wait_state::waiting, next);
  };
  EXPECT_TRUE(explain({object(1, 1)}, {.questions_max = 20})->is_cut());
  EXPECT_EQ(witnesses.questions, 20u);
  const auto graph = explain({object(1, 1)}, {.nodes_max = 100});
  EXPECT_TRUE(graph->is_cut());
  EXPECT_LE(graph->nodes().size(), 100u);
}

TEST_F(ExplainerTest, ManyThatStandStillCostTheBudgetAtMost) {
  // Each that it hears of is at a process that does not answer, and the next one is known there.
  witnesses.stands_still = at(7).process;
  witnesses.otherwise = [](RawId) { return told("ready"); };
  std::vector<WaitsFor> roots;
  for (uint64_t i = 1; i <= 50; ++i) roots.push_back(object(i, 7));
  (void)explain(roots, {.asked_max = 1, .budget = 3s});
  EXPECT_LE(took, 3s);
}

}  // namespace
}  // namespace troupe::client
