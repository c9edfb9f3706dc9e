// What the head costs in memory, by what it has to know.
#include <malloc.h>

#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

// A sanitizer's allocator keeps no such count.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define TROUPE_SKIP_UNDER_SANITIZERS() GTEST_SKIP() << "a sanitizer's allocator counts otherwise"
#else
#define TROUPE_SKIP_UNDER_SANITIZERS() (void)0
#endif

size_t bytes_in_use() {
  const auto info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

class HeadScale : public HeadTest {
 protected:
  // Light actors, alive. What the fakes remember of it goes.
  protocol::ActorIds create_alive(const std::shared_ptr<Peer>& client, size_t count) {
    protocol::ActorSpecs specs;
    protocol::ActorIds ids;
    for (size_t n = 0; n < count; ++n) {
      auto spec = actor_spec(0);
      spec.module = "/tmp/module";
      spec.shared = true;
      ids.actors.push_back(spec.actor);
      specs.items.push_back(std::move(spec));
    }
    EXPECT_TRUE(ask<protocol::ActorResults>(client, Method::create_actors, specs));
    EXPECT_TRUE(ask<protocol::ActorResults>(client, Method::get_actors, ids));
    forget();
    return ids;
  }
  void forget() {
    for (FakeWorker* worker : workers) {
      worker->batches_started.clear();
      worker->batches_stopped.clear();
    }
  }

  std::vector<FakeWorker*> workers;
};

// A node with both ends of its connection, an actor with nothing of its row, which is on disk.
TEST_F(HeadScale, AMillionActorsAndTenThousandNodesFitInTwoGiB) {
  TROUPE_SKIP_UNDER_SANITIZERS();
  constexpr size_t nodes = 500, batches = 20, batch = 2500;
  start_head();
  store.keeps = false;
  const auto client = driver();
  const size_t at_first = bytes_in_use();
  for (size_t i = 0; i < nodes; ++i) workers.push_back(&add_worker(64));
  const size_t with_nodes = bytes_in_use();
  for (size_t i = 0; i < batches; ++i) create_alive(client, batch);
  const size_t with_actors = bytes_in_use();
  const size_t of_node = (with_nodes - at_first) / nodes;
  const size_t of_actor = (with_actors - with_nodes) / (batches * batch);
  RecordProperty("bytes_a_node", std::to_string(of_node));
  RecordProperty("bytes_an_actor", std::to_string(of_actor));
  EXPECT_GT(of_actor, 200u);
  EXPECT_LT(of_actor * 1'000'000 + of_node * 10'000, size_t{2} << 30)
      << of_actor << " an actor, " << of_node << " a node";
}

TEST_F(HeadScale, WhatIsOverCostsNoMemoryForEver) {
  TROUPE_SKIP_UNDER_SANITIZERS();
  start_head();
  store.keeps = false;
  const auto client = driver();
  workers.push_back(&add_worker(64));
  std::vector<size_t> in_use;
  for (int round = 0; round < 12; ++round) {
    const auto ids = create_alive(client, 2000);
    ASSERT_TRUE(ask<Empty>(client, Method::kill_actors, ids));
    simulation.run_for(1s);
    forget();
    in_use.push_back(bytes_in_use());
  }
  // By then as many dead are remembered as ever are.
  EXPECT_LT(in_use.back(), in_use[3] + in_use[3] / 20) << in_use[3] << " " << in_use.back();
}

}  // namespace
}  // namespace troupe::head
