#include "head/job_environment.h"

#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

using protocol::JobEnvironment;

protocol::Package module_of(char digit, const std::string& path = "/bin/module.so") {
  return {std::string(64, digit), "module", path, 100};
}
protocol::Package folder_of(char digit) {
  return {std::string(64, digit), "working_dir", "/work", 100};
}

Code check_variable(const std::string& name, const std::string& value) {
  JobEnvironment environment;
  environment.variables.push_back({name, value});
  return code_of(check(environment));
}

TEST(JobEnvironmentCheck, VariablesAreBounded) {
  EXPECT_EQ(check_variable("NAME", "any = value\n"), Code::ok);
  EXPECT_EQ(check_variable("LD_PRELOAD", "/lib/x.so"), Code::ok);
  EXPECT_EQ(check_variable("", "x"), Code::invalid);
  EXPECT_EQ(check_variable("A=B", "x"), Code::invalid);
  EXPECT_EQ(check_variable(std::string("A\0B", 3), "x"), Code::invalid);
  EXPECT_EQ(check_variable("A", std::string("\0", 1)), Code::invalid);
  EXPECT_EQ(check_variable(std::string(257, 'a'), "x"), Code::invalid);
  EXPECT_EQ(check_variable("TROUPE_STATE", "x"), Code::invalid);
  EXPECT_EQ(check_variable("CUDA_VISIBLE_DEVICES", "0"), Code::invalid);
  EXPECT_EQ(check_variable("A", std::string((128 << 10) - 1, 'x')), Code::ok);
  EXPECT_EQ(check_variable("A", std::string(128 << 10, 'x')), Code::invalid);
  JobEnvironment many;
  for (int i = 0; i < 1000; ++i) many.variables.push_back({"A" + std::to_string(i), ""});
  EXPECT_EQ(code_of(check(many)), Code::ok);
  many.variables.push_back({"B", ""});
  EXPECT_EQ(code_of(check(many)), Code::invalid);
  many.variables = {{"A", "1"}, {"A", "1"}};
  EXPECT_EQ(code_of(check(many)), Code::invalid);
}

TEST(JobEnvironmentCheck, PackagesAreNamedByTheirContent) {
  const auto check_one = [](protocol::Package package) {
    JobEnvironment environment;
    environment.packages.push_back(std::move(package));
    return code_of(check(environment));
  };
  EXPECT_EQ(check_one(module_of('a')), Code::ok);
  EXPECT_EQ(check_one({"../../etc/passwd", "module", "/a", 1}), Code::invalid);
  EXPECT_EQ(check_one({std::string(64, 'a'), "else", "/a", 1}), Code::invalid);
  EXPECT_EQ(check_one({std::string(64, 'a'), "module", "", 1}), Code::invalid);
  EXPECT_EQ(check_one({std::string(64, 'a'), "module", "/a", uint64_t{1} << 40}), Code::invalid);
  JobEnvironment two;
  two.packages = {folder_of('a'), folder_of('b')};
  EXPECT_EQ(code_of(check(two)), Code::invalid);
}

TEST(JobEnvironmentMerge, SomethingNewIsAddedWhereItCanBe) {
  JobEnvironment job;
  job.variables = {{"A", "1"}};
  job.packages = {folder_of('a')};
  JobEnvironment same = job;
  EXPECT_FALSE(merge(job, same, false).value());
  JobEnvironment more;
  more.variables = {{"B", "2"}};
  more.packages = {module_of('b')};
  more.log_to_driver = true;
  const auto merged = merge(job, more, true).value();
  ASSERT_TRUE(merged);
  EXPECT_EQ(merged->variables.size(), 2U);
  EXPECT_EQ(merged->packages.size(), 2U);
  EXPECT_TRUE(merged->log_to_driver);
  // Processes that run have not seen the variable.
  EXPECT_EQ(merge(job, more, false).error().code(), Code::conflict);
  more.variables.clear();
  EXPECT_TRUE(merge(job, more, false).value());
}

TEST(JobEnvironmentMerge, WhatContradictsIsAConflict) {
  JobEnvironment job;
  job.variables = {{"A", "1"}};
  job.packages = {folder_of('a'), module_of('b')};
  JobEnvironment other;
  other.variables = {{"A", "2"}};
  EXPECT_EQ(merge(job, other, true).error().code(), Code::conflict);
  other.variables.clear();
  other.packages = {folder_of('c')};
  EXPECT_EQ(merge(job, other, true).error().code(), Code::conflict);
  other.packages = {module_of('c')};
  EXPECT_EQ(merge(job, other, true).error().code(), Code::conflict);
  other.packages = {module_of('c', "/bin/other.so")};
  EXPECT_TRUE(merge(job, other, false).value());
}

class JobEnvironments : public HeadTest {
 protected:
  // A driver that others can connect to, as a program's.
  std::shared_ptr<Peer> program_of(JobId job) {
    protocol::Hello self;
    self.kind = "driver";
    self.job = job;
    self.address.process = ProcessId::random(simulation.random());
    self.address.host = "10.0.0.9";
    self.address.port = 1;
    return connect(add_host("driver", "driver", Role::node), nothing, self).value();
  }
  Code begin(const std::shared_ptr<Peer>& peer, JobId job, JobEnvironment environment) {
    protocol::BeginJob request;
    request.job = job;
    request.environment = std::move(environment);
    return code_of(ask<Empty>(peer, Method::begin_job, request));
  }
  const JobId job = JobId::random(simulation.random());
};

TEST_F(JobEnvironments, AreKeptWithTheJobAndToldToNodesAlone) {
  start_head();
  const auto peer = program_of(job);
  JobEnvironment environment;
  environment.variables = {{"A", "1"}};
  environment.log_to_driver = true;
  ASSERT_EQ(begin(peer, job, environment), Code::ok);
  restart_head();
  FakeWorker& worker = add_worker(1);
  const auto info = ask<protocol::JobInfo>(worker.head, Method::get_job, protocol::GetJob{job});
  ASSERT_TRUE(info) << info.error().to_string();
  ASSERT_EQ(info->environment.variables.size(), 1U);
  EXPECT_EQ(info->environment.variables[0].value, "1");
  EXPECT_TRUE(info->environment.log_to_driver);
  EXPECT_EQ(code_of(ask<protocol::JobInfo>(driver(), Method::get_job, protocol::GetJob{job})),
            Code::denied);
  EXPECT_EQ(code_of(ask<protocol::JobInfo>(worker.head, Method::get_job,
                                           protocol::GetJob{JobId::random(simulation.random())})),
            Code::not_found);
  const auto list = ask<protocol::JobList>(worker.head, Method::list_jobs, Empty{}).value();
  EXPECT_TRUE(list.items.at(0).environment.variables.empty());
}

TEST_F(JobEnvironments, TheFirstProgramOfASubmittedJobAddsToIt) {
  start_head();
  const auto submits = driver_of(job, ProcessId::random(simulation.random()));
  JobEnvironment environment;
  environment.variables = {{"A", "1"}};
  ASSERT_EQ(begin(submits, job, environment), Code::ok);
  const auto first = program_of(job);
  environment.variables = {{"B", "2"}};
  ASSERT_EQ(begin(first, job, environment), Code::ok);
  EXPECT_EQ(begin(first, job, environment), Code::ok);  // The same once more.
  const auto second = program_of(job);
  EXPECT_EQ(begin(second, job, environment), Code::ok);
  environment.variables = {{"C", "3"}};
  EXPECT_EQ(begin(second, job, environment), Code::conflict);
  // Who submitted it says again and again that it goes on, and lines go to the program still.
  environment.variables = {{"A", "1"}};
  EXPECT_EQ(begin(submits, job, environment), Code::ok);
  FakeWorker& worker = add_worker(1);
  const auto info = ask<protocol::JobInfo>(worker.head, Method::get_job, protocol::GetJob{job});
  EXPECT_EQ(info.value().environment.variables.size(), 2U);
  EXPECT_EQ(info.value().driver.host, "10.0.0.9");
}

TEST_F(JobEnvironments, WhatIsInvalidBeginsNoJob) {
  start_head();
  const auto peer = program_of(job);
  JobEnvironment environment;
  environment.variables = {{"TROUPE_STATE", "1"}};
  EXPECT_EQ(begin(peer, job, environment), Code::invalid);
  EXPECT_EQ(cluster_info(peer).jobs_running, 0U);
}

TEST_F(JobEnvironments, ADriverWaitsForTheLinesOfAllNodesButNotForEver) {
  options.log_flush_budget = 500ms;
  start_head();
  const auto peer = program_of(job);
  ASSERT_EQ(begin(peer, job, {}), Code::ok);
  FakeWorker& quick = add_worker(1);
  FakeWorker& silent = add_worker(1);
  int flushed = 0;
  quick.on_message(Method::job_logs, [&](transport::Message, CallContext) {
    ++flushed;
    return [](void) -> Async<Result<transport::Message>> { co_return transport::Message{}; }();
  });
  silent.on_message(Method::job_logs, [&](transport::Message, CallContext) {
    return [](sim::Simulation* world) -> Async<Result<transport::Message>> {
      co_await sleep_for(world->clock(), 1h);
      co_return transport::Message{};
    }(&simulation);
  });
  const Instant began = simulation.clock().now();
  protocol::JobLogs request;
  request.job = job;
  EXPECT_EQ(code_of(ask<Empty>(peer, Method::job_logs, request)), Code::ok);
  EXPECT_EQ(flushed, 1);
  const Duration took = simulation.clock().now() - began;
  EXPECT_GE(took, 400ms);
  EXPECT_LE(took, 2s);
  request.job = JobId::random(simulation.random());
  EXPECT_EQ(code_of(ask<Empty>(peer, Method::job_logs, request)), Code::not_found);
}

}  // namespace
}  // namespace troupe::head
