// The SDK and its examples over a real cluster of two workers.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class SdkSystem : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster = new Cluster;
    const Outcome started = cluster->up();
    ASSERT_EQ(started.status, 0) << started.err;
  }
  static void TearDownTestSuite() {
    delete cluster;
    cluster = nullptr;
  }
  static void check(const std::string& name) {
    const Outcome outcome = cluster->program("checks", {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  }
  static Cluster* cluster;
};
Cluster* SdkSystem::cluster = nullptr;

TEST_F(SdkSystem, HelloTask) {
  const Outcome outcome = cluster->program("hello_task");
  EXPECT_EQ(outcome.out, "Hello, world! Hello, world! \n") << outcome.err;
}

TEST_F(SdkSystem, CounterActor) {
  const Outcome outcome = cluster->program("counter_actor");
  EXPECT_EQ(outcome.out, "value: 5060\nerror: a counter only grows\n") << outcome.err;
}

TEST_F(SdkSystem, CheckpointedActor) {
  const Outcome outcome = cluster->program("checkpointed_actor");
  EXPECT_TRUE(outcome.out.starts_with("checkpoint 1 has ")) << outcome.out << outcome.err;
  EXPECT_TRUE(outcome.out.ends_with("\"to\" after the crash: 2\n")) << outcome.out << outcome.err;
}

TEST_F(SdkSystem, AsyncActor) {
  const Outcome outcome = cluster->program("async_actor");
  EXPECT_EQ(outcome.out, "sums: 670\nseveral at once: true\nhello (later)\n") << outcome.err;
}

TEST_F(SdkSystem, NamedActor) {
  const Outcome outcome = cluster->program("named_actor");
  EXPECT_TRUE(outcome.out.starts_with("the same: true\ncount: 1\ncrash: ")) << outcome.err;
  EXPECT_TRUE(outcome.out.ends_with("\nincarnation: 2\ncells: 7000\n"))
      << outcome.out << outcome.err;
}

TEST_F(SdkSystem, TaskControl) {
  const Outcome outcome = cluster->program("task_control");
  EXPECT_TRUE(
      outcome.out.starts_with("runs: 3\ntimeout: deadline_exceeded\ncancel: cancelled\n"
                              "nested: 21\nunread failures: 1\n"))
      << outcome.out << outcome.err;
  EXPECT_NE(outcome.out.find("unicorns"), std::string::npos) << outcome.out;
}

TEST_F(SdkSystem, WordStream) {
  const Outcome outcome = cluster->program("word_stream");
  EXPECT_EQ(outcome.out, "in chunks: 600000\n6 words, the longest: stream\nended at its limit\n")
      << outcome.err;
}

TEST_F(SdkSystem, ParallelPi) {
  const Outcome outcome = cluster->program("parallel_pi", {"16", "100000"});
  EXPECT_TRUE(outcome.out.starts_with("pi is about 3.14")) << outcome.out << outcome.err;
}

TEST_F(SdkSystem, WordCountOverFiles) {
  std::vector<std::string> files;
  for (int i = 0; i < 3; ++i) {
    const auto path = cluster->folder() / ("text" + std::to_string(i));
    std::ofstream{path} << "the cat and the dog and the bird\n";
    files.push_back(path);
  }
  const Outcome outcome = cluster->program("word_count", files);
  EXPECT_TRUE(outcome.out.starts_with("the 9\nand 6\nbird 3\n")) << outcome.out << outcome.err;
  const Outcome missing = cluster->program("word_count", {"/no/such/file"});
  EXPECT_EQ(missing.status, 1);
  EXPECT_NE(missing.err.find("not_found: "), std::string::npos) << missing.err;
}

TEST_F(SdkSystem, TasksTakeAndGiveValuesAndRefs) {
  check("tasks");
}
TEST_F(SdkSystem, ErrorsKeepCodeMessageAndPlace) {
  check("errors");
}
TEST_F(SdkSystem, ObjectsTravelBetweenNodes) {
  check("objects");
}
TEST_F(SdkSystem, WaitAndCancel) {
  check("wait_and_cancel");
}
TEST_F(SdkSystem, CoroutinesAwaitRefs) {
  check("coroutine");
}
TEST_F(SdkSystem, TasksSubmitTasks) {
  check("nested");
}
TEST_F(SdkSystem, AProgramThatATaskStartsIsAJobOfItsOwn) {
  check("subprogram");
}
TEST_F(SdkSystem, AnActorsConstructorFindsItsRefsAtEachStart) {
  check("constructor_refs");
}
TEST_F(SdkSystem, ActorsKeepOrderNamesAndRefs) {
  check("actor");
}
TEST_F(SdkSystem, AKilledActorRestartsWithinItsLimit) {
  check("restart");
}
TEST_F(SdkSystem, TenThousandCallsOfEachOfEightThreadsAreAnsweredInOrder) {
  check("many_callers");
}
TEST_F(SdkSystem, LargeResultsComeThroughTheStore) {
  check("large_results");
}
TEST_F(SdkSystem, RefsAmongPlainArgumentsKeepTheOrderOfCalls) {
  check("refs_in_order");
}
TEST_F(SdkSystem, RefsInsideAResultOutliveIt) {
  check("nested_refs");
}
TEST_F(SdkSystem, CallsOfADeadActorAreUnknown) {
  check("callee_dies");
}
TEST_F(SdkSystem, CallsMadeWhileTheirActorDiesEnd) {
  check("calls_meet_death");
}
TEST_F(SdkSystem, AnActorSurvivesItsCaller) {
  check("caller_dies");
}
TEST_F(SdkSystem, ASessionEndsWithCallsUnderWay) {
  check("close_in_flight");
}
TEST_F(SdkSystem, AKilledTaskIsReportedAsUnknown) {
  check("task_death");
}

// Of caller and module, in errors of calls that would not be understood.
TEST_F(SdkSystem, SignaturesThatDifferAreBothNamed) {
  const auto lines = [](const std::string& program, const std::string& name) {
    const Outcome outcome = cluster->program(program, {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
    return outcome.out;
  };
  lines("signatures", "create");
  const std::string called = lines("signatures_other", "call");
  const std::string by_hand = lines("signatures", "by_hand");
  const auto expect = [](const std::string& text, const std::string& what,
                         const std::string& caller, const std::string& module) {
    const std::string line = what +
                             ": the caller's and the module's signatures differ: called as " +
                             caller + ", the module has " + module + ": build both";
    EXPECT_NE(text.find(line), std::string::npos) << line << "\n" << text;
  };
  expect(called, "method", "double (double)", "int (int)");
  expect(called, "struct", "double (Point{double, double})", "int (Point{int, int})");
  expect(called, "generator", "troupe::Generator<double> (double)", "troupe::Generator<int> (int)");
  expect(called, "inside", "double (double)", "int (int)");
  expect(called, "many", "double (double)", "int (int)");
  expect(by_hand, "task", "std::string (std::string)", "int (int)");
  expect(by_hand, "task generator", "troupe::Generator<std::string> (std::string)",
         "troupe::Generator<int> (int)");
  EXPECT_NE(by_hand.find("called as void (std::string), the module has void (int)"),
            std::string::npos)
      << by_hand;
}

TEST(SdkSystemOfOneCpu, TasksThatWaitLendTheirCpu) {
  Cluster cluster;
  ASSERT_EQ(cluster.up({"--workers", "1", "--cpus", "1", "--gateway-port", "-1"}).status, 0);
  for (const char* name : {"nested", "arguments_first"}) {
    const Outcome outcome = cluster.program("checks", {name});
    EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.err << outcome.out;
  }
}

TEST_F(SdkSystem, DetachedActorsOutliveTheirJob) {
  EXPECT_EQ(cluster->program("checks", {"detached"}).out, "1\nok\n");
  EXPECT_EQ(cluster->program("checks", {"detached"}).out, "2\nok\n");
}

}  // namespace
}  // namespace troupe::test
