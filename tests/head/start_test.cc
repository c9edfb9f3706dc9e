// A head comes up on what its store holds, or not at all; and one head at a time may write.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class Start : public HeadTest {
 protected:
  Status start(Head& started) {
    Status status = error(Code::internal, "it does not end");
    EXPECT_TRUE(simulation.run(start_into(started, &status), 1s));
    return status;
  }

 private:
  Async<void> start_into(Head& started, Status* status) { *status = co_await started.start(); }
};

TEST_F(Start, TellsWhereItListens) {
  options.listen = {{"", "10.0.0.1", 0}};
  start_head();
  ASSERT_EQ(head->endpoints().size(), 1u);
  EXPECT_NE(head->endpoints()[0].port, 0);
}

TEST_F(Start, DoesNotStartWhereAnotherListens) {
  start_head();
  Head second{simulation.environment(*head_host), store, options};
  EXPECT_EQ(code_of(start(second)), Code::conflict);
  EXPECT_TRUE(simulation.run(second.stop(), 1s));
}

TEST_F(Start, DoesNotStartOnARowThatItCannotRead) {
  Batch batch;
  batch.put(Table::actors, ActorId::random(simulation.random()).to_string(), "no message");
  ASSERT_TRUE(store.commit(batch, 1));
  Head damaged{simulation.environment(add_host("head", "head", Role::head)), store, options};
  EXPECT_EQ(code_of(start(damaged)), Code::data_loss);
  EXPECT_TRUE(simulation.run(damaged.stop(), 1s));
}

TEST_F(Start, DoesNotStartOnADiskThatTakesNoEpoch) {
  store.commits_left = 0;
  Head barred{simulation.environment(add_host("head", "head", Role::head)), store, options};
  EXPECT_EQ(code_of(start(barred)), Code::outcome_unknown);
  EXPECT_TRUE(simulation.run(barred.stop(), 1s));
}

TEST_F(Start, OlderHeadPromisesNothingOnceANewerOneStarted) {
  start_head();
  const auto client = driver();
  HeadOptions elsewhere = options;
  elsewhere.listen[0].port = 7001;
  Head newer{simulation.environment(*head_host), store, elsewhere};
  ASSERT_EQ(code_of(start(newer)), Code::ok);
  EXPECT_NE(code_of(create(client, actor_spec())), Code::ok);
  EXPECT_TRUE(head->broken().is_set());
  EXPECT_TRUE(simulation.run(newer.stop(), 1s));
}

TEST_F(Start, StrangersAreToldNothing) {
  start_head();
  const auto peer = connect(add_host("stranger", "stranger", Role::unknown), nothing, {}).value();
  EXPECT_EQ(code_of(ask<protocol::NodeList>(peer, Method::list_nodes, Empty{})), Code::denied);
  EXPECT_EQ(code_of(ask<protocol::ActorInfo>(peer, Method::create_actor, actor_spec())),
            Code::denied);
}

TEST_F(Start, UnknownMethodIsUnimplemented) {
  start_head();
  EXPECT_EQ(code_of(ask<Empty>(driver(), Method::seal_blocks, Empty{})), Code::unimplemented);
}

TEST_F(Start, StopsThoughCallersWait) {
  start_head();
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  protocol::GetActor request;
  request.actor = spec.actor;
  const auto waits = begin<protocol::ActorInfo>(client, Method::get_actor, request, 1h);
  simulation.run_for(1s);
  stop_head();
  simulation.run_for(1s);
  ASSERT_TRUE(waits->has_value());
  EXPECT_EQ(code_of(**waits), Code::outcome_unknown);
}

}  // namespace
}  // namespace troupe::head
