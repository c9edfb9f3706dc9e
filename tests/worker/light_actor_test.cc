// Light actors: many in one process, which starts with the first and ends after the last.
#include <csignal>

#include "tests/worker/fixture.h"

namespace troupe::worker {
namespace {

class LightActorTest : public WorkerTest {
 protected:
  using Outcomes = std::map<ActorId, protocol::StartedActor>;

  std::vector<ActorId> make_ids(size_t count) {
    std::vector<ActorId> ids;
    for (size_t i = 0; i < count; ++i) ids.push_back(ActorId::random(random));
    return ids;
  }
  protocol::StartActors requests(const std::vector<ActorId>& ids, const std::string& what,
                                 uint32_t incarnation = 1) {
    protocol::StartActors request;
    for (const ActorId id : ids) {
      request.items.push_back(start_request(id, incarnation, what));
      request.items.back().spec.shared = true;
    }
    return request;
  }
  Async<Outcomes> start_many(protocol::StartActors request) {
    Outcomes outcomes;
    Message message{protocol::encode(request), {}};
    auto stream = head->worker->open_stream(Method::start_actors, std::move(message), 20s);
    for (;;) {
      auto next = co_await stream.value()->next();
      if (!next) {
        ADD_FAILURE() << next.error().to_string();
        break;
      }
      if (!*next) break;
      auto report = protocol::decode<protocol::ActorsStarted>(**next);
      for (auto& item : report.value().items) outcomes[item.actor] = std::move(item);
    }
    co_return outcomes;
  }
  Async<Result<protocol::Empty>> stop_many(std::vector<ActorId> ids) {
    protocol::StopActors request;
    for (const ActorId id : ids) request.items.push_back({1, id, 0, 100'000});
    auto peer = head->worker;
    co_return co_await transport::call<protocol::Empty>(peer, Method::stop_actors,
                                                        std::move(request), 20s);
  }
};

TEST_F(LightActorTest, ManyStartInOneProcessAndOnlyOnce) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(50);
    auto request = requests(ids, "run");
    const auto first = co_await start_many(request);
    EXPECT_EQ(first.size(), 50u);
    EXPECT_EQ(worker->processes(), 1u);
    std::set<ProcessId> processes;
    for (const auto& [id, outcome] : first) {
      EXPECT_EQ(outcome.error.code, 0u);
      EXPECT_GT(outcome.process.pid, 0u);
      processes.insert(outcome.process.address.process);
    }
    EXPECT_EQ(processes.size(), 1u);
    const auto again = co_await start_many(request);
    EXPECT_EQ(again.size(), 50u);
    EXPECT_EQ(again.at(ids[9]).process.address.process, *processes.begin());
    auto others = requests(make_ids(2), "run");
    const auto more = co_await start_many(others);
    EXPECT_EQ(more.size(), 2u);
    EXPECT_EQ(worker->processes(), 1u);
  });
}

TEST_F(LightActorTest, AnotherEnvironmentIsAnotherProcess) {
  with_worker([this]() -> Async<void> {
    auto request = requests(make_ids(2), "run");
    request.items[1].spec.environment.push_back({"EXTRA", "1"});
    const auto outcomes = co_await start_many(request);
    EXPECT_EQ(outcomes.size(), 2u);
    EXPECT_EQ(worker->processes(), 2u);
  });
}

TEST_F(LightActorTest, OneThatFailsHarmsNoOther) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(3);
    auto request = requests(ids, "run");
    request.items[1].spec.class_name = "fail";
    const auto outcomes = co_await start_many(request);
    EXPECT_EQ(outcomes.at(ids[0]).error.code, 0u);
    EXPECT_EQ(protocol::from_info(outcomes.at(ids[1]).error).code(), Code::not_found);
    EXPECT_EQ(outcomes.at(ids[2]).error.code, 0u);
    // Its failure is remembered.
    std::vector<ActorId> failed{ids[1]};
    auto retry = requests(failed, "run");
    const auto again = co_await start_many(retry);
    EXPECT_EQ(protocol::from_info(again.at(ids[1]).error).code(), Code::not_found);
  });
}

TEST_F(LightActorTest, AProcessThatEndsAtTheStartFailsTheBatchAndSaysHow) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(3);
    auto request = requests(ids, "exit");
    const auto outcomes = co_await start_many(request);
    EXPECT_EQ(outcomes.size(), 3u);
    for (const auto& [id, outcome] : outcomes) {
      EXPECT_NE(outcome.error.message.find("exited with status 3"), std::string::npos);
    }
    // The next batch gets another process.
    auto request_again = requests(make_ids(1), "run");
    const auto again = co_await start_many(request_again);
    EXPECT_EQ(again.begin()->second.error.code, 0u);
  });
}

TEST_F(LightActorTest, OneThatTheProcessDoesNotTellOfFails) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(2);
    auto request = requests(ids, "run");
    request.items[1].spec.class_name = "silent";
    const auto outcomes = co_await start_many(request);
    EXPECT_EQ(outcomes.at(ids[0]).error.code, 0u);
    EXPECT_EQ(protocol::from_info(outcomes.at(ids[1]).error).code(), Code::internal);
  });
}

TEST_F(LightActorTest, EachIsReportedWhenTheProcessDies) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(600);
    auto request = requests(ids, "run");
    const auto outcomes = co_await start_many(request);
    head->exits_to_refuse = 3;
    ::kill(static_cast<pid_t>(outcomes.begin()->second.process.pid), SIGKILL);
    co_await head->until([&] { return head->exits.size() >= ids.size(); });
    std::set<ActorId> reported;
    for (const auto& exit : head->exits) {
      reported.insert(exit.actor);
      EXPECT_TRUE(exit.reason.starts_with("killed by signal 9 (Killed)"));
    }
    EXPECT_EQ(reported, std::set<ActorId>(ids.begin(), ids.end()));
    auto same = requests(ids, "run");
    const auto again = co_await start_many(same);
    EXPECT_EQ(protocol::from_info(again.at(ids[0]).error).code(), Code::conflict);
  });
}

TEST_F(LightActorTest, StoppingSomeLeavesTheOthersAndTheLastEndsTheProcess) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(4);
    auto request = requests(ids, "run");
    const auto outcomes = co_await start_many(request);
    const auto pid = static_cast<pid_t>(outcomes.at(ids[0]).process.pid);
    std::vector<ActorId> three(ids.begin(), ids.begin() + 3);
    EXPECT_TRUE(co_await stop_many(three));
    EXPECT_EQ(::kill(pid, 0), 0);
    const size_t before = head->registered.size();
    head->register_again = true;
    co_await head->until([&] { return head->registered.size() > before; });
    EXPECT_EQ(head->registered.back().actors.size(), 1u);
    EXPECT_TRUE(co_await stop_actor(ids[3], 1, 1s));
    while (worker->processes() > 0) co_await sleep_for(environment().clock, 5ms);
    EXPECT_TRUE(head->exits.empty()) << "stopped ones need no report";
  });
}

TEST_F(LightActorTest, OneThatIsStoppedBeforeItsProcessIsThereHarmsNoOther) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(2);
    Outcomes outcomes;
    Event started{environment().loop};
    const auto start = [&]() -> Async<void> {
      auto request = requests(ids, "run");
      outcomes = co_await start_many(std::move(request));
      started.set();
    };
    spawn(scope, start());
    // Launched, and far from ready.
    while (worker->processes() == 0) co_await sleep_for(environment().clock, 10us);
    std::vector<ActorId> one{ids[0]};
    EXPECT_TRUE(co_await stop_many(std::move(one)));
    co_await started.wait();
    EXPECT_EQ(outcomes.at(ids[1]).error.code, 0u) << outcomes.at(ids[1]).error.message;
    EXPECT_EQ(worker->processes(), 1u);
  });
}

TEST_F(LightActorTest, AStubbornOneIsEndedWithItsProcessAndTheOthersAreReported) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(2);
    auto request = requests(ids, "stubborn");
    co_await start_many(request);
    std::vector<ActorId> one{ids[0]};
    EXPECT_TRUE(co_await stop_many(one));
    co_await head->until([&] { return head->exits.size() == 2; });
    EXPECT_EQ(worker->processes(), 0u);
  });
}

TEST_F(LightActorTest, ANewerIncarnationReplacesTheOlder) {
  with_worker([this]() -> Async<void> {
    const auto ids = make_ids(2);
    auto request = requests(ids, "run");
    co_await start_many(request);
    std::vector<ActorId> one{ids[0]};
    auto newer = requests(one, "run", 2);
    const auto outcomes = co_await start_many(newer);
    EXPECT_EQ(outcomes.at(ids[0]).error.code, 0u);
    EXPECT_EQ(outcomes.at(ids[0]).incarnation, 2u);
    auto older = requests(one, "run", 1);
    const auto refused = co_await start_many(older);
    EXPECT_EQ(protocol::from_info(refused.at(ids[0]).error).code(), Code::conflict);
    EXPECT_EQ(worker->processes(), 1u);
  });
}

}  // namespace
}  // namespace troupe::worker
