// Traces: what is read, and what is refused; and that a replay is exact.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "scheduler/replay/replay.h"

namespace troupe::scheduler {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;

TEST(Trace, IsReadByTheNamesOfItsColumns) {
  const auto trace = read_trace(
      "vc,num_gpus,duration_s,submit_s\r\n"
      "b,2,10.0,107\n"
      "\n"
      "a,1,5,100\n");
  ASSERT_TRUE(trace) << trace.error().to_string();
  ASSERT_EQ(trace->size(), 2U);
  EXPECT_EQ((*trace)[0].group, "a");
  EXPECT_EQ((*trace)[0].submitted, seconds(0));
  EXPECT_EQ((*trace)[1].submitted, seconds(7));
  EXPECT_EQ((*trace)[1].run_time, seconds(10));
  EXPECT_EQ((*trace)[1].gpu_milli, 2000);
}

TEST(Trace, OfAlibabaHasShares) {
  const auto trace = read_trace(
      "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,"
      "deletion_time,scheduled_time\n"
      "pod-0,12000,16384,1,460,,LS,Running,100,500,150\n"
      "pod-1,6000,8192,2,1000,T4,BE,Succeeded,90,190,\n"
      "pod-2,6000,8192,0,0,,BE,Pending,95,,\n");
  ASSERT_TRUE(trace) << trace.error().to_string();
  ASSERT_EQ(trace->size(), 2U);  // The last never ran.
  EXPECT_EQ((*trace)[0].gpu_milli, 2000);
  EXPECT_EQ((*trace)[0].run_time, seconds(100));
  EXPECT_EQ((*trace)[1].gpu_milli, 460);
  EXPECT_EQ((*trace)[1].submitted, seconds(10));
  EXPECT_EQ((*trace)[1].run_time, seconds(350));
}

TEST(Trace, SaysWhichLineIsWrong) {
  const auto why = [](const char* text) {
    const auto trace = read_trace(text);
    EXPECT_FALSE(trace);
    return trace ? "" : trace.error().message();
  };
  const std::string head = "submit_s,duration_s,num_gpus,id\n";
  EXPECT_THAT(why(""), HasSubstr("empty"));
  EXPECT_THAT(why("submit_s,duration_s\n"), HasSubstr("column num_gpus is missing"));
  EXPECT_THAT(why("submit_s,duration_s,num_gpus,colour\n"),
              HasSubstr("line 1 of the trace: unknown column 'colour'"));
  EXPECT_THAT(why("submit_s,duration_s,num_gpus,submit_s\n"), HasSubstr("submit_s twice"));
  EXPECT_THAT(why((head + "1,2,3,a\n-1,2,3,b\n").c_str()),
              HasSubstr("line 3 of the trace: submit_s is -1"));
  EXPECT_THAT(why((head + "1,-2,3,a\n").c_str()), HasSubstr("duration_s is -2"));
  EXPECT_THAT(why((head + "1,2,x,a\n").c_str()), HasSubstr("num_gpus is 'x', which is no number"));
  EXPECT_THAT(why((head + "1,2,,a\n").c_str()), HasSubstr("num_gpus is ''"));
  EXPECT_THAT(why((head + "1,2,3\n").c_str()), HasSubstr("line 2 of the trace: 3 columns instead"));
  EXPECT_THAT(why((head + "1,2,3,a\n1,2,3,a\n").c_str()),
              HasSubstr("line 3 of the trace: id a is there twice"));
  EXPECT_THAT(why((head + "99999999999999999999,2,3,a\n").c_str()), HasSubstr("no number"));
}

std::vector<TraceJob> some_jobs(uint64_t seed) {
  SeededRandom random{seed};
  std::vector<TraceJob> jobs;
  Duration at{};
  for (int i = 0; i < 400; ++i) {
    TraceJob job;
    at += seconds(random.below(200));
    job.submitted = i == 0 ? Duration{} : at;
    job.run_time = seconds(random.below(5000));
    job.gpu_milli = static_cast<int64_t>(random.below(20)) * whole_gpu_milli;
    jobs.push_back(job);
  }
  return jobs;
}

TEST(Replay, IsTheSameEachTime) {
  for (const std::string_view name : policy_names) {
    const auto log_of = [&] {
      std::string log;
      ReplayOptions options;
      options.policy = make_policy(name).value();
      options.nodes = 4;
      options.on_decision = [&log](const Decision& decision, Instant now) {
        log += fmt::format("{} {}\n", now.time_since_epoch().count(), to_string(decision));
      };
      (void)replay(some_jobs(1), std::move(options));
      return log;
    };
    EXPECT_EQ(log_of(), log_of()) << name;
  }
}

TEST(Replay, EndsEachJobOnceWhateverThePolicy) {
  for (const std::string_view name : policy_names) {
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const auto jobs = some_jobs(seed);
      ReplayOptions options;
      options.policy = make_policy(name).value();
      options.nodes = 4;
      const ReplayResult result = replay(jobs, std::move(options));
      EXPECT_EQ(result.jobs, jobs.size()) << name;
      EXPECT_EQ(result.infeasible, 0U);
      EXPECT_LE(result.utilisation, 1.0);
    }
  }
}

TEST(Replay, CountsWhatIsTooLargeApart) {
  TraceJob small;
  small.run_time = seconds(10);
  small.gpu_milli = 1000;
  TraceJob large = small;
  large.gpu_milli = 9000;
  ReplayOptions options;
  options.gpus_per_node = 8;
  const ReplayResult result = replay({small, large}, std::move(options));
  EXPECT_EQ(result.jobs, 1U);
  EXPECT_EQ(result.infeasible, 1U);
}

TEST(Replay, ChargesForRestarts) {
  TraceJob first;
  first.run_time = seconds(100);
  first.gpu_milli = 1000;
  TraceJob second = first;
  second.submitted = seconds(10);
  second.run_time = seconds(20);
  ReplayOptions options;
  options.policy = make_srtf_policy();
  options.gpus_per_node = 1;
  options.restart_cost = seconds(30);
  const ReplayResult result = replay({first, second}, std::move(options));
  EXPECT_EQ(result.preemptions, 1U);
  EXPECT_DOUBLE_EQ(result.jct_max_s, 100 + 20 + 30);
  EXPECT_DOUBLE_EQ(result.lost_gpu_s, 30);
  EXPECT_DOUBLE_EQ(result.makespan_s, 150);
}

}  // namespace
}  // namespace troupe::scheduler
