// The states of actors on their way to the head, and back to where they start again.
#include <gmock/gmock.h>

#include <csignal>
#include <fstream>

#include "packages/archive.h"
#include "packages/shelf.h"
#include "security/digest.h"
#include "tests/worker/fixture.h"

namespace troupe::worker {
namespace {

namespace fs = std::filesystem;
using protocol::Checkpoint;
using testing::HasSubstr;

class WorkerCheckpoints : public WorkerTest {
 protected:
  void SetUp() override {
    WorkerTest::SetUp();
    options.package_folder = folder + "/packages";
    options.checkpoint_folder = folder + "/states";
    job = {};
    head->on(Method::store_checkpoint, *this, &WorkerCheckpoints::store);
    head->on_stream(Method::get_package,
                    [this](Message message, CallContext, transport::OutgoingStream& out) {
                      return give(std::move(message), out);
                    });
  }
  void TearDown() override {
    packages::remove_unpacked(folder + "/packages");
    WorkerTest::TearDown();
  }
  // The head's checkpoint of an actor: a directory with one file.
  void keep(const std::string& state) {
    fs::create_directories(folder + "/kept");
    std::ofstream{folder + "/kept/state"} << state;
    kept = packages::pack(folder + "/kept", packages::checkpoint_archive()).value();
  }
  protocol::StartActor from_checkpoint(uint32_t incarnation) {
    auto request = start_request(actor, incarnation, "restore");
    request.checkpoint.number = 7;
    request.checkpoint.hash = kept->hash;
    request.checkpoint.size_bytes = kept->size_bytes;
    return request;
  }
  // What a process said after NAME=; once it has.
  Async<std::string> word(protocol::ProcessStarted process, std::string name) {
    const std::string path = folder + "/" + process.address.process.to_string() + ".log";
    for (const Instant end = environment().clock.now() + 20s; environment().clock.now() < end;) {
      std::ifstream log{path};
      for (std::string line; std::getline(log, line);) {
        if (line.starts_with(name + "=")) co_return line.substr(name.size() + 1);
      }
      co_await sleep_for(environment().clock, 1ms);
    }
    ADD_FAILURE() << "it never said " << name;
    co_return "";
  }
  protocol::StartActor saving() {
    auto request = start_request(actor, 3, "save");
    request.spec.environment.push_back(
        {"EXTRA", security::to_hex(security::sha256(as_bytes("state")))});
    return request;
  }

  packages::PackageFilePointer kept;
  std::optional<Error> refusal;  // Of the first so many stores, or of all gets.
  int refusals = 0;
  std::vector<protocol::StoreCheckpoint> stored;
  Bytes fetched;
  int given = 0;
  bool damages = false;

 private:
  Async<Result<Checkpoint>> store(protocol::StoreCheckpoint request, CallContext call) {
    stored.push_back(request);
    if (refusals > 0) {
      --refusals;
      co_return *refusal;
    }
    protocol::GetPackage get;
    get.actor = request.actor;
    get.hash = request.hash;
    Message message{protocol::encode(get), {}};
    auto stream = call.peer->open_stream(Method::get_package, std::move(message), 5s);
    auto item = co_await stream.value()->next();
    if (!item) co_return std::move(item).error();
    fetched = protocol::decode<protocol::PackageChunk>(**item).value().data;
    co_return Checkpoint{1, request.hash, request.size_bytes, 0, request.incarnation};
  }
  Async<Status> give(Message message, transport::OutgoingStream& out) {
    ++given;
    if (refusal) co_return *refusal;
    const auto request = protocol::decode<protocol::GetPackage>(message.body).value();
    EXPECT_EQ(request.actor, actor);
    EXPECT_EQ(request.hash, kept->hash);
    protocol::PackageChunk chunk;
    chunk.data = packages::read_chunk(*kept, 0).value();
    chunk.total_bytes = kept->size_bytes;
    if (damages) ++chunk.data.back();
    co_return co_await out.send(protocol::encode(chunk));
  }
};

TEST_F(WorkerCheckpoints, AStateGoesToTheHeadWhichFetchesIt) {
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(saving());
    const auto outcome = co_await word(started.value(), "stored");
    EXPECT_EQ(outcome, "yes");
    EXPECT_EQ(fetched, to_bytes("state"));
    EXPECT_EQ(stored.size(), 1U);
    EXPECT_EQ(stored[0].node, options.node);
    EXPECT_EQ(stored[0].epoch, 1U);
    EXPECT_EQ(stored[0].actor, actor);
    EXPECT_EQ(stored[0].incarnation, 3U);
    EXPECT_EQ(stored[0].size_bytes, 5U);
  });
}

TEST_F(WorkerCheckpoints, AHeadThatIsAwayIsAskedAgain) {
  refusal = error(Code::unavailable, "not yet");
  refusals = 2;
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(saving());
    const auto outcome = co_await word(started.value(), "stored");
    EXPECT_EQ(outcome, "yes");
    EXPECT_EQ(stored.size(), 3U);
  });
}

TEST_F(WorkerCheckpoints, WhatTheHeadRefusesItsActorHears) {
  refusal = error(Code::conflict, "of an older incarnation");
  refusals = 1;
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(saving());
    const auto outcome = co_await word(started.value(), "stored");
    EXPECT_THAT(outcome, HasSubstr("of an older incarnation"));
    EXPECT_EQ(stored.size(), 1U);
  });
}

TEST_F(WorkerCheckpoints, OnlyTheActorsProcessMayStore) {
  with_worker([this]() -> Async<void> {
    auto request = start_request(actor, 1, "run");
    const auto started = co_await start_actor(std::move(request));
    EXPECT_TRUE(started);
    const auto peer = co_await connect(ProcessId::random(random), job);
    protocol::StoreCheckpoint state;
    state.actor = actor;
    state.incarnation = 1;
    state.hash = std::string(64, 'a');
    Message message{protocol::encode(state), {}};
    const auto refused = co_await peer->call(Method::store_checkpoint, std::move(message), 5s);
    EXPECT_EQ(refused.error().code(), Code::denied);
    Message asked{protocol::encode(protocol::GetPackage{{}, state.hash, 0, actor}), {}};
    auto stream = peer->open_stream(Method::get_package, std::move(asked), 5s);
    const auto given_out = co_await stream.value()->next();
    EXPECT_EQ(given_out.error().code(), Code::denied);
    EXPECT_TRUE(stored.empty());
  });
}

TEST_F(WorkerCheckpoints, AnActorStartsFromItsCheckpointWhichIsBroughtOnce) {
  keep("precious");
  with_worker([this]() -> Async<void> {
    const auto first = co_await start_actor(from_checkpoint(2));
    const auto state = co_await word(first.value(), "state");
    EXPECT_EQ(state, "precious");
    const auto number = co_await word(first.value(), "number");
    EXPECT_EQ(number, "7");
    const auto states = co_await word(first.value(), "states");
    EXPECT_TRUE(fs::exists(states));
    const auto second = co_await start_actor(from_checkpoint(3));
    const auto again = co_await word(second.value(), "state");
    EXPECT_EQ(again, "precious");
    EXPECT_EQ(given, 1);
    // What the first one was writing is gone with it.
    for (int i = 0; i < 10'000 && fs::exists(states); ++i) {
      co_await sleep_for(environment().clock, 1ms);
    }
    EXPECT_FALSE(fs::exists(states));
  });
}

TEST_F(WorkerCheckpoints, OneThatCannotBeHadFailsTheStart) {
  keep("precious");
  with_worker([this]() -> Async<void> {
    damages = true;
    const auto damaged = co_await start_actor(from_checkpoint(2));
    EXPECT_EQ(damaged.error().code(), Code::data_loss);
    EXPECT_THAT(damaged.error().message(), HasSubstr(kept->hash));
    EXPECT_THAT(damaged.error().message(), HasSubstr("checkpoint 7"));
    damages = false;
    // For the head "not found" would mean that no start can succeed.
    refusal = error(Code::not_found, "no such checkpoint");
    const auto missing = co_await start_actor(from_checkpoint(3));
    EXPECT_EQ(missing.error().code(), Code::data_loss);
    EXPECT_THAT(missing.error().message(), HasSubstr("no such checkpoint"));
    EXPECT_EQ(worker->processes(), 0U);
    refusal.reset();
    const auto there = co_await start_actor(from_checkpoint(4));
    EXPECT_TRUE(there);
  });
}

TEST_F(WorkerCheckpoints, OfLightActorsOnlyThoseFailWhoseCheckpointCannotBeHad) {
  keep("precious");
  refusal = error(Code::not_found, "no such checkpoint");
  with_worker([this]() -> Async<void> {
    protocol::StartActors request;
    request.items.push_back(from_checkpoint(2));
    request.items.push_back(start_request(ActorId::random(random), 1, "run"));
    for (auto& item : request.items) item.spec.shared = true;
    Message message{protocol::encode(request), {}};
    auto stream = head->worker->open_stream(Method::start_actors, std::move(message), 20s);
    std::map<ActorId, uint32_t> codes;
    for (;;) {
      auto next = co_await stream.value()->next();
      if (!next || !*next) break;
      const auto report = protocol::decode<protocol::ActorsStarted>(**next).value();
      for (const auto& item : report.items) codes[item.actor] = item.error.code;
    }
    EXPECT_EQ(codes.size(), 2U);
    EXPECT_EQ(codes[actor], static_cast<uint32_t>(Code::data_loss));
    EXPECT_EQ(codes[request.items[1].spec.actor], 0U);
  });
}

}  // namespace
}  // namespace troupe::worker
