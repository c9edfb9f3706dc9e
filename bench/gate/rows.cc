#include "bench/gate/rows.h"

#include <stdexcept>

#include "actor/mailbox.h"
#include "base/random.h"
#include "client/object_directory.h"
#include "client/timeline_notes.h"
#include "object_store/block_allocator.h"
#include "protocol/call_record.h"
#include "protocol/codec.h"
#include "scheduler/scheduler.h"
#include "tests/sim/sim_cluster.h"
#include "tests/transport/two_processes.h"
#include "transport/real_environment.h"

namespace bench {

namespace {

using namespace troupe;
using namespace std::chrono_literals;

void require(bool condition, const char* what) {
  if (!condition) throw std::runtime_error(what);
}

std::vector<protocol::Argument> two_arguments() {
  std::vector<protocol::Argument> arguments(2);
  arguments[0].inline_value = {1, 2, 3, 4};
  arguments[1].inline_value.resize(100);
  return arguments;
}

// A call's record, written and read.
std::function<void()> call_record() {
  const auto arguments = std::make_shared<std::vector<protocol::Argument>>(two_arguments());
  const auto room = std::make_shared<Bytes>();
  return [arguments, room] {
    room->resize(protocol::call_record_bytes("method", *arguments));
    protocol::write_call_record(room->data(), {}, "method", *arguments);
    require(protocol::read_call_record(*room).has_value(), "a record is not read");
  };
}

// The same call as it travels between nodes.
std::function<void()> invoke_message() {
  const auto invoke = std::make_shared<protocol::Invoke>();
  invoke->method = "method";
  invoke->arguments = two_arguments();
  return [invoke] {
    const Bytes encoded = protocol::encode(*invoke);
    require(protocol::decode<protocol::Invoke>(encoded).has_value(), "a message is not read");
  };
}

// A call and its reply through a pair of rings, both ends in this thread, which leads both ports:
// nobody sleeps, and nobody else reads.
struct Rings {
  class Echo final : public transport::CallHandler {
   public:
    void take_call(const std::shared_ptr<transport::CallChannel>& channel, uint64_t call,
                   BytesView payload) override {
      channel->begin(channel->count_call());
      channel->reply(call, payload.size(),
                     [&](uint8_t* out) { std::copy(payload.begin(), payload.end(), out); });
    }
    void cancel_call(const std::shared_ptr<transport::CallChannel>&, uint64_t, uint8_t) override {}
    void recall_calls(const std::shared_ptr<transport::CallChannel>&) override {}
    void channel_closed(const std::shared_ptr<transport::CallChannel>&) override {}
  };

  Rings() {
    require(caller.enable_rings() && callee.enable_rings(), "no rings");
    callee.environment().rings->set_handler(&echo);
    pair = transport::open_rings(*caller.environment().rings, 0, *callee.environment().rings, 0);
  }
  void call() {
    const auto state = transport::begin_call(pair.left, payload);
    // Either end may be read by its port's watcher as well.
    while (!state->is_settled()) {
      callee.environment().rings->drain();
      caller.environment().rings->drain();
    }
  }

  transport::RealEnvironment caller;
  transport::RealEnvironment callee;
  Echo echo;
  transport::RingPair pair;
  const Bytes payload = Bytes(64, 7);
};

std::function<void()> ring_call() {
  const auto rings = std::make_shared<Rings>();
  return [rings] { rings->call(); };
}

std::function<void()> mailbox_turn() {
  const auto mailbox =
      std::make_shared<actor::Mailbox>(100, nullptr, std::vector<actor::Mailbox::Lane>(1));
  return [mailbox] {
    auto call = std::make_shared<actor::Call>(actor::CallRequest{"method"}, actor::RingOrigin{});
    require(mailbox->put(std::move(call)).has_value(), "the mailbox is full");
    require(mailbox->take() != nullptr, "the mailbox is empty");
  };
}

// A call of a process that makes a million a second, as its owner and its callee note it, and what
// holds it there.
std::function<void()> call_noted() {
  class StepClock final : public Clock {
   public:
    Instant now() const override { return now_; }
    WallTime wall_now() const override { return {}; }
    void step() { now_ += 1us; }

   private:
    Instant now_{1s};
  };
  struct Noted {
    StepClock clock;
    std::vector<uint64_t> memory = std::vector<uint64_t>(timeline_bytes / sizeof(uint64_t));
    Timeline timeline{{reinterpret_cast<uint8_t*>(memory.data()), timeline_bytes}, clock};
    uint64_t number = 0;

    void call() {
      clock.step();
      const ObjectId result = client::result_id({}, static_cast<uint32_t>(++number));
      (void)client::submitted_now(&timeline, result, "method");
      actor::Call call{actor::CallRequest{"method"}, actor::RingOrigin{}};
      call.note_in(&timeline, result);
      require(call.begin(clock.now()), "a call does not begin");
      call.note_end(clock.now(), false);
    }
  };
  const auto noted = std::make_shared<Noted>();
  // Until only some are.
  for (int i = 0; i < 200'000; ++i) noted->call();
  return [noted] { noted->call(); };
}

std::function<void()> block_taken_and_freed() {
  const auto blocks = std::make_shared<object_store::BlockAllocator>(uint64_t{1} << 30);
  return [blocks] { blocks->free(blocks->allocate(100'000)->handle); };
}

// On a cluster of a hundred nodes that is half full.
std::function<void()> lease_granted_and_returned() {
  struct Cluster {
    SeededRandom random{1};
    scheduler::Scheduler scheduler{{.lease_term = 1000h, .patience = 1000h}};
    LeaseId lease() {
      const LeaseId id = LeaseId::random(random);
      scheduler.apply(
          scheduler::LeaseRequested{.lease = id, .demand = {.cpu_milli = 1000}, .slots = 1},
          Instant{1s});
      return id;
    }
  };
  const auto cluster = std::make_shared<Cluster>();
  for (int i = 0; i < 100; ++i) {
    cluster->scheduler.apply(
        scheduler::NodeAdded{NodeId::random(cluster->random), {.cpu_milli = 64'000}, {}},
        Instant{1s});
  }
  for (int i = 0; i < 3200; ++i) cluster->lease();
  return [cluster] {
    cluster->scheduler.apply(scheduler::LeaseReturned{cluster->lease(), {}}, Instant{1s});
  };
}

// A head, a worker, a driver and its actors in this thread, over the simulated network.
struct Simulated {
  Simulated() { require(cluster.start(), "the simulated cluster does not start"); }
  ~Simulated() {
    cluster.end_job();
    cluster.stop();
  }
  template <class T>
  Result<T> await(Async<Result<T>> operation) {
    auto outcome = std::make_shared<std::optional<Result<T>>>();
    spawn(simulation.scope(), keep<T>(std::move(operation), outcome));
    simulation.run_until([&] { return outcome->has_value(); }, 1h);
    require(outcome->has_value(), "the simulation stands still");
    return std::move(**outcome);
  }
  template <class T>
  static Async<void> keep(Async<Result<T>> operation,
                          std::shared_ptr<std::optional<Result<T>>> outcome) {
    auto value = co_await std::move(operation);
    outcome->emplace(std::move(value));
  }

  void call(ActorId actor) {
    client::ActorCallSpec spec;
    spec.actor = actor;
    spec.method = "echo";
    spec.arguments.resize(1);
    spec.arguments[0].inline_value = to_bytes("text");
    require(await(cluster.driver().call_actor(std::move(spec))).has_value(), "a call fails");
  }
  void run_task() {
    client::TaskTraits traits;
    traits.module = "module";
    traits.function = "echo";
    traits.demand = {{"cpu", 1000}};
    client::TaskSpec spec;
    spec.traits = std::make_shared<const client::TaskTraits>(std::move(traits));
    spec.arguments.resize(1);
    spec.arguments[0].inline_value = to_bytes("text");
    const auto result = cluster.driver().submit_task(std::move(spec));
    require(await(cluster.driver().get(result, 1h)).has_value(), "a task fails");
    cluster.driver().drop_reference(result);
  }
  ActorId create() {
    protocol::ActorSpec spec;
    spec.actor = ActorId::random(simulation.random());
    spec.module = "module";
    spec.class_name = "Class";
    const auto made = await(cluster.driver().create_actor(spec, 1h));
    require(made.has_value(), "no actor is created");
    require(await(cluster.driver().locate_actor(spec.actor, 0, 1h)).has_value(), "it is not alive");
    return spec.actor;
  }
  void kill(ActorId actor) {
    protocol::KillActor request{actor, "done"};
    auto killed = await(cluster.driver().ask_head<protocol::Empty>(transport::Method::kill_actor,
                                                                   std::move(request), 1h));
    require(killed.has_value(), "an actor is not killed");
  }

  sim::Simulation simulation{1};
  sim::SimCluster cluster{simulation, {.workers = 1, .cpu_milli = 64'000}};
};

std::function<void()> actor_call_over_the_loop() {
  const auto simulated = std::make_shared<Simulated>();
  const ActorId actor = simulated->create();
  return [simulated, actor] { simulated->call(actor); };
}

std::function<void()> task_over_the_loop() {
  const auto simulated = std::make_shared<Simulated>();
  return [simulated] { simulated->run_task(); };
}

std::function<void()> actor_created_and_killed() {
  const auto simulated = std::make_shared<Simulated>();
  return [simulated] { simulated->kill(simulated->create()); };
}

}  // namespace

std::vector<Row> gate_rows() {
  return {
      {"call_record", 2000, call_record},
      {"invoke_message", 1000, invoke_message},
      {"ring_call", 4000, ring_call},
      {"mailbox_turn", 2000, mailbox_turn},
      {"call_noted", 8000, call_noted},
      {"block_taken_and_freed", 2000, block_taken_and_freed},
      {"lease_granted_and_returned", 500, lease_granted_and_returned},
      {"actor_call_over_the_loop", 400, actor_call_over_the_loop},
      {"task_over_the_loop", 400, task_over_the_loop},
      {"actor_created_and_killed", 100, actor_created_and_killed},
  };
}

}  // namespace bench
