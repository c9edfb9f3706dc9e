// Why something waits, as programs and operators are told; and waits that could never end.
#include <gtest/gtest.h>
#include <signal.h>

#include <boost/json.hpp>
#include <fstream>
#include <thread>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class WhySystem : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster = new Cluster;
    const Outcome started = cluster->up({"--workers", "1", "--cpus", "2", "--gateway-port", "-1"});
    ASSERT_EQ(started.status, 0) << started.err;
  }
  static void TearDownTestSuite() {
    delete cluster;
    cluster = nullptr;
  }
  static void check(const std::string& name) {
    const Outcome outcome = cluster->program("why", {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  }
  static Cluster* cluster;
};
Cluster* WhySystem::cluster = nullptr;

TEST_F(WhySystem, ATaskWaitsForResources) {
  check("resources");
}
TEST_F(WhySystem, ATaskWaitsForItsArguments) {
  check("dependency");
}
TEST_F(WhySystem, ACallWaitsBehindAnotherInTheMailbox) {
  check("mailbox");
}
TEST_F(WhySystem, ACallWaitsForItsActorToRestart) {
  check("restart");
}
TEST_F(WhySystem, ACallWaitsForItsActorToBePlaced) {
  check("placement");
}
TEST_F(WhySystem, ATaskWaitsToBeTriedAgain) {
  check("back_off");
}
TEST_F(WhySystem, DeadlinesAreShown) {
  check("deadlines");
}
TEST_F(WhySystem, DeadlinesOfWaitsForItemsAndForRoomAreShown) {
  check("client_deadlines");
}
TEST_F(WhySystem, AProcessThatDoesNotAnswerIsNamed) {
  check("silent_process");
}
TEST_F(WhySystem, OfTwoActorsThatWaitForEachOtherOneFailsAndBothGoOn) {
  check("deadlock");
}
TEST_F(WhySystem, OfACircleOfLightActorsOneFails) {
  check("deadlock_of_many");
}
TEST_F(WhySystem, AnActorThatWaitsForItselfFails) {
  check("deadlock_with_itself");
}
TEST_F(WhySystem, CoroutinesThatMayNotOverlapFailAsOthersDo) {
  check("deadlock_of_coroutines");
}
TEST_F(WhySystem, CoroutinesThreadsAndTimeOutsAreNoDeadlock) {
  check("no_deadlock");
}
TEST_F(WhySystem, ActorsMayAskWhy) {
  check("inside");
}
TEST_F(WhySystem, ManyThreadsMayAskAtOnce) {
  check("many_threads");
}

// A program that waits until its gate is removed. What it logs is in a file.
class BlockedProgram {
 public:
  explicit BlockedProgram(Cluster& cluster, const std::string& check = "blocked",
                          const std::vector<std::string>& variables = {})
      : gate_(cluster.folder() / "gate"), log_(cluster.folder() / "log") {
    std::ofstream{gate_}.flush();
    auto all = cluster.variables();
    all.insert(all.end(), variables.begin(), variables.end());
    const std::string program = std::string(TROUPE_BIN) + "/why";
    thread_ = std::thread([this, all, program, check] {
      outcome_ =
          run({"/bin/sh", "-c", R"(exec "$0" "$1" "$2" 2>"$3")", program, check, gate_, log_}, all);
    });
    began_ = eventually([&] { return std::filesystem::file_size(gate_) > 0; });
  }
  ~BlockedProgram() {
    if (thread_.joinable()) (void)finish();
  }
  bool began() const { return began_; }
  std::string log() const {
    std::ifstream file{log_};
    return {std::istreambuf_iterator<char>(file), {}};
  }
  int finish() {
    std::filesystem::remove(gate_);
    thread_.join();
    return outcome_.status;
  }

 private:
  const std::filesystem::path gate_;
  const std::filesystem::path log_;
  Outcome outcome_;
  bool began_ = false;
  std::thread thread_;
};

TEST_F(WhySystem, TheToolExplainsActorsAndTheirCalls) {
  BlockedProgram program{*cluster};
  ASSERT_TRUE(program.began());
  Outcome told;
  EXPECT_TRUE(eventually([&] {
    told = cluster->troupe({"why", "asked"});
    return told.out.find("behind Desk.hold of asked") != std::string::npos;
  })) << told.out
      << told.err;
  EXPECT_NE(told.out.find("actor asked (Desk)"), std::string::npos) << told.out;
  EXPECT_NE(told.out.find("it lives on node worker-0, which is alive"), std::string::npos);
  EXPECT_NE(told.out.find("1 of its calls have begun, 1 wait in its mailbox"), std::string::npos);

  const Outcome as_json = cluster->troupe({"why", "asked", "-o", "json"});
  const auto value = boost::json::parse(as_json.out).as_object();
  EXPECT_TRUE(value.at("complete").as_bool());
  EXPECT_EQ(value.at("deadlock").as_string(), "");
  // The queued call's id is its result's: the object that the driver waits for.
  std::string call;
  for (const auto& step : value.at("steps").as_array()) {
    if (step.at("state").as_string() == "queued") call = step.at("id").as_string();
  }
  ASSERT_EQ(call.size(), 32u) << as_json.out;
  const Outcome of_object = cluster->troupe({"why", call});
  EXPECT_EQ(of_object.status, 0) << of_object.err;
  EXPECT_NE(of_object.out.find("object " + call + ": sent"), std::string::npos) << of_object.out;
  EXPECT_NE(of_object.out.find("queued: number 1 in the mailbox"), std::string::npos);

  EXPECT_EQ(program.finish(), 0) << program.log();
}

TEST_F(WhySystem, TheToolExplainsNodesAndJobsAndWhatItDoesNotKnow) {
  const Outcome node = cluster->troupe({"why", "worker-0"});
  EXPECT_NE(node.out.find("node worker-0"), std::string::npos) << node.out << node.err;
  EXPECT_NE(node.out.find("its heartbeats arrive"), std::string::npos) << node.out;
  const Outcome unknown = cluster->troupe({"why", "nobody"});
  EXPECT_EQ(unknown.status, 3);
  EXPECT_NE(unknown.err.find("'nobody'"), std::string::npos) << unknown.err;
  const Outcome no_such = cluster->troupe({"why", "00112233445566778899aabbccddeeff"});
  EXPECT_EQ(no_such.status, 3) << no_such.out;
}

TEST_F(WhySystem, AWaitThatTakesLongIsLogged) {
  BlockedProgram program{*cluster, "blocked", {"TROUPE_BLOCKED_LOG_S=1"}};
  ASSERT_TRUE(program.began());
  EXPECT_TRUE(
      eventually([&] { return program.log().find("wait_blocked how=get") != std::string::npos; }));
  EXPECT_NE(program.log().find("behind Desk.hold of asked"), std::string::npos) << program.log();
  // Again once it took twice as long.
  EXPECT_TRUE(eventually([&] {
    const std::string log = program.log();
    return log.find("wait_blocked") != log.rfind("wait_blocked");
  }));
  EXPECT_EQ(program.finish(), 0) << program.log();
}

TEST(WhySystemOfTwoNodes, ANodeThatStandsStillIsNamed) {
  Cluster cluster;
  ASSERT_EQ(cluster
                .up({"--workers", "2", "--cpus", "2", "--gateway-port", "-1", "--resource",
                     "worker-1:far=1"})
                .status,
            0);
  BlockedProgram program{cluster, "blocked_far"};
  ASSERT_TRUE(program.began());
  const int worker = std::atoi(cluster.describe("worker-1", "pid").c_str());
  const int actor = std::atoi(cluster.describe("asked", "pid").c_str());
  const std::string id = cluster.describe("asked", "id");
  ASSERT_GT(worker, 0);
  ASSERT_GT(actor, 0);
  ASSERT_EQ(::kill(worker, SIGSTOP), 0);
  ASSERT_EQ(::kill(actor, SIGSTOP), 0);
  // At first its processes do not answer; then the head has missed heartbeats; then it gives the
  // node up, and the actor with it. On a slow machine a question may come too late for the second.
  Outcome told;
  const auto has = [&](const std::string& part) {
    return told.out.find(part) != std::string::npos;
  };
  told = cluster.troupe({"why", id});
  const bool is_silent = has("does not answer: ") || has("actor asked (Desk) " + id + ": dead");
  const bool is_named = eventually([&] {
    told = cluster.troupe({"why", id});
    return has("node worker-1, which is suspect: it has said nothing for ") || has(": dead");
  });
  const Outcome of_node = cluster.troupe({"why", "worker-1"});
  ASSERT_EQ(::kill(actor, SIGCONT), 0);
  ASSERT_EQ(::kill(worker, SIGCONT), 0);
  EXPECT_TRUE(is_silent);
  EXPECT_TRUE(is_named) << told.out << told.err;
  EXPECT_EQ(of_node.status, 0) << of_node.err;
  // The head may have given the node up by now, and the actor with it.
  (void)program.finish();
}

}  // namespace
}  // namespace troupe::test
