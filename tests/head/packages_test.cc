// Packages on their way from drivers through the head to workers.
#include <filesystem>
#include <fstream>

#include "head/journal.h"
#include "packages/archive.h"
#include "packages/shelf.h"
#include "packages/transfer.h"
#include "security/digest.h"
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

namespace fs = std::filesystem;

// A program with a package.
class FakeDriver : public transport::Router {
 public:
  explicit FakeDriver(sim::Simulation& simulation) : changed(simulation.executor()) {
    on_stream(Method::get_package,
              [this](transport::Message message, CallContext, transport::OutgoingStream& out) {
                return give(std::move(message), out);
              });
  }
  Bytes content = Bytes(3 << 20, 'x');
  int asked = 0;
  size_t stops_after = SIZE_MAX;  // Bytes; there it waits until `changed`.
  Event changed;
  std::shared_ptr<Peer> head;
  sim::SimHost* host = nullptr;
  protocol::Package package;
  JobId job;

 private:
  Async<Status> give(transport::Message message, transport::OutgoingStream& out) {
    ++asked;
    const auto request = protocol::decode<protocol::GetPackage>(message.body).value();
    if (request.hash != package.hash) co_return error(Code::not_found, "no such package");
    for (size_t at = 0; at < content.size();) {
      if (at >= stops_after) co_await changed.wait();
      const size_t size = std::min(packages::chunk_bytes, content.size() - at);
      protocol::PackageChunk chunk;
      chunk.data.assign(content.begin() + static_cast<std::ptrdiff_t>(at),
                        content.begin() + static_cast<std::ptrdiff_t>(at + size));
      chunk.offset_bytes = at;
      chunk.total_bytes = content.size();
      at += size;
      TROUPE_CO_CHECK(co_await out.send(protocol::encode(chunk)));
    }
    co_return ok();
  }
};

class HeadPackages : public HeadTest {
 protected:
  HeadPackages() {
    std::string pattern = "/tmp/troupe-head-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    options.package_folder = folder / "packages";
  }
  ~HeadPackages() override { packages::remove_unpacked(folder); }

  FakeDriver& add_driver() {
    drivers_.push_back(std::make_unique<FakeDriver>(simulation));
    FakeDriver& driver = *drivers_.back();
    driver.job = JobId::random(simulation.random());
    driver.package = {security::to_hex(security::sha256(BytesView(driver.content))), "module",
                      "/bin/module.so", driver.content.size()};
    protocol::Hello self;
    self.kind = "driver";
    self.job = driver.job;
    self.address.process = ProcessId::random(simulation.random());
    self.address.host = "10.0.0.9";
    self.address.port = 1;
    driver.host = &add_host("driver", "driver", Role::node);
    driver.head = connect(*driver.host, driver, self).value();
    protocol::BeginJob request;
    request.job = driver.job;
    request.environment.packages = {driver.package};
    EXPECT_EQ(code_of(ask<Empty>(driver.head, Method::begin_job, request)), Code::ok);
    return driver;
  }
  void end_job(FakeDriver& driver) {
    EXPECT_EQ(
        code_of(ask<Empty>(driver.head, Method::end_job, protocol::EndJob{driver.job, true, {}})),
        Code::ok);
  }
  // As a worker does.
  Pending<packages::PackageFilePointer> begin_fetch(FakeWorker& worker, const FakeDriver& driver) {
    auto slot = std::make_shared<std::optional<Result<packages::PackageFilePointer>>>();
    if (!here_) here_ = packages::Folder::open(folder / "here").value();
    spawn(scope, fetch_into(slot, worker.head, {driver.job, driver.package.hash, 0},
                            simulation.environment(*worker.host)));
    return slot;
  }
  Result<packages::PackageFilePointer> fetch(FakeWorker& worker, const FakeDriver& driver) {
    const auto slot = begin_fetch(worker, driver);
    simulation.run_until([&] { return slot->has_value(); }, 5min);
    if (!*slot) return error(Code::internal, "no answer");
    return **slot;
  }
  size_t kept() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder / "packages"), {}));
  }
  bool eventually_kept(size_t count) {
    return simulation.run_until([&] { return kept() == count; }, 10s);
  }

  fs::path folder;

 private:
  Async<void> fetch_into(Pending<packages::PackageFilePointer> slot, std::shared_ptr<Peer> head,
                         protocol::GetPackage request, transport::Environment environment) {
    packages::FetchOptions options;
    options.request = std::move(request);
    options.silence_max = 10min;
    options.folder = &*here_;
    auto fetched = co_await packages::fetch(environment, std::move(head), std::move(options));
    slot->emplace(std::move(fetched));
  }
  std::vector<std::unique_ptr<FakeDriver>> drivers_;
  std::optional<packages::Folder> here_;
};

TEST_F(HeadPackages, AreFetchedOnceForAllWhoAsk) {
  start_head();
  FakeDriver& driver = add_driver();
  FakeWorker& one = add_worker(1);
  FakeWorker& two = add_worker(1);
  const auto first = begin_fetch(one, driver);
  const auto second = begin_fetch(two, driver);
  simulation.run_until([&] { return first->has_value() && second->has_value(); }, 1min);
  ASSERT_TRUE(first->has_value() && second->has_value());
  ASSERT_TRUE(**first) << (*first)->error().to_string();
  ASSERT_TRUE(**second) << (*second)->error().to_string();
  EXPECT_EQ((***first)->size_bytes, driver.content.size());
  EXPECT_EQ(driver.asked, 1);
  // A later job with the same one needs nothing from its driver.
  FakeDriver& other = add_driver();
  EXPECT_TRUE(fetch(one, other));
  EXPECT_EQ(other.asked, 0);
  end_job(driver);
  EXPECT_TRUE(fetch(one, other));
  end_job(other);
  EXPECT_TRUE(eventually_kept(0));
}

TEST_F(HeadPackages, ThoseOfOtherJobsAndOfNoneAreRefused) {
  start_head();
  FakeDriver& driver = add_driver();
  FakeWorker& worker = add_worker(1);
  driver.package.hash = std::string(64, 'a');
  EXPECT_EQ(code_of(fetch(worker, driver)), Code::not_found);
  driver.job = JobId::random(simulation.random());
  EXPECT_EQ(code_of(fetch(worker, driver)), Code::not_found);
  EXPECT_EQ(kept(), 0U);
}

TEST_F(HeadPackages, ADriverThatDiesInTheMiddleFailsTheFetch) {
  start_head();
  FakeDriver& driver = add_driver();
  driver.stops_after = packages::chunk_bytes;
  FakeWorker& worker = add_worker(1);
  const auto fetching = begin_fetch(worker, driver);
  ASSERT_TRUE(simulation.run_until([&] { return driver.asked == 1 && kept() == 1; }, 10s));
  simulation.run_for(100ms);
  simulation.network().kill(*driver.host);
  ASSERT_TRUE(simulation.run_until([&] { return fetching->has_value(); }, 10s));
  EXPECT_EQ(code_of(**fetching), Code::unavailable) << (*fetching)->error().to_string();
  EXPECT_NE((*fetching)->error().message().find("/bin/module.so"), std::string::npos);
  EXPECT_EQ(kept(), 0U);
}

TEST_F(HeadPackages, ASilentDriverFailsTheFetchInTime) {
  options.package_silence = 3s;
  start_head();
  FakeDriver& driver = add_driver();
  driver.stops_after = packages::chunk_bytes;
  FakeWorker& worker = add_worker(1);
  const Instant began = simulation.clock().now();
  EXPECT_EQ(code_of(fetch(worker, driver)), Code::deadline_exceeded);
  EXPECT_LE(simulation.clock().now() - began, 10s);
  EXPECT_EQ(kept(), 0U);
  driver.changed.set();
}

TEST_F(HeadPackages, AFileThatChangedIsDataLoss) {
  start_head();
  FakeDriver& driver = add_driver();
  driver.content[7] = 'y';
  FakeWorker& worker = add_worker(1);
  const auto fetched = fetch(worker, driver);
  EXPECT_EQ(code_of(fetched), Code::data_loss);
  EXPECT_NE(fetched.error().message().find("not what it was"), std::string::npos)
      << fetched.error().message();
  EXPECT_EQ(kept(), 0U);
}

TEST_F(HeadPackages, AnUnwritableFolderSaysSo) {
  start_head();
  FakeDriver& driver = add_driver();
  FakeWorker& worker = add_worker(1);
  fs::remove_all(folder / "packages");
  const auto fetched = fetch(worker, driver);
  EXPECT_EQ(code_of(fetched), Code::internal) << fetched.error().to_string();
  EXPECT_NE(fetched.error().message().find("packages"), std::string::npos);
}

TEST_F(HeadPackages, OneTakesNoRoomThatTheStoreNeeds) {
  start_head();
  FakeDriver& driver = add_driver();
  FakeWorker& worker = add_worker(1);
  protocol::ActorSpec spec = actor_spec();
  spec.job = driver.job;
  spec.detached = true;
  const uint64_t needed = room_for_promises_bytes + driver.content.size();
  store.set_free(needed - 1);
  const auto refused = create(driver.head, spec);
  EXPECT_EQ(code_of(refused), Code::exhausted);
  EXPECT_NE(refused.error().message().find("the disk is full"), std::string::npos)
      << refused.error().message();
  EXPECT_EQ(code_of(fetch(worker, driver)), Code::exhausted);
  EXPECT_EQ(driver.asked, 0);
  store.set_free(needed);
  EXPECT_TRUE(fetch(worker, driver));
  // What is here needs no room.
  store.set_free(0);
  EXPECT_TRUE(fetch(worker, driver));
}

// Another program of it comes with a module of its own.
TEST_F(HeadPackages, ThoseThatAJobGetsLaterAreHeldToo) {
  start_head();
  FakeDriver& driver = add_driver();
  protocol::ActorSpec spec = actor_spec();
  spec.job = driver.job;
  spec.detached = true;
  ASSERT_TRUE(create(driver.head, spec));
  protocol::BeginJob more;
  more.job = driver.job;
  driver.content = Bytes(100, 'y');
  driver.package = {security::to_hex(security::sha256(BytesView(driver.content))), "module",
                    "/bin/other.so", driver.content.size()};
  more.environment.packages = {driver.package};
  ASSERT_TRUE(ask<Empty>(driver.head, Method::begin_job, more));
  EXPECT_EQ(kept(), 1U);
  spec.actor = ActorId::random(simulation.random());
  ASSERT_TRUE(create(driver.head, spec));
  EXPECT_EQ(kept(), 2U);
}

TEST_F(HeadPackages, ADetachedActorsPackagesAreThereBeforeItIsPromised) {
  start_head();
  FakeDriver& driver = add_driver();
  FakeWorker& worker = add_worker(1);
  protocol::ActorSpec spec = actor_spec();
  spec.job = driver.job;
  spec.detached = true;
  spec.max_restarts = -1;
  ASSERT_TRUE(create(driver.head, spec));
  EXPECT_EQ(kept(), 1U);
  end_job(driver);
  simulation.network().kill(*driver.host);
  simulation.run_for(5s);
  EXPECT_TRUE(fetch(worker, driver));  // For its next start.
  restart_head();
  return_worker(worker);
  simulation.run_for(1s);
  EXPECT_TRUE(fetch(worker, driver));
  EXPECT_EQ(driver.asked, 1);
  const auto peer = this->driver();
  EXPECT_EQ(code_of(kill(peer, spec.actor)), Code::ok);
  EXPECT_TRUE(eventually_kept(0));
}

TEST_F(HeadPackages, ADetachedActorIsNotPromisedWithoutThem) {
  start_head();
  FakeDriver& driver = add_driver();
  add_worker(1);
  driver.content[0] = 'y';
  protocol::ActorSpec spec = actor_spec();
  spec.job = driver.job;
  spec.detached = true;
  EXPECT_EQ(code_of(create(driver.head, spec)), Code::data_loss);
}

TEST_F(HeadPackages, AJobThatADetachedActorNeedsIsNotForgotten) {
  options.history_max = 2;
  start_head();
  FakeDriver& driver = add_driver();
  FakeWorker& worker = add_worker(1);
  protocol::ActorSpec spec = actor_spec();
  spec.job = driver.job;
  spec.detached = true;
  ASSERT_TRUE(create(driver.head, spec));
  end_job(driver);
  std::vector<JobId> later;
  for (int i = 0; i < 4; ++i) {
    FakeDriver& other = add_driver();
    later.push_back(other.job);
    end_job(other);
  }
  const auto known = [&](JobId job) {
    return code_of(ask<protocol::JobInfo>(worker.head, Method::get_job, protocol::GetJob{job}));
  };
  EXPECT_EQ(known(driver.job), Code::ok);
  EXPECT_EQ(known(later.front()), Code::not_found);
  EXPECT_TRUE(fetch(worker, driver));
}

}  // namespace
}  // namespace troupe::head
