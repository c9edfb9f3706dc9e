// What processes find around them, and the way of their output to a driver.
#include <fstream>

#include "packages/archive.h"
#include "packages/shelf.h"
#include "tests/worker/fixture.h"

namespace troupe::worker {
namespace {

namespace fs = std::filesystem;

class WorkerEnvironment : public WorkerTest {
 protected:
  void SetUp() override {
    WorkerTest::SetUp();
    options.package_folder = folder + "/packages";
    info.job = job;
    info.state = "running";
    answer();
  }
  void TearDown() override {
    packages::remove_unpacked(folder + "/packages");
    WorkerTest::TearDown();
  }
  // What the head says of the job, and has of its packages. Once for each head.
  void answer() {
    head->jobs = {info};
    head->on(Method::get_job, *this, &WorkerEnvironment::get_job);
    head->on_stream(Method::get_package,
                    [this](Message message, CallContext, transport::OutgoingStream& out) {
                      ++packages_asked;
                      return shelf.give(environment(), std::move(message), out);
                    });
  }
  Async<Result<protocol::JobInfo>> get_job(protocol::GetJob, CallContext) {
    ++jobs_asked;
    while (holds_answer) co_await head->changed.wait();
    if (refusal) co_return *refusal;
    co_return info;
  }
  std::string write(const std::string& name, const std::string& text) {
    const fs::path path = fs::path(folder) / name;
    fs::create_directories(path.parent_path());
    std::ofstream{path} << text;
    return path;
  }
  void add_module(const std::string& path) {
    shelf.add_module(packages::open_package(path).value(), path);
    info.environment.packages = shelf.packages();
  }
  void add_working_folder(const std::string& path) {
    ASSERT_TRUE(shelf.add_working_folder(path));
    info.environment.packages = shelf.packages();
  }
  protocol::StartActor around(std::string module = "") {
    auto request = start_request(ActorId::random(random), 1, "around");
    request.spec.module = std::move(module);
    return request;
  }
  // A started process's words, by what it says before '='.
  Async<std::map<std::string, std::string>> look(protocol::StartActor request) {
    auto started = co_await start_actor(std::move(request));
    std::map<std::string, std::string> found;
    if (!started) {
      found["error"] = started.error().to_string();
      co_return found;
    }
    std::ifstream log{folder + "/" + started->address.process.to_string() + ".log"};
    for (std::string line; std::getline(log, line);) {
      if (const size_t equals = line.find('='); equals != line.npos) {
        found[line.substr(0, equals)] = line.substr(equals + 1);
      }
    }
    co_return found;
  }
  Async<void> end_job(JobId ended) {
    head->jobs.clear();
    protocol::EndJob news{ended, true, {}};
    auto peer = head->worker;
    auto told = co_await transport::call<protocol::Empty>(peer, Method::job_ended, news, 5s);
    EXPECT_TRUE(told);
  }

  protocol::JobInfo info;
  packages::Shelf shelf;
  std::optional<Error> refusal;
  bool holds_answer = false;
  int jobs_asked = 0;
  int packages_asked = 0;
};

TEST_F(WorkerEnvironment, VariablesReachEachProcessAndAnActorsOwnWin) {
  info.environment.variables = {{"A", "of the job"}, {"TROUPE_NODE_ID", "forged"}};
  info.name_space = "of the job, too";
  with_worker([this]() -> Async<void> {
    auto found = co_await look(around());
    EXPECT_EQ(found["A"], "of the job");
    EXPECT_EQ(found["namespace"], "of the job, too");
    auto own = around();
    own.spec.environment = {{"A", "its own"}};
    found = co_await look(std::move(own));
    EXPECT_EQ(found["A"], "its own");
    EXPECT_EQ(jobs_asked, 1);
    co_await end_job(job);
    info.environment.variables = {{"A", "anew"}};
    head->jobs = {info};
    found = co_await look(around());
    EXPECT_EQ(found["A"], "anew");
    EXPECT_EQ(jobs_asked, 2);
  });
}

TEST_F(WorkerEnvironment, StartsAtOnceShareOneQuestion) {
  holds_answer = true;
  with_worker([this]() -> Async<void> {
    int started = 0;
    const auto start_one = [this, &started](protocol::StartActor request) -> Async<void> {
      const auto outcome = co_await start_actor(std::move(request));
      EXPECT_TRUE(outcome);
      ++started;
      head->changed.pulse();
    };
    for (int i = 0; i < 3; ++i) spawn(scope, start_one(around()));
    co_await head->until([this] {
      head->changed.pulse();
      return jobs_asked == 1;
    });
    holds_answer = false;
    head->changed.pulse();
    co_await head->until([&started] { return started == 3; });
    EXPECT_EQ(jobs_asked, 1);
  });
}

TEST_F(WorkerEnvironment, AHeadThatDoesNotKnowTheJobIsNoHindrance) {
  refusal = error(Code::not_found, "no such job");
  with_worker([this]() -> Async<void> {
    auto found = co_await look(around());
    EXPECT_EQ(found["A"], "");
    EXPECT_EQ(found.count("error"), 0U);
  });
}

TEST_F(WorkerEnvironment, ProcessesStartInTheWorkingFolder) {
  write("from/data/file", "text");
  add_working_folder(folder + "/from");
  const std::string place = options.package_folder + "/" + shelf.packages()[0].hash + ".d";
  with_worker([this, &place]() -> Async<void> {
    auto found = co_await look(around());
    EXPECT_EQ(found["folder"], place);
    found = co_await look(around());
    EXPECT_EQ(found["folder"], place);
    EXPECT_EQ(packages_asked, 1);
    EXPECT_TRUE(fs::exists(place + "/data/file"));
  });
}

TEST_F(WorkerEnvironment, WhatAnEarlierWorkerHadIsUsed) {
  write("from/data/file", "text");
  add_working_folder(folder + "/from");
  const auto archive = packages::pack(folder + "/from").value();
  {
    const auto kept = packages::Folder::open(options.package_folder).value();
    const auto incoming = kept.receive(archive->hash).value();
    ASSERT_TRUE(incoming->append(packages::read_chunk(*archive, 0).value()));
    ASSERT_TRUE(kept.unpack_file(*incoming->finish().value()));
  }
  with_worker([this, &archive]() -> Async<void> {
    auto found = co_await look(around());
    EXPECT_EQ(found["folder"], options.package_folder + "/" + archive->hash + ".d");
    EXPECT_EQ(packages_asked, 0);
  });
}

TEST_F(WorkerEnvironment, AModuleIsFetchedUnlessTheSameIsHere) {
  const std::string module = write("module.so", "the code");
  add_module(module);
  with_worker([this, &module]() -> Async<void> {
    auto found = co_await look(around(module));
    EXPECT_EQ(found["module file"], "");  // The local one.
    EXPECT_EQ(packages_asked, 0);
    write("other", "changed!");  // Of the same size.
    fs::rename(folder + "/other", module);
    found = co_await look(around(module));
    EXPECT_EQ(found["module"], module);
    EXPECT_EQ(found["module file"], options.package_folder + "/" + shelf.packages()[0].hash);
    fs::remove(module);
    found = co_await look(around(module));
    EXPECT_EQ(found["module"], module);
    EXPECT_EQ(packages_asked, 1);
  });
}

TEST_F(WorkerEnvironment, AModuleThatAnotherProgramBroughtLaterIsAskedForOnce) {
  const std::string module = write("later.so", "the code");
  with_worker([this, &module]() -> Async<void> {
    (void)co_await look(around());
    EXPECT_EQ(jobs_asked, 1);
    add_module(module);
    fs::remove(module);
    auto found = co_await look(around(module));
    EXPECT_EQ(found["module"], module);
    EXPECT_EQ(jobs_asked, 2);
    for (int i = 0; i < 2; ++i) {
      found = co_await look(around("/no/package.so"));
      EXPECT_EQ(found["module file"], "");
      EXPECT_EQ(jobs_asked, 3);
    }
  });
}

TEST_F(WorkerEnvironment, AFailedFetchFailsTheStartAndIsTriedAnew) {
  const std::string module = write("module.so", "the code");
  add_module(module);
  fs::remove(module);
  packages::Shelf good = shelf;
  shelf = {};
  with_worker([this, &module, &good]() -> Async<void> {
    auto failed = co_await start_actor(around(module));
    EXPECT_EQ(failed.error().code(), Code::not_found);
    EXPECT_NE(failed.error().message().find("bring " + module), std::string::npos)
        << failed.error().message();
    EXPECT_EQ(worker->processes(), 0U);
    // Other bytes than the hash says.
    const std::string hash = info.environment.packages[0].hash;
    head->on_stream(Method::get_package,
                    [](Message, CallContext, transport::OutgoingStream& out) -> Async<Status> {
                      protocol::PackageChunk chunk{to_bytes("the c0de"), 0, 8};
                      co_return co_await out.send(protocol::encode(chunk));
                    });
    failed = co_await start_actor(around(module));
    EXPECT_EQ(failed.error().code(), Code::data_loss);
    EXPECT_TRUE(fs::is_empty(options.package_folder));
    shelf = good;
    answer();
    auto found = co_await look(around(module));
    EXPECT_EQ(found["module"], module);
  });
}

TEST_F(WorkerEnvironment, AFolderThatCannotBeWrittenFailsTheStart) {
  const std::string module = write("module.so", "the code");
  add_module(module);
  fs::remove(module);
  write("packages", "a file in its place");
  with_worker([this, &module]() -> Async<void> {
    const auto failed = co_await start_actor(around(module));
    EXPECT_EQ(failed.error().code(), Code::invalid);
    EXPECT_NE(failed.error().message().find(options.package_folder), std::string::npos);
    auto found = co_await look(around());  // What needs none starts.
    EXPECT_EQ(found.count("error"), 0U);
  });
}

TEST_F(WorkerEnvironment, OnlyWhatNoJobHereNeedsMakesRoom) {
  options.package_bytes_max = 10;
  const std::string first = write("first.so", std::string(100, 'a'));
  const std::string second = write("second.so", std::string(100, 'b'));
  const std::string third = write("third.so", std::string(100, 'c'));
  for (const auto& path : {first, second, third}) {
    add_module(path);
    fs::remove(path);
  }
  const auto is_kept = [this](size_t index) {
    return fs::exists(options.package_folder + "/" + shelf.packages()[index].hash);
  };
  with_worker([&, this]() -> Async<void> {
    const std::vector<protocol::StartActor> requests{around(first), around(second)};
    for (const auto& request : requests) (void)co_await look(request);
    EXPECT_TRUE(is_kept(0));
    EXPECT_TRUE(is_kept(1));
    co_await end_job(job);
    for (const auto& request : requests) {
      EXPECT_TRUE(co_await stop_actor(request.spec.actor, 1, 1s));
    }
    job = info.job = JobId::random(random);
    head->jobs = {info};
    (void)co_await look(around(third));
    co_await head->until([&, this] {
      head->changed.pulse();
      return !is_kept(0) && !is_kept(1);
    });
    EXPECT_TRUE(is_kept(2));
  });
}

// A driver of the same node, which listens.
class WorkerLogs : public WorkerEnvironment {
 protected:
  void SetUp() override {
    WorkerEnvironment::SetUp();
    info.environment.log_to_driver = true;
    info.driver.process = ProcessId::random(random);
    info.driver.node = options.node;
    info.driver.unix_path = folder + "/driver.sock";
    driver_.on(Method::job_logs, *this, &WorkerLogs::take);
  }
  void listen() {
    transport::Endpoint endpoint;
    endpoint.unix_path = info.driver.unix_path;
    listener_ = environment().network.listen(endpoint).value();
    spawn(scope, accept(listener_.get()));
  }
  Async<void> stop_listening() {
    co_await listener_->stop();
    for (const auto& peer : peers_) peer->close();
    peers_.clear();
    listener_.reset();
  }
  Async<void> flush() { return flush(job); }
  Async<void> flush(JobId of) {
    protocol::JobLogs request;
    request.job = of;
    auto peer = head->worker;
    auto told = co_await transport::call<protocol::Empty>(peer, Method::job_logs, request, 5s);
    EXPECT_TRUE(told) << told.error().to_string();
  }
  Async<void> note_flush(bool& is_flushed) {
    co_await flush();
    is_flushed = true;
    head->changed.pulse();
  }
  bool has(const std::string& line) const { return std::ranges::find(lines, line) != lines.end(); }

  std::vector<std::string> lines;
  std::vector<protocol::JobLogs> batches;
  uint64_t lost = 0;
  bool holds = false;

 private:
  Async<void> accept(transport::Listener* listener) {
    for (;;) {
      auto connection = co_await listener->accept();
      if (!connection) co_return;
      protocol::Hello self;
      self.kind = "driver";
      self.address.process = info.driver.process;
      const Instant deadline = environment().clock.now() + 5s;
      auto peer = co_await Peer::start(scope, environment(), std::move(*connection), driver_, self,
                                       deadline);
      if (peer) peers_.push_back(*peer);
    }
  }
  Async<Result<protocol::Empty>> take(protocol::JobLogs batch, CallContext) {
    for (const auto& item : batch.items) {
      lost += item.lost;
      lines.insert(lines.end(), item.lines.begin(), item.lines.end());
    }
    batches.push_back(std::move(batch));
    head->changed.pulse();
    while (holds) co_await head->changed.wait();
    co_return protocol::Empty{};
  }

  transport::Router driver_;
  std::unique_ptr<transport::Listener> listener_;
  std::vector<std::shared_ptr<Peer>> peers_;
};

TEST_F(WorkerLogs, LinesComeWhileItRunsAndTheLastAtItsEnd) {
  listen();
  with_worker([this]() -> Async<void> {
    auto request = around();
    const ActorId id = request.spec.actor;
    request.spec.name = "walker";
    const auto started = co_await start_actor(std::move(request));
    co_await head->until([this] { return has("folder=" + fs::current_path().string()); });
    EXPECT_FALSE(has("last"));
    EXPECT_EQ(batches[0].node, options.node);
    EXPECT_EQ(batches[0].node_name, "worker-1");
    EXPECT_EQ(batches[0].items[0].actor, id);
    EXPECT_EQ(batches[0].items[0].name, "walker");
    EXPECT_EQ(batches[0].items[0].pid, started->pid);
    ::kill(static_cast<pid_t>(started->pid), SIGKILL);
    co_await head->until([this] { return has("last"); });
    EXPECT_EQ(lost, 0U);
    co_await stop_listening();
  });
}

TEST_F(WorkerLogs, AFlushAnswersWhenAllIsThere) {
  listen();
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(around());
    const std::string log = folder + "/" + started->address.process.to_string() + ".log";
    for (int i = 0; i < 20; ++i) {
      const std::string line = "line " + std::to_string(i);
      std::ofstream{log, std::ios::app} << "\n" << line << "\n";
      co_await flush();
      EXPECT_TRUE(has(line));
    }
    co_await end_job(job);
    const size_t before = batches.size();
    co_await flush();  // Of a job that nobody reads any more.
    EXPECT_EQ(batches.size(), before);
    co_await stop_listening();
  });
}

TEST_F(WorkerLogs, AFlushWaitsForTheLastLinesOfProcessesThatHaveEnded) {
  listen();
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(around());
    co_await head->until([this] { return !batches.empty(); });
    holds = true;
    ::kill(static_cast<pid_t>(started->pid), SIGKILL);
    co_await head->until([this] { return has("last"); });  // Not answered yet.
    bool is_flushed = false;
    spawn(scope, note_flush(is_flushed));
    // Of jobs that nobody knows, so answered at once: that one is asked between these two.
    co_await flush(JobId::random(random));
    co_await flush(JobId::random(random));
    EXPECT_FALSE(is_flushed);
    holds = false;
    head->changed.pulse();
    co_await head->until([&is_flushed] { return is_flushed; });
    co_await flush();  // With nothing on its way.
    co_await stop_listening();
  });
}

TEST_F(WorkerLogs, WhatASlowDriverCannotTakeIsLeftOutAndCounted) {
  listen();
  holds = true;
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(around());
    co_await head->until([this] { return !batches.empty(); });
    const size_t first = lines.size();
    const std::string log = folder + "/" + started->address.process.to_string() + ".log";
    constexpr size_t count = 30'000;
    {
      std::ofstream out{log, std::ios::app};
      out << "\n";  // After "last".
      for (size_t i = 0; i < count; ++i) out << std::string(99, 'x') << "\n";
    }
    EXPECT_EQ(batches.size(), 1U);  // One at a time.
    holds = false;
    head->changed.pulse();
    co_await flush();
    EXPECT_EQ(lines.size() - first + lost, count + 1);
    EXPECT_GT(lost, count / 2);
    co_await stop_listening();
  });
}

TEST_F(WorkerLogs, LinesThatNoDriverTookAreCounted) {
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(around());
    co_await flush();  // Given up.
    listen();
    const std::string log = folder + "/" + started->address.process.to_string() + ".log";
    std::ofstream{log, std::ios::app} << "\nafterwards\n";
    co_await head->until([this] { return has("afterwards"); });
    EXPECT_GE(lost, 4U);
    co_await stop_listening();
  });
}

TEST_F(WorkerLogs, NothingIsSentThatNobodyWants) {
  info.environment.log_to_driver = false;
  listen();
  with_worker([this]() -> Async<void> {
    (void)co_await start_actor(around());
    co_await flush();
    EXPECT_TRUE(batches.empty());
    co_await stop_listening();
  });
}

}  // namespace
}  // namespace troupe::worker
