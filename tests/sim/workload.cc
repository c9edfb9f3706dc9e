#include "tests/sim/workload.h"

#include <fmt/format.h>

#include <algorithm>

#include "client/object_directory.h"

namespace troupe::sim {

using namespace std::chrono_literals;
using protocol::Empty;
using protocol::Method;

namespace {

// Built outside coroutines: GCC 12 miscompiles initializer lists inside them.
std::vector<protocol::ResourceAmount> cpus(int64_t milli) {
  return {{"cpu", milli}};
}
std::vector<protocol::Argument> argument(std::string_view text) {
  return {{to_bytes(text), {}, {}}};
}
std::vector<protocol::Argument> argument(const client::ObjectName& object) {
  return {{{}, object.id, object.owner}};
}

protocol::PlacementGroupSpec group_spec(Random& random, JobId job) {
  static constexpr const char* strategies[] = {"pack", "spread", "strict_pack", "strict_spread"};
  protocol::PlacementGroupSpec spec;
  spec.group = PlacementGroupId::random(random);
  spec.job = job;
  spec.bundles = {{cpus(500)}, {cpus(500)}};
  spec.strategy = strategies[random.below(4)];
  return spec;
}

client::ActorCallSpec call_spec(ActorId actor, std::string method, std::string_view text) {
  client::ActorCallSpec call;
  call.actor = actor;
  call.budget = 3s;
  call.method = std::move(method);
  call.arguments = argument(text);
  return call;
}

protocol::ActorSpec actor_spec(Random& random, JobId job) {
  protocol::ActorSpec spec;
  spec.actor = ActorId::random(random);
  spec.job = job;
  spec.module = "module";
  spec.class_name = "Class";
  return spec;
}

}  // namespace

Workload::Workload(Simulation& simulation, SimCluster& cluster, Promises& promises)
    : simulation_(simulation),
      cluster_(cluster),
      promises_(promises),
      random_(simulation.random()) {}

Async<void> Workload::run(size_t user) {
  co_await use(user);
  doing_.erase(user);
}

std::string Workload::what_runs() const {
  std::string text;
  for (const auto& [user, what] : doing_) text += (text.empty() ? "" : ", ") + what;
  return text;
}

Async<void> Workload::pause(uint64_t ms_max) {
  co_await sleep_for(simulation_.clock(), std::chrono::milliseconds(random_.below(ms_max + 1)));
}

template <class T>
void Workload::note(std::string_view what, const Result<T>& outcome) {
  ++(outcome ? succeeded_ : failed_);
  const Code code = outcome ? Code::ok : outcome.error().code();
  simulation_.record(fmt::format("outcome of {}: {}", what, code_name(code)));
}

void Workload::check_end(const SimDriver& driver, Instant begun, Duration paused, Duration budget,
                         const std::string& what) {
  const Duration slack = 2s + driver.host->paused_for() - paused;
  if (simulation_.clock().now() - begun <= budget + slack) return;
  cluster_.checks().violation(what + " outlives its budget");
}

// --- Programs

void Workload::begin(size_t users) {
  winding_down_ = false;
  programs_.resize(std::max(programs_.size(), users));
  for (size_t user = 0; user < users; ++user) {
    doing_[user] = "begin";
    spawn(simulation_.scope(), run(user));
  }
}

Async<std::shared_ptr<SimDriver>> Workload::new_program() {
  std::vector<size_t> up;
  for (size_t i = 0; i < cluster_.workers(); ++i) {
    if (cluster_.is_worker_up(i)) up.push_back(i);
  }
  if (up.empty()) co_return nullptr;
  auto driver = cluster_.make_driver(up[random_.below(up.size())]);
  const bool begun = co_await cluster_.begin(driver);
  if (begun) promises_.job_begun(driver->job);
  if (begun && driver->is_alive()) co_return driver;
  promises_.driver_gone(driver->job);
  co_await cluster_.stop_driver(driver);
  co_return nullptr;
}

Async<void> Workload::end_program(size_t user) {
  const Pointer program = std::exchange(programs_[user], nullptr);
  if (!program) co_return;
  const auto driver = program->driver;
  if (driver->is_alive()) {
    protocol::EndJob request;
    request.job = driver->job;
    request.succeeded = true;
    auto ended = co_await driver->client->ask_head<Empty>(Method::end_job, request, 5s);
    note("end job", ended);
    if (ended) promises_.job_ended(driver->job);
  }
  promises_.driver_gone(driver->job);
  co_await cluster_.stop_driver(driver);
}

Async<void> Workload::end_all() {
  for (size_t user = 0; user < programs_.size(); ++user) co_await end_program(user);
}

Async<void> Workload::use(size_t user) {
  co_await work(user);
  doing_[user] = "tidy";
  co_await tidy(user);
}

Async<void> Workload::tidy(size_t user) {
  const Pointer program = programs_[user];
  while (program && program->is_usable() && !program->groups.empty() && winding_down_) {
    co_await remove(program, program->groups.front());
    co_await pause(1'000);
  }
  constexpr size_t actors_kept = 2;
  while (program && program->actors.size() > actors_kept) {
    program->spare_actors.push_back(program->actors.front());
    program->actors.erase(program->actors.begin());
  }
  while (program && program->is_usable() && !program->spare_actors.empty() && winding_down_) {
    const bool killed = co_await kill(program, program->spare_actors.back());
    if (killed) program->spare_actors.pop_back();
    co_await pause(1'000);
  }
}

Async<void> Workload::work(size_t user) {
  const bool tired = random_.chance(0.3);
  if (tired) {
    doing_[user] = "end a program";
    co_await end_program(user);
  }
  while (!winding_down_) {
    co_await pause(1'000);
    if (winding_down_) co_return;
    Pointer program = programs_[user];
    const bool lost = program && !program->is_usable();
    if (lost) {
      doing_[user] = "end a lost program";
      co_await end_program(user);
    }
    if (!programs_[user]) {
      doing_[user] = "begin a program";
      auto driver = co_await new_program();
      if (!driver) continue;
      program = std::make_shared<Program>();
      program->driver = driver;
      programs_[user] = program;
    }
    co_await do_something(user, program);
    doing_[user] = "rest";
  }
}

Async<void> Workload::do_something(size_t user, Pointer program) {
  struct Choice {
    const char* what;
    Async<void> (Workload::*script)(Pointer);
  };
  static constexpr Choice choices[] = {
      {"use an actor", &Workload::use_actor},       {"use an actor", &Workload::use_actor},
      {"call an actor", &Workload::call_any},       {"call an actor", &Workload::call_any},
      {"call an actor", &Workload::call_any},       {"look at an actor", &Workload::look_at_any},
      {"look at an actor", &Workload::look_at_any}, {"run tasks", &Workload::run_some_tasks},
      {"run tasks", &Workload::run_some_tasks},     {"use a group", &Workload::use_group},
      {"hold a ref", &Workload::hold_ref},          {"look at a ref", &Workload::look_at_held},
      {"pass a ref", &Workload::pass_ref}};
  const Choice& choice = choices[random_.below(std::size(choices))];
  doing_[user] = choice.what;
  return (this->*choice.script)(std::move(program));
}

// --- Actors

Async<void> Workload::use_actor(Pointer program) {
  constexpr size_t actors_most = 4;
  auto& driver = *program->driver;
  if (program->actors.size() >= actors_most) {
    const ActorId old = program->actors.front();
    program->actors.erase(program->actors.begin());
    const bool killed = co_await kill(program, old);
    if (!killed) program->spare_actors.push_back(old);
    co_return;
  }
  protocol::ActorSpec spec = actor_spec(random_, driver.job);
  spec.demand = cpus(500);
  spec.max_restarts = random_.chance(0.5) ? -1 : static_cast<int32_t>(random_.below(4));
  if (random_.chance(0.5)) spec.strategy = "spread";
  if (random_.chance(0.3)) spec.isolation_limit_us = 1'500'000 + random_.below(6'000'000);
  if (random_.chance(0.2)) {
    spec.name = "the-one";
    spec.name_space = "sim";
    spec.get_if_exists = true;
  }
  const Instant begun = simulation_.clock().now();
  const Duration paused = driver.host->paused_for();
  auto created = co_await driver.client->create_actor(spec, 6s);
  note("create", created);
  if (driver.is_alive()) check_end(driver, begun, paused, 6s, "create_actor");
  program->job_lost = !created && created.error().code() == Code::conflict;
  if (!created) program->spare_actors.push_back(spec.actor);
  if (!created) co_return;
  if (created->actor != spec.actor && created->state == "dead") {
    cluster_.checks().violation("a dead actor is given for a name");
  }
  if (created->actor == spec.actor) {
    promises_.actor_created(spec);
    program->actors.push_back(spec.actor);
    constexpr size_t latest_most = 6;
    latest_actors_.push_back(spec.actor);
    if (latest_actors_.size() > latest_most) latest_actors_.pop_front();
  }
  co_await call_once(program, created->actor);
}

Async<void> Workload::call_any(Pointer program) {
  const auto& actors = program->actors;
  if (actors.empty()) return use_actor(program);
  return call_once(program, actors[random_.below(actors.size())]);
}

Async<void> Workload::call_once(Pointer program, ActorId actor) {
  if (!program->is_usable()) co_return;
  auto& driver = *program->driver;
  const bool retriable = random_.chance(0.5);
  const uint64_t kind = random_.below(40);
  const std::string method = kind == 0 ? "crash" : kind == 1 ? "fail" : kind < 10 ? "slow" : "echo";
  // Says so in its argument, for the check that nothing else runs twice.
  const std::string text = new_text() + (retriable ? may_run_again : "");
  client::ActorCallSpec call = call_spec(actor, method, text);
  if (retriable) {
    client::ActorCallExtras extras;
    extras.retry.retries = -1;
    call.extras = std::make_shared<const client::ActorCallExtras>(std::move(extras));
  }
  const Instant begun = simulation_.clock().now();
  const Duration paused = driver.host->paused_for();
  auto value = co_await driver.client->call_actor(std::move(call));
  note(method, value);
  if (!driver.is_alive()) co_return;
  if (value && as_text(value->bytes) != text) cluster_.checks().violation("a wrong answer");
  check_end(driver, begun, paused, 3s, "a call of " + method);
}

Async<void> Workload::look_at_any(Pointer program) {
  if (latest_actors_.empty() || !program->is_usable()) co_return;
  protocol::GetActor question;
  question.actor = latest_actors_[random_.below(latest_actors_.size())];
  auto seen = co_await program->driver->client->ask_head<protocol::ActorInfo>(Method::get_actor,
                                                                              question, 3s);
  note("look", seen);
}

Async<bool> Workload::kill(Pointer program, ActorId actor) {
  if (!program->is_usable()) co_return false;
  promises_.kill(actor, false);
  protocol::KillActor request;
  request.actor = actor;
  request.reason = "by the program";
  auto killed = co_await program->driver->client->ask_head<Empty>(Method::kill_actor, request, 5s);
  note("kill", killed);
  if (killed) promises_.kill(actor, true);
  co_return killed || killed.error().code() == Code::not_found;
}

// --- Placement groups

// A group with an actor and tasks in it; often removed while they run.
Async<void> Workload::use_group(Pointer program) {
  auto& driver = *program->driver;
  const protocol::PlacementGroupSpec spec = group_spec(random_, driver.job);
  program->groups.push_back(spec.group);
  protocol::PlacementGroupSpecs request;
  request.items.push_back(spec);
  auto created = co_await driver.client->ask_head<protocol::PlacementGroupResults>(
      Method::create_placement_groups, request, 6s);
  note("create group", created);
  if (!created || created->items.size() != 1 || created->items[0].code != 0) co_return;
  promises_.group_created(spec);
  protocol::GetPlacementGroup question;
  question.group = spec.group;
  question.wait = true;
  auto placed = co_await driver.client->ask_head<protocol::PlacementGroupInfo>(
      Method::get_placement_group, question, 6s);
  note("wait for group", placed);
  if (!placed && placed.error().code() == Code::not_found) co_await miss(program, "a group");
  protocol::ActorSpec member = actor_spec(random_, driver.job);
  member.demand = cpus(250);
  member.max_restarts = -1;
  member.placement.group = spec.group;
  member.placement.bundle = static_cast<uint32_t>(random_.below(3));
  auto made = co_await driver.client->create_actor(member, 6s);
  note("create member", made);
  if (made) {
    promises_.actor_created(member);
    promises_.excuse(member.actor);
    co_await call_once(program, member.actor);
  }
  if (!winding_down_) co_await run_tasks(program, 1 + random_.below(3), spec.group);
  if (made && !winding_down_) co_await call_once(program, member.actor);
  // Asked once more, so that the checks learn of a later grant.
  if (!program->is_usable()) co_return;
  auto again = co_await driver.client->ask_head<protocol::PlacementGroupInfo>(
      Method::get_placement_group, question, 6s);
  note("wait for group", again);
  if (!again && again.error().code() == Code::not_found) co_await miss(program, "a group");
  const bool may_stay = spec.strategy == "pack" || spec.strategy == "spread";
  if (may_stay && program->kept.is_nil() && random_.chance(0.5)) {
    program->kept = spec.group;
    std::erase(program->groups, spec.group);
    co_return;
  }
  co_await remove(program, spec.group);
}

Async<void> Workload::miss(Pointer program, std::string what) {
  if (!program->is_usable()) co_return;
  protocol::GetJob question;
  question.job = program->driver->job;
  auto job =
      co_await program->driver->client->ask_head<protocol::JobInfo>(Method::get_job, question, 6s);
  if (job && job->state == "running") {
    cluster_.checks().violation(what + " was promised and is forgotten");
  }
  program->job_lost = job && job->state != "running";
}

Async<void> Workload::remove(Pointer program, PlacementGroupId group) {
  if (!program->is_usable()) co_return;
  promises_.remove(group, false);
  protocol::RemovePlacementGroups request;
  request.groups.push_back(group);
  auto removed = co_await program->driver->client->ask_head<Empty>(Method::remove_placement_groups,
                                                                   request, 6s);
  note("remove group", removed);
  if (!removed) co_return;
  promises_.remove(group, true);
  std::erase(program->groups, group);
}

// --- Tasks and refs

Async<void> Workload::run_tasks(Pointer program, uint64_t count, PlacementGroupId group) {
  if (!program->is_usable()) co_return;
  client::Client& client = *program->driver->client;
  std::vector<Held> results;
  for (uint64_t i = 0; i < count; ++i) {
    client::TaskTraits traits;
    traits.module = "module";
    const bool crashes = random_.chance(0.03);
    traits.function = crashes ? "crash" : random_.chance(0.4) ? "slow" : "echo";
    traits.demand = cpus(group.is_nil() ? 500 : 250);
    traits.placement.group = group;
    traits.retry.retries = static_cast<int32_t>(random_.below(3));
    traits.budget = 8s;
    client::TaskSpec task;
    task.traits = std::make_shared<const client::TaskTraits>(std::move(traits));
    const std::string text = new_text();
    task.arguments = argument(text);
    results.push_back({client.submit_task(std::move(task)), text});
  }
  const Instant begun = simulation_.clock().now();
  const Duration paused = program->driver->host->paused_for();
  for (const Held& result : results) {
    auto value = co_await client.get(result.object, 60s);
    note("task", value);
    if (!program->is_usable()) co_return;
    if (value && as_text(value->bytes) != result.text) {
      cluster_.checks().violation("a wrong result");
    }
    // Of its own budget, too, a task may say that the time is over.
    const auto object = client.objects().find(result.object.id);
    if (object && !object->is_ready()) cluster_.checks().violation("a task never ends");
    check_end(*program->driver, begun, paused, 8s, "a task");
    client.drop_reference(result.object);
  }
}

Async<void> Workload::run_some_tasks(Pointer program) {
  return run_tasks(program, 1 + random_.below(5), {});
}

Async<void> Workload::hold_ref(Pointer program) {
  constexpr size_t refs_most = 4;
  if (program->held.size() >= refs_most) co_return;
  const std::string text = new_text();
  auto value = std::make_shared<const Bytes>(to_bytes(text));
  std::vector<client::ObjectName> inner;
  auto object = co_await program->driver->client->put(value, std::move(inner));
  note("put", object);
  if (!object) co_return;
  program->held.push_back({program->driver->client->objects().publish(*object), text});
}

Async<void> Workload::look_at_held(Pointer program) {
  if (program->held.empty()) co_return;
  const size_t index = random_.below(program->held.size());
  const Held held = program->held[index];
  auto value = co_await program->driver->client->get(held.object, 5s);
  note("get", value);
  if (!program->is_usable()) co_return;
  if (!value) {
    cluster_.checks().violation("a ref is lost: " + value.error().to_string());
  } else if (as_text(value->bytes) != held.text) {
    cluster_.checks().violation("a ref gives another value");
  }
  if (random_.chance(0.7)) co_return;
  const auto found = std::ranges::find(program->held, held.text, &Held::text);
  if (found == program->held.end()) co_return;
  program->held.erase(found);
  program->driver->client->drop_reference(held.object);
}

// An actor reads it through its owner, the program.
Async<void> Workload::pass_ref(Pointer program) {
  if (program->held.empty() || program->actors.empty()) co_return;
  const Held held = program->held[random_.below(program->held.size())];
  client::ActorCallSpec call =
      call_spec(program->actors[random_.below(program->actors.size())], "read", "");
  call.arguments = argument(held.object);
  call.held.push_back(held.object);
  const Instant begun = simulation_.clock().now();
  const Duration paused = program->driver->host->paused_for();
  auto value = co_await program->driver->client->call_actor(std::move(call));
  note("read", value);
  if (!program->is_usable()) co_return;
  if (value && as_text(value->bytes) != held.text) {
    cluster_.checks().violation("a ref gives an actor another value");
  }
  check_end(*program->driver, begun, paused, 3s, "a call of read");
}

// --- Progress

Async<Status> Workload::try_all(std::shared_ptr<SimDriver> driver) {
  protocol::ActorSpec spec = actor_spec(random_, driver->job);
  spec.demand = cpus(250);
  spec.max_restarts = -1;
  auto created = co_await driver->client->create_actor(spec, 10s);
  if (!created) co_return std::move(created).error().context("create");
  promises_.actor_created(spec);
  client::ActorCallSpec call = call_spec(spec.actor, "echo", "progress");
  call.budget = 10s;
  auto value = co_await driver->client->call_actor(std::move(call));
  if (!value) co_return std::move(value).error().context("call");
  client::TaskTraits traits;
  traits.module = "module";
  traits.function = "echo";
  traits.demand = cpus(250);
  traits.budget = 10s;
  client::TaskSpec task;
  task.traits = std::make_shared<const client::TaskTraits>(std::move(traits));
  task.arguments = argument("progress");
  const client::ObjectName result = driver->client->submit_task(std::move(task));
  auto done = co_await driver->client->get(result, 15s);
  driver->client->drop_reference(result);
  if (!done) co_return std::move(done).error().context("task");
  promises_.kill(spec.actor, false);
  protocol::KillActor request;
  request.actor = spec.actor;
  auto killed = co_await driver->client->ask_head<Empty>(Method::kill_actor, request, 5s);
  if (!killed) co_return std::move(killed).error().context("kill");
  promises_.kill(spec.actor, true);
  co_return ok();
}

}  // namespace troupe::sim
