// A thousand small clusters, each with its own faults. TROUPE_SEED=N replays one of them (with
// TROUPE_HISTORY=1 its history is printed), TROUPE_SEEDS=N sets how many there are.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "client/object_directory.h"
#include "tests/sim/sim_cluster.h"

namespace troupe::sim {
namespace {

using namespace std::chrono_literals;
using protocol::Method;

constexpr uint64_t seeds_default = 1000;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int slow_hours_default = 1;
#else
constexpr int slow_hours_default = 24;
#endif

std::vector<uint64_t> seeds(uint64_t count) {
  if (const char* one = std::getenv("TROUPE_SEED")) return {std::strtoull(one, nullptr, 10)};
  if (const char* given = std::getenv("TROUPE_SEEDS")) {
    count = std::min<uint64_t>(count, std::strtoull(given, nullptr, 10));
    if (count < seeds_default && count == 0) count = 1;
  }
  std::vector<uint64_t> all(count);
  for (uint64_t i = 0; i < count; ++i) all[i] = i + 1;
  return all;
}

struct Plan {
  size_t heads = 1;
  NetworkFaults faults;
  bool kill_worker = false;
  bool kill_head = false;
  bool lazy_sync = false;
};

Plan plan_of(Random& random) {
  Plan plan;
  plan.faults.delay_max = std::chrono::microseconds(200 + random.below(20'000));
  plan.faults.drop = 0.02 + 0.03 * random.uniform();
  plan.faults.reorder = 0.05;
  plan.faults.spare_local = true;
  plan.kill_worker = random.chance(0.3);
  plan.kill_head = random.chance(0.2);
  plan.heads = random.chance(0.2) ? 3 : 1;
  return plan;
}

// Built outside coroutines: GCC 12 miscompiles initializer lists inside them.
std::vector<protocol::ResourceAmount> cpus(int64_t milli) {
  return {{"cpu", milli}};
}
std::vector<protocol::Argument> argument(std::string_view text) {
  return {{to_bytes(text), {}, {}}};
}

// What a user's program does in one run: actors, calls, tasks, kills.
class Program {
 public:
  Program(Simulation& simulation, SimCluster& cluster)
      : simulation_(simulation), cluster_(cluster), random_(simulation.random()) {}

  void begin() {
    const uint64_t actors = 2 + random_.below(4);
    for (uint64_t i = 0; i < actors; ++i) start(use_actor(random_.chance(0.3)));
    const uint64_t batches = 1 + random_.below(3);
    for (uint64_t i = 0; i < batches; ++i) start(run_tasks(1 + random_.below(6)));
    const uint64_t groups = random_.below(3);
    for (uint64_t i = 0; i < groups; ++i) start(use_group());
  }
  bool is_done() const { return running_ == 0; }
  const std::set<ActorId>& promised() const { return promised_; }
  const std::set<PlacementGroupId>& promised_groups() const { return promised_groups_; }
  uint64_t succeeded() const { return succeeded_; }
  uint64_t failed() const { return failed_; }

 private:
  void start(Async<void> script) {
    ++running_;
    spawn(simulation_.scope(), run(std::move(script)));
  }
  Async<void> run(Async<void> script) {
    co_await std::move(script);
    --running_;
  }
  Async<void> pause(uint64_t ms_max) {
    co_await sleep_for(simulation_.clock(), std::chrono::milliseconds(random_.below(ms_max + 1)));
  }
  template <class T>
  void note(std::string_view what, const Result<T>& outcome) {
    ++(outcome ? succeeded_ : failed_);
    const Code code = outcome ? Code::ok : outcome.error().code();
    simulation_.record(fmt::format("outcome of {}: {}", what, code_name(code)));
  }

  Async<void> use_actor(bool named) {
    co_await pause(1000);
    protocol::ActorSpec spec;
    spec.actor = ActorId::random(random_);
    spec.module = "module";
    spec.class_name = "Class";
    spec.demand = cpus(1000);
    spec.max_restarts = static_cast<int32_t>(random_.below(5)) - 1;
    if (random_.chance(0.5)) spec.strategy = "spread";
    if (named) {
      spec.name = "the-one";
      spec.name_space = "sim";
      spec.get_if_exists = true;
    }
    auto created = co_await cluster_.driver().create_actor(spec, 10s);
    note("create", created);
    if (!created) co_return;
    const ActorId actor = created->actor;
    promised_.insert(actor);
    const uint64_t calls = 2 + random_.below(5);
    for (uint64_t i = 0; i < calls; ++i) {
      co_await call_once(actor);
      co_await pause(400);
    }
    if (random_.chance(0.3)) co_await kill(actor);
  }

  Async<void> call_once(ActorId actor) {
    client::ActorCallSpec call;
    call.actor = actor;
    call.budget = 3s;
    const bool retriable = random_.chance(0.5);
    if (retriable) {
      client::ActorCallExtras extras;
      extras.retry.retries = -1;
      call.extras = std::make_shared<const client::ActorCallExtras>(std::move(extras));
    }
    const uint64_t kind = random_.below(20);
    call.method = kind == 0 ? "crash" : kind == 1 ? "fail" : kind < 6 ? "slow" : "echo";
    // Says so in its argument, for the check that nothing else runs twice.
    const std::string text =
        fmt::format("call {}{}", random_.below(1000), retriable ? may_run_again : "");
    call.arguments = argument(text);
    const std::string method = call.method;
    const Instant begun = simulation_.clock().now();
    auto value = co_await cluster_.driver().call_actor(std::move(call));
    note(method, value);
    if (value && as_text(value->bytes) != text) cluster_.checks().violation("a wrong answer");
    if (simulation_.clock().now() - begun > 5s) {
      cluster_.checks().violation("a call outlives its budget: " + method);
    }
  }

  Async<void> kill(ActorId actor) {
    protocol::KillActor request;
    request.actor = actor;
    request.reason = "by the program";
    auto killed =
        co_await cluster_.driver().ask_head<protocol::Empty>(Method::kill_actor, request, 5s);
    note("kill", killed);
  }

  std::string pick_function() {
    if (random_.chance(0.05)) return "crash";
    return random_.chance(0.4) ? "slow" : "echo";
  }

  static protocol::PlacementGroupSpec group_spec(Random& random, JobId job) {
    static constexpr const char* strategies[] = {"pack", "spread", "strict_pack", "strict_spread"};
    protocol::PlacementGroupSpec spec;
    spec.group = PlacementGroupId::random(random);
    spec.job = job;
    spec.bundles = {{cpus(500)}, {cpus(500)}};
    spec.strategy = strategies[random.below(4)];
    return spec;
  }

  // A group with an actor and tasks in it; often removed while they run.
  Async<void> use_group() {
    co_await pause(1000);
    const protocol::PlacementGroupSpec spec = group_spec(random_, cluster_.job());
    protocol::PlacementGroupSpecs request;
    request.items.push_back(spec);
    auto& driver = cluster_.driver();
    auto created = co_await driver.ask_head<protocol::PlacementGroupResults>(
        Method::create_placement_groups, request, 10s);
    note("create group", created);
    if (!created) co_return;
    promised_groups_.insert(spec.group);
    protocol::GetPlacementGroup question;
    question.group = spec.group;
    question.wait = true;
    auto placed = co_await driver.ask_head<protocol::PlacementGroupInfo>(
        Method::get_placement_group, question, 10s);
    note("wait for group", placed);
    start(run_tasks(1 + random_.below(4), spec.group));
    protocol::ActorSpec member;
    member.actor = ActorId::random(random_);
    member.module = "module";
    member.class_name = "Class";
    member.demand = cpus(250);
    member.max_restarts = -1;
    member.placement.group = spec.group;
    member.placement.bundle = static_cast<uint32_t>(random_.below(3));
    auto made = co_await driver.create_actor(member, 10s);
    note("create member", made);
    if (made) {
      promised_.insert(member.actor);
      co_await call_once(member.actor);
      co_await pause(2000);
      co_await call_once(member.actor);
    }
    // Asked once more, so that the checks learn of a later grant.
    auto again = co_await driver.ask_head<protocol::PlacementGroupInfo>(Method::get_placement_group,
                                                                        question, 10s);
    note("wait for group", again);
    if (random_.chance(0.5)) co_await remove(spec.group);
  }

  Async<void> remove(PlacementGroupId group) {
    promised_groups_.erase(group);
    protocol::RemovePlacementGroups request;
    request.groups.push_back(group);
    auto removed = co_await cluster_.driver().ask_head<protocol::Empty>(
        Method::remove_placement_groups, request, 10s);
    note("remove group", removed);
  }

  Async<void> run_tasks(uint64_t count, PlacementGroupId group = {}) {
    co_await pause(1500);
    std::vector<client::ObjectName> results;
    for (uint64_t i = 0; i < count; ++i) {
      client::TaskTraits traits;
      traits.module = "module";
      traits.function = pick_function();
      traits.demand = cpus(group.is_nil() ? 500 : 250);
      traits.placement.group = group;
      traits.retry.retries = static_cast<int32_t>(random_.below(3));
      traits.budget = 8s;
      client::TaskSpec task;
      task.traits = std::make_shared<const client::TaskTraits>(std::move(traits));
      task.arguments = argument("task");
      results.push_back(cluster_.driver().submit_task(std::move(task)));
    }
    for (size_t i = 0; i < results.size(); ++i) {
      const client::ObjectName result = results[i];
      auto value = co_await cluster_.driver().get(result, 60s);
      note("task", value);
      if (value && as_text(value->bytes) != "task") {
        cluster_.checks().violation("a wrong result");
      }
      // Of its own budget, too, a task may say that the time is over.
      const auto object = cluster_.driver().objects().find(result.id);
      if (object && !object->is_ready()) cluster_.checks().violation("a task never ends");
      cluster_.driver().drop_reference(result);
    }
  }

  Simulation& simulation_;
  SimCluster& cluster_;
  Random& random_;
  uint64_t running_ = 0;
  std::set<ActorId> promised_;
  std::set<PlacementGroupId> promised_groups_;  // And not removed.
  uint64_t succeeded_ = 0;
  uint64_t failed_ = 0;
};

struct Outcome {
  uint64_t hash = 0;
  std::vector<std::string> violations;
  NetworkCounts network;
  uint64_t succeeded = 0;
  uint64_t failed = 0;
  uint64_t calls_run = 0;
  uint64_t leases = 0;
  uint64_t grants = 0;
  uint64_t in_bundles = 0;
};

// Every actor that was promised is known to the head, also to one that was restarted.
Async<void> find_promised(SimCluster& cluster, const Program& program) {
  protocol::Empty nothing;
  auto list =
      co_await cluster.driver().ask_head<protocol::ActorList>(Method::list_actors, nothing, 10s);
  if (!list) {
    cluster.checks().violation("the head does not list its actors");
    co_return;
  }
  std::set<ActorId> known;
  std::set<std::string> names;
  for (const protocol::ActorInfo& actor : list->items) {
    known.insert(actor.actor);
    if (actor.name.empty() || actor.state == "dead") continue;
    if (!names.insert(actor.name).second) cluster.checks().violation("a name is taken twice");
  }
  auto groups = co_await cluster.driver().ask_head<protocol::PlacementGroupList>(
      Method::list_placement_groups, nothing, 10s);
  std::set<PlacementGroupId> listed;
  if (groups) {
    for (const auto& group : groups->items) listed.insert(group.spec.group);
  }
  for (const PlacementGroupId group : program.promised_groups()) {
    if (listed.contains(group)) continue;
    cluster.checks().violation("group " + group.short_string() + " was promised and is forgotten");
  }
  for (const ActorId actor : program.promised()) {
    if (known.contains(actor)) continue;
    cluster.checks().violation("actor " + actor.short_string() + " was promised and is forgotten");
  }
}

using Sabotage = std::function<void(Simulation&, Plan&)>;

Outcome run_seed(uint64_t seed, const Sabotage& sabotage = nullptr) {
  Simulation sim{seed};
  const bool show = std::getenv("TROUPE_HISTORY") != nullptr;
  if (show) sim.history().keep_text();
  Plan plan = plan_of(sim.random());
  if (sabotage) sabotage(sim, plan);
  Outcome outcome;
  {
    ClusterOptions options;
    options.lazy_sync = plan.lazy_sync;
    options.heads = plan.heads;
    SimCluster cluster{sim, options};
    if (!cluster.start()) cluster.checks().violation("the cluster does not come up");
    sim.network().set_faults(plan.faults);
    Program program{sim, cluster};
    program.begin();
    const auto wait = [&](uint64_t ms_max) {
      sim.run_for(std::chrono::milliseconds(sim.random().below(ms_max)));
    };
    if (plan.kill_worker) {
      wait(3000);
      const size_t index = 1 + sim.random().below(2);
      cluster.kill_worker(index);
      wait(8000);
      cluster.start_worker(index);
    }
    if (plan.kill_head) {
      wait(3000);
      SimHead* const leads = cluster.leader();
      SimHead& head = leads != nullptr ? *leads : cluster.head();
      head.kill();
      wait(2000);
      head.start();
    }
    sim.run_until([&] { return program.is_done(); }, 10s);
    NetworkFaults calm;
    sim.network().set_faults(calm);
    if (!sim.run_until([&] { return program.is_done(); }, 30s)) {
      cluster.checks().violation("a call has not ended 30 s after the last fault");
    }
    cluster.settle(40s);
    sim.run(find_promised(cluster, program), 30s);
    cluster.end_job();
    cluster.stop();
    outcome.violations = cluster.checks().violations();
    outcome.succeeded = program.succeeded();
    outcome.failed = program.failed();
    outcome.calls_run = cluster.checks().calls_run();
    outcome.leases = cluster.checks().leases_granted();
    outcome.grants = cluster.checks().grants_seen();
    outcome.in_bundles = cluster.checks().seen_in_bundles();
  }
  outcome.hash = sim.history_hash();
  outcome.network = sim.network().counts();
  if (show) {
    for (const std::string& line : sim.history().text()) std::fputs(line.c_str(), stdout);
  }
  return outcome;
}

TEST(ClusterSimulation, KeepsItsPromisesUnderFaults) {
  Outcome sum;
  size_t bad = 0;
  for (const uint64_t seed : seeds(seeds_default)) {
    const Outcome outcome = run_seed(seed);
    for (const std::string& violation : outcome.violations) {
      ADD_FAILURE() << "TROUPE_SEED=" << seed << ": " << violation;
    }
    if (!outcome.violations.empty() && ++bad == 10) break;
    sum.succeeded += outcome.succeeded;
    sum.failed += outcome.failed;
    sum.calls_run += outcome.calls_run;
    sum.leases += outcome.leases;
    sum.grants += outcome.grants;
    sum.in_bundles += outcome.in_bundles;
    sum.network.delivered += outcome.network.delivered;
    sum.network.dropped += outcome.network.dropped;
    sum.network.overtaken += outcome.network.overtaken;
  }
  fmt::print(
      "{} calls ran, {} leases, {} grants of groups, {} successes, {} failures; {} frames "
      "delivered, {} dropped, "
      "{} overtaken\n",
      sum.calls_run, sum.leases, sum.grants, sum.succeeded, sum.failed, sum.network.delivered,
      sum.network.dropped, sum.network.overtaken);
  // The faults must leave something to check.
  EXPECT_GT(sum.succeeded, 3 * sum.failed);
  EXPECT_GT(sum.network.dropped, 0u);
  EXPECT_GT(sum.network.overtaken, 0u);
  EXPECT_GT(sum.leases, 0u);
  EXPECT_GT(sum.grants, 0u);
  EXPECT_GT(sum.in_bundles, 0u);
}

TEST(ClusterSimulation, TheSameSeedIsTheSameHistory) {
  std::set<uint64_t> hashes;
  const auto subset = seeds(20);
  for (const uint64_t seed : subset) {
    const uint64_t hash = run_seed(seed).hash;
    EXPECT_EQ(run_seed(seed).hash, hash) << "TROUPE_SEED=" << seed;
    hashes.insert(hash);
  }
  EXPECT_EQ(hashes.size(), subset.size());
}

// --- Slow, not dead

Async<void> call_all(SimCluster& cluster, const std::vector<ActorId>& actors, uint64_t& answered) {
  for (const ActorId actor : actors) {
    client::ActorCallSpec call;
    call.actor = actor;
    call.budget = 60s;
    call.method = "echo";
    call.arguments = argument("text");
    auto value = co_await cluster.driver().call_actor(std::move(call));
    if (value) ++answered;
  }
}

// As a busy machine does to a process: it does not run for up to a second, every few seconds.
Async<void> stall(Simulation& sim, SimHost& host, const bool& on) {
  while (on) {
    co_await sleep_for(sim.clock(), std::chrono::milliseconds(sim.random().below(6000)));
    host.pause();
    co_await sleep_for(sim.clock(), std::chrono::milliseconds(sim.random().below(1000)));
    host.resume();
  }
}

Async<void> create_everywhere(SimCluster& cluster, Random& random, std::vector<ActorId>& actors) {
  for (size_t i = 0; i < cluster.workers(); ++i) {
    protocol::ActorSpec spec;
    spec.actor = ActorId::random(random);
    spec.module = "module";
    spec.class_name = "Class";
    spec.demand = cpus(1000);
    spec.strategy = "spread";
    spec.max_restarts = -1;
    auto created = co_await cluster.driver().create_actor(spec, 60s);
    if (created) actors.push_back(spec.actor);
  }
}

class SlowCluster : public testing::Test {
 protected:
  SlowCluster() : sim_(seeds(1).front()), cluster_(sim_, options()) {}

  static ClusterOptions options() {
    ClusterOptions options;
    options.workers = 3;
    return options;
  }
  // With an actor on each node; then each fifth packet is lost, and all daemons stall.
  void begin() {
    ASSERT_TRUE(cluster_.start());
    sim_.run(create_everywhere(cluster_, sim_.random(), actors_), 60s);
    ASSERT_EQ(actors_.size(), cluster_.workers());
    uint64_t answered = 0;
    sim_.run(call_all(cluster_, actors_, answered), 60s);
    ASSERT_EQ(answered, actors_.size());
    for (const auto& [id, process] : cluster_.checks().processes()) {
      if (process->actor().incarnation != 0) processes_.push_back(process);
    }
    ASSERT_EQ(processes_.size(), cluster_.workers());
    NetworkFaults faults;
    faults.packet_loss = 0.2;
    sim_.network().set_faults(faults);
    spawn(sim_.scope(), stall(sim_, cluster_.head().host(), stalls_));
    for (size_t i = 0; i < cluster_.workers(); ++i) {
      spawn(sim_.scope(), stall(sim_, cluster_.worker_host(i), stalls_));
    }
  }
  void end() {
    stalls_ = false;
    sim_.run_for(10s);
    sim_.network().set_faults({});
    cluster_.end_job();
    cluster_.stop();
    for (const std::string& violation : cluster_.checks().violations()) ADD_FAILURE() << violation;
  }
  size_t ended() const {
    return static_cast<size_t>(std::ranges::count_if(
        processes_, [](const auto& process) { return !process->is_alive(); }));
  }

  Simulation sim_;
  SimCluster cluster_;
  std::vector<ActorId> actors_;
  std::vector<std::shared_ptr<SimProcess>> processes_;
  bool stalls_ = true;
};

// A day; TROUPE_SLOW_HOURS sets another time.
TEST_F(SlowCluster, IsNotTakenForDead) {
  const char* const given = std::getenv("TROUPE_SLOW_HOURS");
  const int hours = given != nullptr ? std::atoi(given) : slow_hours_default;
  ASSERT_NO_FATAL_FAILURE(begin());
  uint64_t answered = 0;
  for (int minute = 0; minute < hours * 60; ++minute) {
    sim_.run(call_all(cluster_, actors_, answered), 200s);
    sim_.run_for(50s);
  }
  EXPECT_EQ(ended(), 0u);
  EXPECT_EQ(answered, static_cast<uint64_t>(hours * 60) * actors_.size());
  fmt::print("{} packets lost\n", sim_.network().counts().packets_lost);
  EXPECT_GT(sim_.network().counts().packets_lost, static_cast<uint64_t>(hours) * 3600);
  end();
}

TEST_F(SlowCluster, IsDeadAfterTenSeconds) {
  ASSERT_NO_FATAL_FAILURE(begin());
  sim_.run_for(30s);
  ASSERT_EQ(ended(), 0u);
  stalls_ = false;
  sim_.run_for(8s);
  cluster_.worker_host(0).pause();
  sim_.run_for(10s);
  cluster_.worker_host(0).resume();
  sim_.run_for(30s);
  EXPECT_EQ(ended(), 1u);
  end();
}

// --- Several heads

// An actor that is made and answers, by the head that leads.
Async<void> use_cluster(SimCluster& cluster, Random& random, Status& outcome) {
  protocol::ActorSpec spec;
  spec.actor = ActorId::random(random);
  spec.module = "module";
  spec.class_name = "Class";
  spec.demand = cpus(250);
  auto created = co_await cluster.driver().create_actor(spec, 10s);
  if (!created) {
    outcome = created.error();
    co_return;
  }
  client::ActorCallSpec call;
  call.actor = spec.actor;
  call.budget = 10s;
  call.method = "echo";
  call.arguments = argument("text");
  auto value = co_await cluster.driver().call_actor(std::move(call));
  outcome = value ? ok() : Status(value.error());
}

Status use_cluster(Simulation& sim, SimCluster& cluster) {
  Status outcome = error(Code::deadline_exceeded, "it never ends");
  sim.run(use_cluster(cluster, sim.random(), outcome), 30s);
  return outcome;
}

Async<void> hand_over(SimHead* head, bool& done) {
  done = co_await head->hand_over();
}

TEST(ClusterOfThreeHeads, GoesOnWhenTheOneThatLeadsIsKilled) {
  Simulation sim{1};
  ClusterOptions options;
  options.heads = 3;
  options.workers = 10;
  SimCluster cluster{sim, options};
  ASSERT_TRUE(cluster.start());
  ASSERT_TRUE(use_cluster(sim, cluster));
  for (int round = 0; round < 4; ++round) {
    SimHead* const leader = cluster.leader();
    ASSERT_NE(leader, nullptr);
    const uint64_t term = cluster.coordinator().read().term;
    leader->kill(round % 2 == 1);
    const Status used = use_cluster(sim, cluster);
    EXPECT_TRUE(used) << used.error().to_string();
    EXPECT_GT(cluster.coordinator().read().term, term);
    EXPECT_FALSE(leader->is_up());
    leader->start();
    cluster.settle(30s);
  }
  cluster.end_job();
  cluster.stop();
  for (const std::string& violation : cluster.checks().violations()) ADD_FAILURE() << violation;
}

TEST(ClusterOfThreeHeads, HandsTheLeadOver) {
  Simulation sim{2};
  ClusterOptions options;
  options.heads = 3;
  SimCluster cluster{sim, options};
  ASSERT_TRUE(cluster.start());
  SimHead* const leader = cluster.leader();
  ASSERT_NE(leader, nullptr);
  bool done = false;
  sim.run(hand_over(leader, done), 5s);
  EXPECT_TRUE(done);
  EXPECT_TRUE(use_cluster(sim, cluster));
  EXPECT_NE(cluster.leader(), leader);
  cluster.settle(30s);
  cluster.end_job();
  cluster.stop();
  for (const std::string& violation : cluster.checks().violations()) ADD_FAILURE() << violation;
}

// The checks themselves: a cluster that is broken on purpose must not pass.
size_t caught(uint64_t count, const Sabotage& sabotage, const std::string& what) {
  size_t seeds_caught = 0;
  for (uint64_t seed = 1; seed <= count; ++seed) {
    const auto violations = run_seed(seed, sabotage).violations;
    seeds_caught += std::any_of(violations.begin(), violations.end(),
                                [&](const auto& text) { return text.find(what) != text.npos; });
  }
  return seeds_caught;
}

TEST(ClusterSimulationChecks, CatchASlotThatIsGrantedTwice) {
  const auto grant_twice = [](Simulation& sim, Plan& plan) {
    plan.kill_head = false;
    // The head answers each further lease with the slots of the first.
    auto asked = std::make_shared<std::set<std::pair<uint64_t, uint64_t>>>();
    auto first = std::make_shared<std::optional<protocol::LeaseGranted>>();
    sim.network().add_tap([asked, first](const SentFrame& sent) {
      auto& header = sent.frame.header;
      const auto call = std::pair{sent.connection, header.call};
      if (header.method == Method::request_lease) asked->insert(call);
      if (header.kind != protocol::FrameKind::reply || header.error.code != 0) return;
      if (sent.from.identity().role != transport::Role::head || asked->erase(call) == 0) return;
      auto grant = protocol::decode<protocol::LeaseGranted>(sent.frame.body);
      if (!grant) return;
      if (!*first) *first = *grant;
      grant->slots = (*first)->slots;
      sent.frame.body = protocol::encode(*grant);
    });
  };
  // Seen only where two leases overlap.
  EXPECT_GT(caught(40, grant_twice, "is granted to lease"), 2u);
}

TEST(ClusterSimulationChecks, CatchACallThatRunsTwice) {
  const auto duplicate = [](Simulation&, Plan& plan) {
    plan.faults.duplicate = 0.2;
    plan.faults.may_duplicate = [](const auto& header) { return header.method == Method::invoke; };
  };
  EXPECT_GT(caught(10, duplicate, "ran twice"), 5u);  // Some seeds make retriable calls only.
}

// Changes what the head tells of placement groups.
Sabotage tell(std::function<void(protocol::PlacementGroupInfo&)> change) {
  return [change = std::move(change)](Simulation& sim, Plan&) {
    auto asked = std::make_shared<std::set<std::pair<uint64_t, uint64_t>>>();
    sim.network().add_tap([asked, change](const SentFrame& sent) {
      auto& header = sent.frame.header;
      const auto call = std::pair{sent.connection, header.call};
      if (header.method == Method::get_placement_group) asked->insert(call);
      if (header.kind != protocol::FrameKind::reply || header.error.code != 0) return;
      if (sent.from.identity().role != transport::Role::head || asked->erase(call) == 0) return;
      auto group = protocol::decode<protocol::PlacementGroupInfo>(sent.frame.body);
      if (!group || group->state != "placed") return;
      change(*group);
      sent.frame.body = protocol::encode(*group);
    });
  };
}

TEST(ClusterSimulationChecks, CatchAGroupThatIsGrantedInPart) {
  const auto drop_one = tell([](auto& group) { group.places.pop_back(); });
  EXPECT_GT(caught(20, drop_one, "is granted in part"), 5u);
}

TEST(ClusterSimulationChecks, CatchABundleThatIsOverAllocated) {
  const auto shrink = tell([](auto& group) {
    for (auto& bundle : group.spec.bundles) bundle.demand[0].milli = 249;
  });
  EXPECT_GT(caught(20, shrink, "is over-allocated"), 5u);
}

TEST(ClusterSimulationChecks, CatchAHeadThatPromisesBeforeItsDiskDoes) {
  const auto lazy = [](Simulation&, Plan& plan) {
    plan.heads = 1;  // Others would have what it forgets.
    plan.lazy_sync = true;
    plan.kill_head = true;
  };
  EXPECT_GT(caught(10, lazy, "is forgotten"), 5u);
}

}  // namespace
}  // namespace troupe::sim
