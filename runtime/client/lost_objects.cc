// The part of ObjectDirectory that finds again what lay with a node that is gone, or makes it
// again, and moves what lies with one that is going.
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "client/connections.h"
#include "client/object_directory.h"
#include "client/store_client.h"

namespace troupe::client {

using protocol::Empty;
using protocol::ProcessAddress;
using transport::CallContext;

namespace {

constexpr Duration ask_budget = std::chrono::seconds(5);  // Of a worker, whether it has an object.
constexpr Duration look_pause = std::chrono::milliseconds(50);
// A worker of which the head thinks that it lives, but which does not answer us: then the object is
// made again, as if it were gone. What it has, it has in vain.
constexpr Duration patience = std::chrono::seconds(30);
constexpr Duration move_budget = std::chrono::minutes(5);
constexpr size_t moved_at_once = 16;
constexpr size_t movers_max = 4;
constexpr size_t asked_at_once = 1000;  // Results, for the refs in them.
// What a recipe costs beside its arguments, more or less.
constexpr uint64_t recipe_bytes = 400;
constexpr uint64_t argument_bytes = 200;

}  // namespace

struct ObjectDirectory::Search {
  explicit Search(const Executor& loop) : done(loop) {}
  Status outcome = ok();
  Event done;
};

// A task that runs again. Its results have the names of those that it made before, and become those
// objects where nobody has refs to them any more; where somebody has, they tell where it lies.
struct ObjectDirectory::Run {
  Run(const Executor& loop, Lineage::RecipePointer r) : recipe(std::move(r)), done(loop) {}
  bool has_ended() const { return results[0]->is_ready(); }
  const Lineage::RecipePointer recipe;
  std::vector<std::shared_ptr<Object>> results;
  std::vector<std::shared_ptr<Object>> held;  // Its arguments.
  std::vector<ObjectName> kept;               // As the recipe's, which may go meanwhile.
  Status outcome = ok();
  Event done;
};

// --- How it was made

void ObjectDirectory::remember(const Lineage::RecipePointer& recipe,
                               const std::shared_ptr<Object>& first,
                               const std::vector<std::shared_ptr<Object>>& more) {
  auto held = std::exchange(recipe->kept, {});
  std::vector<ObjectId> stored;
  const auto look_at = [&](const std::shared_ptr<Object>& result) {
    const bool is_there = result->is_ready() && result->in_store() && !result->is_freed();
    if (!is_there) return;
    stored.push_back(result->id());
    result->ties().uses_recipe = true;
  };
  look_at(first);
  std::ranges::for_each(more, look_at);
  if (stored.empty() || lineage_.find(recipe->first)) {
    for (const ObjectName& name : held) drop_reference(name);
    return;
  }
  recipe->bytes = recipe_bytes;
  for (const protocol::Argument& argument : recipe->arguments) {
    recipe->bytes += argument_bytes + argument.inline_value.size();
  }
  for (ObjectName& name : held) {
    const auto object = owns(name) ? find(name.id) : nullptr;
    if (object && object->is_ready() && object->in_store()) {
      // Its value may go; what has no recipe was put there, and goes with it.
      if (lineage_.find(name.id)) {
        lineage_.use(name.id);
        recipe->parents.push_back(name.id);
      }
      drop_reference(name);
      continue;
    }
    if (object && object->is_ready()) recipe->bytes += object->value().size();
    recipe->bytes += argument_bytes;
    recipe->kept.push_back(std::move(name));
  }
  lineage_.add(recipe, stored);
  drop_lineage();
}

void ObjectDirectory::drop_lineage() {
  for (const ObjectName& name : lineage_.take_dropped()) drop_reference(name);
}

// --- Looking for it

Async<Status> ObjectDirectory::find_again(std::shared_ptr<Object> object, ProcessId missing_at,
                                          Instant deadline) {
  if (object->node()->process != missing_at) co_return ok();  // It has moved meanwhile.
  const auto found = begin_search(object);
  if (!co_await wait_until(environment_.clock, deadline, found->done)) {
    co_return error(Code::deadline_exceeded,
                    fmt::format("object {} was lost with its node, and is not there again yet",
                                object->id().to_string()));
  }
  Status outcome = found->outcome;
  co_return outcome;
}

std::shared_ptr<ObjectDirectory::Search> ObjectDirectory::begin_search(
    const std::shared_ptr<Object>& object) {
  auto& entry = searches_[object->id()];
  if (!entry) {
    entry = std::make_shared<Search>(environment_.loop);
    spawn(scope_, search(object, entry));
  }
  return entry;
}

Async<void> ObjectDirectory::search(std::shared_ptr<Object> object, std::shared_ptr<Search> found) {
  found->outcome = co_await look_for(object);
  searches_.erase(object->id());
  found->done.set();
}

Async<Status> ObjectDirectory::look_for(std::shared_ptr<Object> object) {
  const ObjectId id = object->id();
  const Instant until = environment_.clock.now() + patience;
  for (;;) {
    std::vector<ProcessAddress> places{*object->node()};
    const auto& copies = object->ties().copies;
    places.insert(places.end(), copies.begin(), copies.end());
    std::vector<ProcessId> silent;
    for (const ProcessAddress& place : places) {
      std::vector<ObjectId> wanted{id};
      ProcessAddress nowhere;
      auto there = co_await adopt_at(place, std::move(wanted), std::move(nowhere), ask_budget);
      if (object->is_freed() || object->is_discarded()) {
        co_return error(Code::not_found, fmt::format("object {} was freed", id.to_string()));
      }
      if (there && !there->empty()) {
        if (place.process != object->node()->process) move(object, place);
        co_return ok();
      }
      if (!there) silent.push_back(place.process);
      if (there) {
        std::erase_if(object->ties().copies,
                      [&](const ProcessAddress& copy) { return copy.process == place.process; });
      }
    }
    if (silent.empty() || environment_.clock.now() >= until) break;
    const bool dead = co_await are_dead(silent);
    if (dead) break;
    co_await sleep_for(environment_.clock, look_pause);
  }
  object->ties().copies.clear();
  co_return co_await make_again(object);
}

Async<Result<std::vector<ObjectId>>> ObjectDirectory::adopt_at(ProcessAddress worker,
                                                               std::vector<ObjectId> objects,
                                                               ProcessAddress source,
                                                               Duration budget) {
  protocol::AdoptObjects request{std::move(objects), connections_.address(), needs_.job,
                                 std::move(source)};
  auto peer =
      co_await connections_.peer_of(std::move(worker), environment_.clock.now() + ask_budget);
  if (!peer) co_return std::move(peer).error();
  auto adopted = co_await transport::call<protocol::ObjectIds>(*peer, Method::adopt_objects,
                                                               std::move(request), budget);
  if (!adopted) co_return std::move(adopted).error();
  co_return std::move(adopted->objects);
}

Async<bool> ObjectDirectory::are_dead(std::vector<ProcessId> workers) {
  auto nodes = co_await needs_.nodes();
  if (!nodes) co_return false;
  co_return std::ranges::none_of(nodes->items, [&](const protocol::NodeInfo& node) {
    return node.state != "dead" &&
           std::ranges::find(workers, node.address.process) != workers.end();
  });
}

void ObjectDirectory::move(const std::shared_ptr<Object>& object, ProcessAddress node) {
  const auto before = object->node();
  std::erase_if(object->ties().copies,
                [&](const ProcessAddress& copy) { return copy.process == node.process; });
  object->entangle();
  const ProcessId to = node.process;
  object->move_to(std::make_shared<const ProcessAddress>(std::move(node)), object->size_bytes());
  if (before->process != to) store_.release_owned(object->id(), *before);
}

// --- Making it again

Async<Status> ObjectDirectory::make_again(std::shared_ptr<Object> object) {
  const ObjectId id = object->id();
  const auto lost_at = object->node();
  const auto lost = [&](const std::string& why) {
    return error(Code::data_loss, fmt::format("object {} was lost with node {}, and {}",
                                              id.to_string(), lost_at->node.short_string(), why));
  };
  const auto recipe = lineage_.find(id);
  if (!recipe) {
    co_return lost(
        fmt::format("nobody knows how to make it again: that is kept, up to {} MiB a process, of "
                    "the results of tasks with retries",
                    lineage_.bytes_max() >> 20));
  }
  auto run = co_await run_again(recipe);
  if (!run) co_return lost(run.error().message());
  log::info("object_made_again", {{"object", id},
                                  {"task", recipe->traits->label()},
                                  {"lost_with", lost_at->node},
                                  {"run", recipe->made_again}});
  co_await (*run)->done.wait();
  const Status& outcome = (*run)->outcome;
  if (!outcome) {
    co_return lost(fmt::format("making it again failed: {}", outcome.error().to_string()));
  }
  if (object->node() == lost_at) co_return lost("its task did not make it again");
  co_return ok();
}

std::shared_ptr<ObjectDirectory::Run> ObjectDirectory::run_of(ObjectId result) const {
  const auto found = runs_.find(result);
  return found == runs_.end() || found->second->has_ended() ? nullptr : found->second;
}

// Depth first, by hand: a chain of what is gone can be long.
Async<Result<std::shared_ptr<ObjectDirectory::Run>>> ObjectDirectory::run_again(
    Lineage::RecipePointer recipe) {
  struct Step {
    Lineage::RecipePointer recipe;
    size_t next = 0;  // Of its parents.
  };
  std::vector<Step> steps{{recipe}};
  if (run_of(recipe->first)) steps.clear();
  while (!steps.empty()) {
    Step& step = steps.back();
    if (step.next == 0) TROUPE_CO_CHECK(co_await find_lost_parents(step.recipe));
    if (step.next == step.recipe->parents.size()) {
      // What it shares with another may have been made on the way here.
      if (!run_of(step.recipe->first)) TROUPE_CO_CHECK(begin_run(step.recipe));
      steps.pop_back();
      continue;
    }
    const ObjectId parent = step.recipe->parents[step.next++];
    if (find(parent) || run_of(parent)) continue;
    auto maker = lineage_.find(parent);
    if (!maker) {
      co_return error(Code::data_loss,
                      fmt::format("it was made of object {}, of which it is not known any more how "
                                  "to make it",
                                  parent.to_string()));
    }
    steps.push_back({std::move(maker)});
  }
  auto run = run_of(recipe->first);
  if (!run) co_return error(Code::unavailable, "its task ended at once");
  co_return run;
}

// A task that runs holds what it was leased: one that has to be made again for it may need the
// same.
Async<Status> ObjectDirectory::find_lost_parents(Lineage::RecipePointer recipe) {
  std::vector<std::shared_ptr<Object>> stored;
  for (const ObjectId parent : recipe->parents) {
    auto object = find(parent);
    if (object && object->is_ready() && object->in_store()) stored.push_back(std::move(object));
  }
  if (stored.empty()) co_return ok();
  auto nodes = co_await needs_.nodes();
  if (!nodes) co_return ok();  // No head: each is looked for once it is read.
  std::vector<std::shared_ptr<Search>> searches;
  for (const auto& object : stored) {
    const ProcessId at = object->node()->process;
    const bool is_there = std::ranges::any_of(nodes->items, [&](const protocol::NodeInfo& node) {
      return node.address.process == at && node.state != "dead" && node.state != "suspect";
    });
    if (!is_there) searches.push_back(begin_search(object));
  }
  for (const auto& one : searches) {
    co_await one->done.wait();
    TROUPE_CO_CHECK(one->outcome);
  }
  co_return ok();
}

Status ObjectDirectory::begin_run(const Lineage::RecipePointer& recipe) {
  const TaskTraits& traits = *recipe->traits;
  if (traits.retry.retries >= 0 && recipe->made_again >= traits.retry.retries) {
    return error(Code::data_loss,
                 fmt::format("task {} has run {} times again for what was lost, as often as its "
                             "retries allow",
                             traits.label(), recipe->made_again));
  }
  const auto run = std::make_shared<Run>(environment_.loop, recipe);
  for (const ObjectId parent : recipe->parents) {
    auto argument = find_and_hold(parent);
    if (!argument) argument = revive(parent);
    if (!argument) {
      for (const auto& held : run->held) drop_reference(held);
      return error(Code::data_loss, fmt::format("its argument {} is gone", parent.to_string()));
    }
    run->held.push_back(std::move(argument));
  }
  ++recipe->made_again;
  run->kept = recipe->kept;
  hold(run->kept);
  for (uint32_t i = 0; i < recipe->results(); ++i) {
    const ObjectId id = result_id(recipe->first, i);
    run->results.push_back(std::make_shared<Object>(id, home_, Object::Maker::none));
    runs_[id] = run;
  }
  run->results[0]->set_more({run->results.begin() + 1, run->results.end()});
  spawn(scope_, follow(run));
  needs_.run({recipe->traits, recipe->arguments, {}}, run->results[0]);
  return ok();
}

std::shared_ptr<Object> ObjectDirectory::revive(ObjectId id) {
  const auto run = run_of(id);
  if (!run) return nullptr;
  for (const auto& made : run->results) {
    if (made->id() != id) continue;
    made->entangle();
    const std::lock_guard lock{mutex_};
    owned_.emplace(id, made);
    lineage_.use(id);
    made->ties().uses_recipe = true;
    return made;
  }
  return nullptr;
}

bool ObjectDirectory::take_remade(const std::shared_ptr<Object>& made, protocol::ObjectValue& value,
                                  bool held, const ProcessAddress& producer) {
  const auto run = run_of(made->id());
  if (!run || std::ranges::find(run->results, made) == run->results.end()) return false;
  const auto object = find(made->id());
  if (object == made) return false;
  const ObjectId id = made->id();
  if (!object || object->is_discarded() || !object->in_store()) {
    give_back(id, value.node, held, producer);
    (void)made->set_value({});
    return true;
  }
  if (held) {
    auto& before = object->ties().producer;
    if (before && before->process != producer.process) release_held(id, *before);
    before = producer;
  }
  if (value.node.process.is_nil()) {
    (void)made->set_value(value.inline_value);  // See follow().
  } else {
    object->move_to(object->node(), value.size_bytes);
    move(object, std::move(value.node));
    (void)made->set_value({});
  }
  return true;
}

// A task that is not the same each time may have made less than what goes through the store.
Async<void> ObjectDirectory::keep_remade(std::shared_ptr<Object> object,
                                         std::shared_ptr<Object> made) {
  const auto value = std::make_shared<const Bytes>(made->value().begin(), made->value().end());
  const auto stored = co_await store_.put(object->id(), connections_.address().process, value,
                                          environment_.clock.now() + store_budget);
  if (stored && object->is_freed()) store_.release_owned(object->id(), *store_.node());
  if (stored) object->move_to(store_.node(), value->size());
}

Async<void> ObjectDirectory::follow(std::shared_ptr<Run> run) {
  const auto first = run->results[0];
  (void)co_await Object::wait_ready(first, environment_.clock, Instant::max());
  if (first->failure() != nullptr) run->outcome = *first->failure();
  for (const auto& result : run->results) {
    const auto object = find(result->id());
    const bool came_inline = result->is_ready() && !result->value().empty() && object != result;
    if (came_inline && object && object->in_store()) {
      co_await keep_remade(object, result);
    }
  }
  for (const auto& result : run->results) {
    const auto found = runs_.find(result->id());
    if (found != runs_.end() && found->second == run) runs_.erase(found);
  }
  for (const auto& argument : std::exchange(run->held, {})) drop_reference(argument);
  for (const ObjectName& argument : std::exchange(run->kept, {})) drop_reference(argument);
  run->done.set();
}

// --- Moving it away

Async<Result<Empty>> ObjectDirectory::evacuate(protocol::Evacuate request, CallContext context) {
  if (context.peer != connections_.worker()) {
    co_return error(Code::denied, "only the node's worker may ask this");
  }
  // Whoever asks again while it goes on waits for the same.
  auto& entry = evacuations_[request.node];
  if (!entry) {
    entry = std::make_shared<Search>(environment_.loop);
    spawn(scope_, leave(std::move(request), entry));
  }
  const auto left = entry;
  if (!co_await wait_until(environment_.clock, context.deadline, left->done)) {
    co_return error(Code::deadline_exceeded, "objects are still on their way");
  }
  TROUPE_CO_CHECK(left->outcome);
  co_return Empty{};
}

Async<void> ObjectDirectory::leave(protocol::Evacuate request, std::shared_ptr<Search> left) {
  std::vector<std::shared_ptr<Object>> objects;
  {
    const std::lock_guard lock{mutex_};
    for (const auto& [id, object] : owned_) {
      const bool lies_there = object->is_ready() && object->in_store() && !object->is_discarded() &&
                              object->node()->process == request.worker;
      if (lies_there) objects.push_back(object);
    }
  }
  left->outcome = co_await take_refs(request.node);
  const auto source = objects.empty() ? nullptr : objects.front()->node();
  for (const ProcessAddress& target : request.targets) {
    if (objects.empty()) break;
    std::vector<std::shared_ptr<Event>> movers;
    for (size_t i = 0; i < movers_max; ++i) {
      std::vector<std::shared_ptr<Object>> share;
      const size_t begin = objects.size() * i / movers_max;
      const size_t end = objects.size() * (i + 1) / movers_max;
      for (size_t n = begin; n < end; ++n) share.push_back(objects[n]);
      if (share.empty()) continue;
      movers.push_back(std::make_shared<Event>(environment_.loop));
      spawn(scope_, move_all(std::move(share), *source, target, movers.back()));
    }
    for (const auto& mover : movers) co_await mover->wait();
    std::erase_if(objects, [&](const auto& object) {
      return object->is_freed() || object->node()->process != request.worker;
    });
  }
  if (!objects.empty()) {
    left->outcome =
        error(Code::unavailable,
              fmt::format("{} objects of process {} stay on node {}: no other node takes them",
                          objects.size(), connections_.address().process.to_string(),
                          request.node.short_string()));
  }
  evacuations_.erase(request.node);
  left->done.set();
}

Async<Status> ObjectDirectory::take_refs(NodeId node) {
  // A question each.
  std::vector<std::pair<ProcessAddress, std::vector<std::shared_ptr<Object>>>> results;
  {
    std::map<ProcessId, size_t> latest;
    const std::lock_guard lock{mutex_};
    for (const auto& [id, object] : owned_) {
      if (!object->has_ties() || !object->ties().producer) continue;
      const ProcessAddress& producer = *object->ties().producer;
      if (producer.node != node) continue;
      const auto [last, is_new] = latest.try_emplace(producer.process, results.size());
      if (!is_new && results[last->second].second.size() == asked_at_once) {
        last->second = results.size();
      }
      if (last->second == results.size()) results.push_back({producer, {}});
      results[last->second].second.push_back(object);
    }
  }
  Status outcome = ok();
  for (const auto& [producer, made] : results) {
    protocol::ObjectIds ids;
    for (const auto& object : made) ids.objects.push_back(object->id());
    auto peer = co_await connections_.peer_of(producer, environment_.clock.now() + ask_budget);
    if (!peer) {  // What it held went with it.
      log::info("refs_not_taken", {{"producer", producer.process}, {"why", peer.error()}});
      continue;
    }
    auto refs = co_await transport::call<protocol::HeldRefs>(*peer, Method::list_held,
                                                             std::move(ids), ask_budget);
    if (!refs) {
      if ((*peer)->is_open()) outcome = std::move(refs).error().context("take the refs in results");
      continue;
    }
    std::unordered_map<ObjectId, std::vector<ObjectName>> names;
    for (protocol::HeldRef& ref : refs->items) {
      names[ref.result].push_back({ref.object, std::move(ref.owner)});
    }
    for (const auto& object : made) {
      Object::Ties& ties = object->ties();
      const bool is_same = ties.producer && ties.producer->process == producer.process;
      if (object->is_freed() || !is_same) continue;
      for (ObjectName& ref : names[object->id()]) {
        add_reference(ref);
        ties.held.push_back(std::move(ref));
      }
      ties.producer.reset();
      release_held(object->id(), producer);
    }
    // Their owners know of us before the producer may end.
    co_await borrows_.settle();
  }
  co_return outcome;
}

Async<void> ObjectDirectory::move_all(std::vector<std::shared_ptr<Object>> objects,
                                      ProcessAddress source, ProcessAddress target,
                                      std::shared_ptr<Event> moved) {
  struct Done {
    Event& moved;
    ~Done() { moved.set(); }
  } done{*moved};
  for (size_t next = 0, end = 0; next < objects.size(); next = end) {
    std::vector<ObjectId> ids;
    for (end = next; end < objects.size() && ids.size() < moved_at_once; ++end) {
      if (objects[end]->node()->process == source.process) ids.push_back(objects[end]->id());
    }
    if (ids.empty()) continue;
    // The worker may not know what this process put and nobody has asked for.
    const Status known = co_await store_.expose(ids);
    if (!known) log::info("objects_not_exposed", {{"why", known.error()}});
    auto there = co_await adopt_at(target, std::move(ids), source, move_budget);
    if (!there) {
      log::info("objects_not_moved", {{"to", target.node}, {"why", there.error()}});
      co_return;
    }
    for (size_t i = next; i < end; ++i) {
      const auto& object = objects[i];
      const bool has_moved = std::ranges::find(*there, object->id()) != there->end();
      if (!has_moved) continue;
      if (object->is_freed() || object->is_discarded()) {
        store_.release_owned(object->id(), target);
      } else {
        move(object, target);
      }
    }
  }
}

}  // namespace troupe::client
