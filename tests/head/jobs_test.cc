// Jobs begin, end, and end by themselves when their drivers stay away.
#include "head/jobs.h"

#include <algorithm>
#include <set>

#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class JobsTest : public HeadTest {
 protected:
  protocol::JobInfo look_job(const std::shared_ptr<Peer>& peer, JobId job) {
    const auto list = ask<protocol::JobList>(peer, Method::list_jobs, Empty{}).value();
    for (const auto& info : list.items) {
      if (info.job == job) return info;
    }
    return {};
  }
  Result<Empty> end_job(const std::shared_ptr<Peer>& peer, JobId job) {
    return ask<Empty>(peer, Method::end_job, protocol::EndJob{job, true, {}});
  }
  Async<void> begin_over(head::Jobs* jobs, std::shared_ptr<Peer> peer) {
    protocol::BeginJob request;
    request.job = JobId::random(simulation.random());
    EXPECT_TRUE(co_await jobs->begin(request, peer));
  }
  Async<void> end_in(head::Jobs* jobs, JobId job) {
    protocol::EndJob request;
    request.job = job;
    const Status ended = co_await jobs->end(std::move(request));
    EXPECT_TRUE(ended);
  }
};

TEST_F(JobsTest, BegunJobRuns) {
  start_head();
  const auto client = driver();
  EXPECT_EQ(look_job(client, begin_job(client)).state, "running");
}

TEST_F(JobsTest, SameBeginAgainIsOneJob) {
  start_head();
  const auto client = driver();
  const JobId job = begin_job(client);
  protocol::BeginJob again;
  again.job = job;
  EXPECT_EQ(code_of(ask<Empty>(client, Method::begin_job, again)), Code::ok);
  EXPECT_EQ(cluster_info(client).jobs_running, 1u);
}

TEST_F(JobsTest, RefusesAJobWithoutAnId) {
  start_head();
  EXPECT_EQ(code_of(ask<Empty>(driver(), Method::begin_job, protocol::BeginJob{})), Code::invalid);
}

TEST_F(JobsTest, RefusesLongTexts) {
  start_head();
  protocol::BeginJob request;
  request.job = JobId::random(simulation.random());
  request.name.assign(257, 'x');
  EXPECT_EQ(code_of(ask<Empty>(driver(), Method::begin_job, request)), Code::invalid);
}

TEST_F(JobsTest, RefusesMoreJobsThanTheLimit) {
  options.jobs_running_max = 1;
  start_head();
  const auto client = driver();
  const JobId job = begin_job(client);
  protocol::BeginJob second;
  second.job = JobId::random(simulation.random());
  EXPECT_EQ(code_of(ask<Empty>(client, Method::begin_job, second)), Code::exhausted);
  ASSERT_TRUE(end_job(client, job));
  EXPECT_EQ(code_of(ask<Empty>(client, Method::begin_job, second)), Code::ok);
}

TEST_F(JobsTest, EndedJobDoesNotBeginAgain) {
  start_head();
  const auto client = driver();
  const JobId job = begin_job(client);
  ASSERT_TRUE(end_job(client, job));
  protocol::BeginJob again;
  again.job = job;
  EXPECT_EQ(code_of(ask<Empty>(client, Method::begin_job, again)), Code::conflict);
}

TEST_F(JobsTest, EndOfAnUnknownJobIsNotFound) {
  start_head();
  EXPECT_EQ(code_of(end_job(driver(), JobId::random(simulation.random()))), Code::not_found);
}

TEST_F(JobsTest, SecondEndChangesNothing) {
  start_head();
  const auto client = driver();
  const JobId job = begin_job(client);
  ASSERT_TRUE(end_job(client, job));
  EXPECT_EQ(code_of(ask<Empty>(client, Method::end_job, protocol::EndJob{job, false, "late"})),
            Code::ok);
  EXPECT_EQ(look_job(client, job).state, "succeeded");
}

TEST_F(JobsTest, EndedJobTakesNoNewActor) {
  start_head();
  const auto client = driver();
  auto spec = actor_spec();
  spec.job = begin_job(client);
  ASSERT_TRUE(end_job(client, spec.job));
  EXPECT_EQ(code_of(create(client, spec)), Code::conflict);
}

TEST_F(JobsTest, EndKillsTheJobsActorsButNotTheDetachedOnes) {
  start_head();
  add_worker(4);
  const auto client = driver();
  const JobId job = begin_job(client);
  auto bound = actor_spec();
  bound.job = job;
  auto detached = actor_spec();
  detached.job = job;
  detached.detached = true;
  ASSERT_TRUE(create(client, bound));
  ASSERT_TRUE(create(client, detached));
  ASSERT_TRUE(end_job(client, job));
  EXPECT_EQ(look(client, bound.actor).state, "dead");
  EXPECT_EQ(code_of(wait_alive(client, detached.actor)), Code::ok);
}

TEST_F(JobsTest, EndLeavesTheActorsOfOtherJobs) {
  start_head();
  add_worker(4);
  const auto client = driver();
  const JobId job = begin_job(client);
  auto spec = actor_spec();
  spec.job = begin_job(client);
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(end_job(client, job));
  EXPECT_EQ(code_of(wait_alive(client, spec.actor)), Code::ok);
}

TEST_F(JobsTest, EveryWorkerIsToldOfTheEnd) {
  start_head();
  FakeWorker& first = add_worker(4);
  FakeWorker& second = add_worker(4);
  const auto client = driver();
  const JobId job = begin_job(client);
  ASSERT_TRUE(end_job(client, job));
  simulation.run_for(100ms);
  for (FakeWorker* worker : {&first, &second}) {
    ASSERT_EQ(worker->jobs_ended.size(), 1u);
    EXPECT_EQ(worker->jobs_ended[0].job, job);
    EXPECT_TRUE(worker->jobs_ended[0].succeeded);
  }
}

TEST_F(JobsTest, NoWorkerIsToldOfAnEndThatWasNotWritten) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const JobId job = begin_job(client);
  store.commits_left = 0;
  EXPECT_NE(code_of(end_job(client, job)), Code::ok);
  simulation.run_for(1s);
  EXPECT_TRUE(worker.jobs_ended.empty()) << "the next head takes the job for running";
}

TEST_F(JobsTest, JobEndsWhenItsDriverStaysAway) {
  start_head();
  const auto client = driver();
  const JobId job = begin_job(client);
  const auto other = driver();
  client->close();
  simulation.run_for(1900ms);
  EXPECT_EQ(look_job(other, job).state, "running");
  simulation.run_for(200ms);
  EXPECT_EQ(look_job(other, job).state, "failed");
}

TEST_F(JobsTest, DriverThatReturnsInTimeKeepsItsJob) {
  start_head();
  const ProcessId process = ProcessId::random(simulation.random());
  const auto client = driver_of({}, process);
  const JobId job = begin_job(client);
  client->close();
  simulation.run_for(1s);
  const auto again = driver_of(job, process);
  (void)cluster_info(again);  // Any request shows that it is there.
  simulation.run_for(10s);
  EXPECT_EQ(look_job(again, job).state, "running");
}

TEST_F(JobsTest, AnotherProcessOfTheJobDoesNotKeepIt) {
  start_head();
  const auto client = driver();
  const JobId job = begin_job(client);
  client->close();
  simulation.run_for(1s);
  const auto actor = driver_of(job, ProcessId::random(simulation.random()));
  (void)cluster_info(actor);
  simulation.run_for(2s);
  EXPECT_EQ(look_job(actor, job).state, "failed");
}

// In the simulation the end of a connection never overtakes the handling of its last request, so
// this speaks to the part itself.
TEST_F(JobsTest, JobThatBeganOverAConnectionThatIsGoneEnds) {
  start_head();
  const auto client = driver();
  client->close();
  simulation.run_for(100ms);
  ASSERT_FALSE(client->is_open());
  const auto environment = simulation.environment(*head_host);
  Scope own{simulation.executor()};
  Journal journal{environment, own, store, head->epoch()};
  head::Jobs jobs{environment, options, own, journal};
  spawn(own, begin_over(&jobs, client));
  simulation.run_for(1s);
  EXPECT_EQ(jobs.running(), 1u);
  simulation.run_for(2s);
  EXPECT_EQ(jobs.running(), 0u);
  EXPECT_TRUE(simulation.run(journal.stop(), 1s));
  EXPECT_TRUE(simulation.run(own.stop(), 1s));
}

TEST_F(JobsTest, NewHeadWaitsForADriverThatHasNotNoticedYet) {
  start_head();
  const ProcessId process = ProcessId::random(simulation.random());
  const JobId job = begin_job(driver_of({}, process));
  restart_head();
  simulation.run_for(16500ms);  // Its silence, and its grace.
  EXPECT_EQ(look_job(driver(), job).state, "running");
  simulation.run_for(1s);
  EXPECT_EQ(look_job(driver(), job).state, "failed");
}

TEST_F(JobsTest, NewHeadKeepsAJobWhoseDriverReturns) {
  start_head();
  const ProcessId process = ProcessId::random(simulation.random());
  const JobId job = begin_job(driver_of({}, process));
  restart_head();
  const auto client = driver_of(job, process);
  (void)cluster_info(client);
  simulation.run_for(1min);
  EXPECT_EQ(look_job(client, job).state, "running");
}

TEST_F(JobsTest, NewHeadRemembersHowAJobEnded) {
  start_head();
  const auto client = driver();
  const JobId job = begin_job(client);
  ASSERT_TRUE(end_job(client, job));
  restart_head();
  EXPECT_EQ(look_job(driver(), job).state, "succeeded");
}

TEST_F(JobsTest, OldestEndedJobsAreForgotten) {
  options.history_max = 1;
  start_head();
  const auto client = driver();
  const JobId first = begin_job(client);
  const JobId second = begin_job(client);
  ASSERT_TRUE(end_job(client, first));
  ASSERT_TRUE(end_job(client, second));
  EXPECT_EQ(look_job(client, first).state, "");
  EXPECT_EQ(look_job(client, second).state, "succeeded");
}

// Its detached actor may start anew, and needs it.
TEST_F(JobsTest, AJobsNamespaceIsKeptForItsDetachedActor) {
  options.history_max = 1;
  start_head();
  const auto client = driver();
  protocol::BeginJob request;
  request.job = JobId::random(simulation.random());
  request.name_space = "red";
  ASSERT_EQ(code_of(ask<Empty>(client, Method::begin_job, request)), Code::ok);
  protocol::ActorSpec spec = actor_spec();
  spec.job = request.job;
  spec.detached = true;
  ASSERT_EQ(code_of(create(client, spec)), Code::ok);
  ASSERT_TRUE(end_job(client, request.job));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(end_job(client, begin_job(client)));
  EXPECT_EQ(look_job(client, request.job).name_space, "red");
}

// There may be a million actors to look at.
TEST_F(JobsTest, AnEndLooksOnceForTheJobsThatAreStillNeeded) {
  options.history_max = 2;
  start_head();
  const auto client = driver();
  const auto environment = simulation.environment(*head_host);
  Scope own{simulation.executor()};
  Journal journal{environment, own, store, head->epoch()};
  head::Jobs jobs{environment, options, own, journal};
  std::vector<protocol::JobInfo> ended(6);
  std::set<JobId> needed;
  for (protocol::JobInfo& info : ended) {
    info.job = JobId::random(simulation.random());
    info.state = "succeeded";
    info.name_space = "red";
    needed.insert(info.job);
  }
  jobs.restore(ended);
  int looks = 0;
  jobs.set_needed([&] {
    ++looks;
    return needed;
  });
  const auto run_one = [&] {
    spawn(own, begin_over(&jobs, client));
    simulation.run_for(1s);
    const auto list = jobs.list();
    const auto runs = std::ranges::find(list, "running", &protocol::JobInfo::state);
    ASSERT_NE(runs, list.end());
    spawn(own, end_in(&jobs, runs->job));
    simulation.run_for(1s);
    EXPECT_EQ(jobs.running(), 0u);
  };
  run_one();
  EXPECT_EQ(looks, 1);
  EXPECT_EQ(jobs.list().size(), 6u) << "of those that are over, only what nobody needs goes";
  // And not at all while none is too old.
  options.history_max = 100;
  run_one();
  EXPECT_EQ(looks, 1);
  EXPECT_EQ(jobs.list().size(), 7u);
  EXPECT_TRUE(simulation.run(journal.stop(), 1s));
  EXPECT_TRUE(simulation.run(own.stop(), 1s));
}

TEST_F(JobsTest, RefusesANamespaceThatFitsIntoNoEnvironment) {
  start_head();
  protocol::BeginJob request;
  request.job = JobId::random(simulation.random());
  request.name_space = std::string(1, '\0');
  EXPECT_EQ(code_of(ask<Empty>(driver(), Method::begin_job, request)), Code::invalid);
}

}  // namespace
}  // namespace troupe::head
