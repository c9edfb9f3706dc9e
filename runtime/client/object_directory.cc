#include "client/object_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>
#include <mutex>

#include "base/log.h"
#include "client/connections.h"
#include "client/store_client.h"
#include "protocol/object_list.h"

namespace troupe::client {

using protocol::Empty;
using transport::CallContext;

namespace {

constexpr Duration notice_budget = std::chrono::seconds(30);
// The count goes through an odd factor, so that every bit of an id is fit for a hash.
constexpr uint64_t id_step = 0x9e3779b97f4a7c15ull;

// What a process holds for an item of its streams is named by the process and a number, for a
// result's name is its caller's.
ObjectId item_id(ProcessId producer, uint32_t number) {
  ObjectId id;
  id.high = producer.high;
  id.low = producer.low + number;
  return id;
}

bool contains(const std::vector<ObjectId>& ids, ObjectId id) {
  return std::ranges::find(ids, id) != ids.end();
}

bool needs_loop(const protocol::InvokeReply& reply) {
  return !reply.node.process.is_nil() || !reply.borrowed.empty() || !reply.more.empty();
}

// So many objects are asked for at a time, and so much of their values comes in one answer: what
// fits the processor's cache, and which malloc does not give back to the system each time.
constexpr size_t asked_max = 1024;
constexpr size_t halved_from = 32;
constexpr size_t answer_bytes_max = 128 << 10;
constexpr size_t holders_max = 6;  // That a reader is told of.
constexpr int tries_max = 5;       // To read one that is not where its owner says.

// The object is not where it was said to be.
bool is_missing(const Error& failure) {
  return failure.code() == Code::data_loss || failure.code() == Code::not_found;
}

Error was_discarded(ObjectId id) {
  return error(Code::not_found,
               fmt::format("object {} was freed by an explicit free: make it again, or free it "
                           "later",
                           id.to_string()));
}
Error was_freed(ObjectId id) {
  return error(Code::not_found, fmt::format("object {} was freed by its owner", id.to_string()));
}
Error owner_is_gone(ObjectId id, const Error& why) {
  return error(Code::data_loss,
               fmt::format("the owner of object {} is gone: {}", id.to_string(), why.message()));
}
// Of a question that was sent.
Error unanswered(ObjectId id, Error why) {
  const Code code = why.code();
  const bool gone = code == Code::outcome_unknown || code == Code::unavailable;
  return gone ? owner_is_gone(id, why) : std::move(why);
}

// What became ready, for a stream of it.
class ReadyList final : public ReadyHook, public std::enable_shared_from_this<ReadyList> {
 public:
  ReadyList(const Executor& loop, std::vector<ObjectId> objects)
      : changed(loop), loop_(loop), objects_(std::move(objects)) {}

  void ready(uint32_t index) override {
    const std::lock_guard lock{mutex_};
    ready_.push_back(objects_[index]);
    if (ready_.size() > 1) return;  // The loop knows already.
    boost::asio::post(loop_, [self = shared_from_this()] { self->changed.pulse(); });
  }
  std::vector<ObjectId> take() {
    const std::lock_guard lock{mutex_};
    return std::exchange(ready_, {});
  }
  const std::vector<ObjectId>& objects() const { return objects_; }

  Event changed;

 private:
  const Executor& loop_;
  const std::vector<ObjectId> objects_;
  std::mutex mutex_;
  std::vector<ObjectId> ready_;
};

}  // namespace

ObjectId result_id(ObjectId first, uint32_t index) {
  first.low += index * id_step;
  return first;
}

ObjectDirectory::ObjectDirectory(transport::Environment environment, Scope& scope,
                                 Connections& connections, StoreClient& store, Needs needs,
                                 uint64_t lineage_bytes_max)
    : environment_(environment),
      scope_(scope),
      connections_(connections),
      store_(store),
      home_{environment.loop, {}, {}},
      id_base_(environment.random.next()),
      needs_(std::move(needs)),
      lineage_(lineage_bytes_max),
      borrows_(environment, scope, connections, [this](ObjectId gone) { store_.forget(gone); }) {}

std::shared_ptr<Object> ObjectDirectory::make(Object::Maker maker) {
  // Unique among all processes by the base, and never nil.
  const uint64_t number = made_.fetch_add(1, std::memory_order_relaxed) + 1;
  ObjectId id;
  id.high = id_base_;
  id.low = number * id_step;
  return std::make_shared<Object>(id, home_, maker);
}

std::shared_ptr<Object> ObjectDirectory::make_results(Object::Maker maker, uint32_t count,
                                                      std::vector<std::shared_ptr<Object>>* more) {
  if (count <= 1 || more == nullptr) return make(maker);
  const uint64_t number = made_.fetch_add(count, std::memory_order_relaxed) + 1;
  ObjectId id;
  id.high = id_base_;
  id.low = number * id_step;
  auto first = std::make_shared<Object>(id, home_, maker);
  more->reserve(count - 1);
  for (uint32_t i = 1; i < count; ++i) {
    auto one = std::make_shared<Object>(result_id(id, i), home_, Object::Maker::none);
    one->on_cancel([this, call = std::weak_ptr(first)](uint8_t how) {
      const auto found = call.lock();
      if (found) cancel(found, error(Code::cancelled, "another of its results was cancelled"), how);
    });
    one->set_first(first);
    more->push_back(std::move(one));
  }
  first->set_more(*more);
  return first;
}

ObjectName ObjectDirectory::publish(const std::shared_ptr<Object>& object) {
  object->entangle();
  {
    const std::lock_guard lock{mutex_};
    owned_.try_emplace(object->id(), object);
  }
  return {object->id(), connections_.address()};
}

std::shared_ptr<Object> ObjectDirectory::find(ObjectId id) const {
  const std::lock_guard lock{mutex_};
  const auto found = owned_.find(id);
  return found == owned_.end() ? nullptr : found->second;
}

std::shared_ptr<Object> ObjectDirectory::find_and_hold(ObjectId id) {
  // Under the lock, so that it is not freed meanwhile.
  const std::lock_guard lock{mutex_};
  const auto found = owned_.find(id);
  if (found == owned_.end()) return nullptr;
  found->second->add_reference();
  return found->second;
}

void ObjectDirectory::set_value(const std::shared_ptr<Object>& object, BytesView value) {
  if (object->set_value(value)) free_when_unused(object);
}

void ObjectDirectory::set_reply(const std::shared_ptr<Object>& object, protocol::InvokeReply reply,
                                const protocol::ProcessAddress& producer,
                                Lineage::RecipePointer recipe) {
  auto more = object->take_more();
  if (!needs_loop(reply) && more.empty()) {
    set_value(object, reply.inline_value);
    return;
  }
  boost::asio::post(environment_.loop, [this, object, producer, recipe = std::move(recipe),
                                        reply = std::move(reply),
                                        others = std::move(more)]() mutable {
    const auto holds = [&](const Object& one) { return contains(reply.borrowed, one.id()); };
    for (size_t i = 0; i < others.size(); ++i) {
      if (i < reply.more.size()) {
        set_result(others[i], std::move(reply.more[i]), holds(*others[i]), producer);
      } else {
        set_error(others[i], error(Code::internal, "the reply has fewer results than the call"));
      }
    }
    for (size_t i = others.size(); i < reply.more.size(); ++i) {  // Cancelled meanwhile.
      const ObjectId id = result_id(object->id(), static_cast<uint32_t>(i) + 1);
      give_back(id, reply.more[i].node, contains(reply.borrowed, id), producer);
    }
    protocol::ObjectValue first{std::move(reply.inline_value), std::move(reply.node),
                                reply.size_bytes};
    set_result(object, std::move(first), holds(*object), producer);
    if (recipe) remember(recipe, object, others);
  });
}

void ObjectDirectory::give_back(ObjectId id, const protocol::ProcessAddress& node, bool held,
                                const protocol::ProcessAddress& producer) {
  if (!node.process.is_nil()) store_.release_owned(id, node);
  if (held) release_held(id, producer);
}

void ObjectDirectory::set_result(const std::shared_ptr<Object>& object, protocol::ObjectValue value,
                                 bool held, const protocol::ProcessAddress& producer) {
  if (object->is_ready() || object->is_freed()) {  // Cancelled meanwhile.
    give_back(object->id(), value.node, held, producer);
    return;
  }
  if (!runs_.empty() && take_remade(object, value, held, producer)) return;
  if (held) object->ties().producer = producer;
  // It may have to be moved, or made again, or what it holds taken from its producer, by its name.
  if (held || !value.node.process.is_nil()) (void)publish(object);
  if (!value.node.process.is_nil()) {
    set_stored(object, std::move(value.node), value.size_bytes);
  } else {
    set_value(object, value.inline_value);
  }
  // It may have been cancelled and dropped meanwhile, as one that has nothing to give back.
  free_when_unused(object);
}

void ObjectDirectory::set_stored(const std::shared_ptr<Object>& object,
                                 protocol::ProcessAddress node, uint64_t size_bytes) {
  // Most lie with this node's worker, whose address is there once.
  auto shared = node.process == store_.node()->process
                    ? store_.node()
                    : std::make_shared<const protocol::ProcessAddress>(node);
  if (object->is_freed() || !object->set_stored(std::move(shared), size_bytes)) {
    store_.release_owned(object->id(), node);
    return;
  }
  free_when_unused(object);
}

void ObjectDirectory::set_error(const std::shared_ptr<Object>& object, Error failure) {
  for (const auto& other : object->take_more()) set_error(other, failure);
  if (object->set_error(std::move(failure))) free_when_unused(object);
}

void ObjectDirectory::set_failed(const std::shared_ptr<Object>& object, Error failure,
                                 std::string_view name) {
  const auto more = object->take_more();
  const bool is_read =
      std::ranges::any_of(more, [](const auto& one) { return one->references() > 0; });
  for (const auto& other : more) set_error(other, failure);
  if (!is_read && object->references() == 0 && !object->is_ready()) {
    unread_failures_.fetch_add(1);
    log::warning("unread_call_failed",
                 {{"call", name}, {"object", object->id()}, {"why", failure.to_string()}});
  }
  set_error(object, std::move(failure));
}

void ObjectDirectory::set_held(const std::shared_ptr<Object>& object,
                               std::vector<ObjectName> held) {
  if (held.empty()) return;
  for (const ObjectName& ref : held) add_reference(ref);
  object->ties().held = std::move(held);
  object->entangle();
}

bool ObjectDirectory::owns(const ObjectName& object) const {
  return object.owner.process == connections_.address().process;
}

void ObjectDirectory::add_reference(const ObjectName& object) {
  if (owns(object)) {
    find_and_hold(object.id);
  } else {
    borrows_.add(object);
  }
}

void ObjectDirectory::hold(const std::vector<ObjectName>& refs) {
  for (const ObjectName& ref : refs) add_reference(ref);
}

void ObjectDirectory::drop_reference(const ObjectName& object) {
  if (!owns(object)) {
    borrows_.drop(object.id);
  } else if (const auto owned = find(object.id)) {
    drop_reference(owned);
  }
}

void ObjectDirectory::drop_reference(const std::shared_ptr<Object>& object) {
  if (object->drop_reference()) free_when_unused(object);
}

void ObjectDirectory::free_when_unused(const std::shared_ptr<Object>& object) {
  // Whichever comes last, the outcome or the end of the last reference, sees the other. What nobody
  // will read runs on: its effects may be wanted.
  if (object->references() > 0) return;
  if (object->is_ready() && !object->is_entangled()) {
    if (object->is_plain() || store_.drop_private(object->id())) return;
  } else if (!object->is_ready() && find(object->id()) == nullptr) {
    return;
  }
  // Not at once, even on the loop: a thread that read refs in the value before it dropped it has
  // posted that it borrows them, and their owners must hear of that first.
  boost::asio::post(environment_.loop, [this, object] { free_if_unused(object); });
}

void ObjectDirectory::free_if_unused(const std::shared_ptr<Object>& given) {
  // What an object holds may go with it, and so on: a list, for a chain of refs can be long.
  unused_.push_back(given);
  if (std::exchange(freeing_, true)) return;
  while (!unused_.empty()) {
    const auto object = std::move(unused_.back());
    unused_.pop_back();
    if (object->is_freed() || (object->has_ties() && !object->ties().borrowers.empty())) continue;
    {
      const std::lock_guard lock{mutex_};
      if (object->references() > 0) continue;
      owned_.erase(object->id());
      object->set_freed();
    }
    if (object->is_ready() && object->in_store() && !object->is_discarded()) {
      release_stored(*object);
    }
    if (!object->has_ties()) continue;
    Object::Ties& ties = object->ties();
    if (ties.uses_recipe) lineage_.disuse(object->id());
    if (ties.producer) release_held(object->id(), *ties.producer);
    for (const ObjectName& ref : std::exchange(ties.held, {})) drop_reference(ref);
  }
  freeing_ = false;
  drop_lineage();
}

void ObjectDirectory::release_held(ObjectId id, const protocol::ProcessAddress& producer) {
  const auto [of, is_first] = released_.try_emplace(producer.process);
  of->second.push_back(id);
  if (is_first) spawn(scope_, tell_released(producer));
}

Async<void> ObjectDirectory::tell_released(protocol::ProcessAddress producer) {
  for (;;) {
    protocol::ObjectIds notice{std::exchange(released_[producer.process], {})};
    if (notice.objects.empty()) break;
    // Refs in them that were read meanwhile are known to their owners first.
    co_await borrows_.settle();
    auto peer = co_await connections_.peer_of(producer, environment_.clock.now() + notice_budget);
    if (!peer) continue;
    auto told = co_await transport::call<Empty>(*peer, Method::remove_borrow, std::move(notice),
                                                notice_budget);
    if (!told) log::debug("producer_not_told", {{"why", told.error().message()}});
  }
  released_.erase(producer.process);
}

void ObjectDirectory::hold_for_result(ObjectId result, ProcessId caller,
                                      std::vector<ObjectName> held) {
  for (const ObjectName& ref : held) add_reference(ref);
  held_[result] = {caller, std::move(held)};
}

void ObjectDirectory::let_go_for_result(ObjectId result) {
  const auto held = held_.find(result);
  if (held == held_.end()) return;
  const auto refs = std::move(held->second.refs);
  held_.erase(held);
  for (const ObjectName& ref : refs) drop_reference(ref);
}

Async<Result<protocol::HeldRefs>> ObjectDirectory::list_held(protocol::ObjectIds request,
                                                             CallContext context) {
  const ProcessId caller = context.peer->remote().address.process;
  protocol::HeldRefs refs;
  for (const ObjectId id : request.objects) {
    const auto held = held_.find(id);
    if (held == held_.end() || held->second.caller != caller) continue;
    for (const ObjectName& ref : held->second.refs) refs.items.push_back({id, ref.id, ref.owner});
  }
  co_return refs;
}

bool ObjectDirectory::is_needed() const {
  if (!held_.empty()) return true;
  const std::lock_guard lock{mutex_};
  return std::ranges::any_of(owned_, [](const auto& entry) {
    return entry.second->has_ties() && !entry.second->ties().borrowers.empty();
  });
}

uint32_t ObjectDirectory::hold_for_item(ProcessId receiver, std::vector<ObjectName> held) {
  const ProcessId self = connections_.address().process;
  do {
    ++items_held_;
  } while (items_held_ == 0 || held_.contains(item_id(self, items_held_)));
  hold_for_result(item_id(self, items_held_), receiver, std::move(held));
  return items_held_;
}

void ObjectDirectory::let_go_for_item(uint32_t number) {
  let_go_for_result(item_id(connections_.address().process, number));
}

std::shared_ptr<const void> ObjectDirectory::hold_of_item(protocol::ProcessAddress producer,
                                                          uint32_t number) {
  return {nullptr, [this, number, from = std::move(producer)](const void*) {
            boost::asio::post(environment_.loop,
                              [this, number, from] { release_item(from, number); });
          }};
}

void ObjectDirectory::release_item(const protocol::ProcessAddress& producer, uint32_t number) {
  release_held(item_id(producer.process, number), producer);
}

void ObjectDirectory::process_gone(ProcessId process) {
  std::vector<std::shared_ptr<Object>> touched;
  {
    const std::lock_guard lock{mutex_};
    for (auto& [id, object] : owned_) {
      if (object->has_ties() && object->ties().borrowers.erase(process) > 0) {
        touched.push_back(object);
      }
    }
  }
  for (const auto& object : touched) {
    if (object->references() == 0) free_if_unused(object);
  }
  for (auto it = held_.begin(); it != held_.end();) {
    if (it->second.caller != process) {
      ++it;
      continue;
    }
    const auto refs = std::move(it->second.refs);
    it = held_.erase(it);
    for (const ObjectName& ref : refs) drop_reference(ref);
  }
}

void ObjectDirectory::stop() {
  std::vector<std::shared_ptr<Object>> all;
  {
    const std::lock_guard lock{mutex_};
    for (auto& [id, object] : owned_) all.push_back(object);
  }
  for (const auto& object : all)
    object->set_error(error(Code::cancelled, "the session was closed"));
}

void ObjectDirectory::cancel(const std::shared_ptr<Object>& object, Error why, uint8_t how) {
  for (const auto& other : object->take_more()) cancel(other, why, how);
  object->cancel(std::move(why), how);
  free_when_unused(object);
}

// --- Reading

std::optional<Result<ObjectBytes>> ObjectDirectory::read(
    const std::shared_ptr<Object>& object) const {
  if (!object->is_ready()) return std::nullopt;
  if (object->is_discarded()) return was_discarded(object->id());
  if (object->failure()) return *object->failure();
  if (!object->in_store()) return ObjectBytes{object->value(), object};
  if (auto view = store_.find(object->id())) return std::move(*view);
  return std::nullopt;
}

Async<Result<ObjectBytes>> ObjectDirectory::get(ObjectName object, Instant deadline) {
  if (owns(object)) {
    const auto owned = find(object.id);
    if (!owned) {
      co_return error(Code::not_found, fmt::format("object {} was freed", object.id.to_string()));
    }
    co_return co_await get_owned(owned, deadline);
  }
  std::vector<ObjectName> one{std::move(object)};
  auto values = co_await get_many(std::move(one), deadline);
  co_return std::move(values[0]);
}

Async<Result<ObjectBytes>> ObjectDirectory::get_owned(std::shared_ptr<Object> object,
                                                      Instant deadline) {
  const bool ready = co_await Object::wait_ready(object, environment_.clock, deadline);
  if (!ready) {
    co_return error(Code::deadline_exceeded,
                    fmt::format("object {} is not ready", object->id().to_string()));
  }
  const ObjectName name{object->id(), connections_.address()};
  for (int tries = 1;; ++tries) {
    if (auto there = read(object)) co_return std::move(*there);
    auto place = place_for(*object, *store_.node());
    const ProcessId at = place.node.process;
    // A worker that brings a copy tells of it by the name.
    if (place.node.node != store_.node()->node && !object->is_freed()) (void)publish(object);
    auto view = co_await store_.get(name, std::move(place), deadline);
    // Once more: the world has moved.
    if (object->is_discarded()) co_return was_discarded(object->id());
    if (view && !object->is_freed()) store_.keep(object->id(), *view);
    if (view || !is_missing(view.error()) || tries == tries_max || object->is_freed()) {
      co_return view;
    }
    TROUPE_CO_CHECK(co_await find_again(object, at, deadline));
  }
}

Async<Result<ObjectBytes>> ObjectDirectory::get_stored(ObjectName object,
                                                       protocol::ObjectValue place,
                                                       Instant deadline) {
  for (int tries = 1;; ++tries) {
    const ProcessId at = place.node.process;
    auto view = co_await store_.get(object, std::move(place), deadline);
    if (view && borrows_.holds(object.id)) store_.keep(object.id, *view);
    if (view || !is_missing(view.error()) || tries == tries_max) co_return view;
    TROUPE_CO_TRY(auto value, co_await ask_again(object, at, deadline));
    if (value.error.code != 0) co_return protocol::from_info(value.error);
    if (!value.in_store) {
      auto bytes = std::make_shared<const Bytes>(std::move(value.inline_value));
      ObjectBytes whole{*bytes, bytes};
      co_return whole;
    }
    place = std::move(value);
  }
}

Async<Result<protocol::ObjectValue>> ObjectDirectory::ask_again(ObjectName object,
                                                                ProcessId missing_at,
                                                                Instant deadline) {
  auto peer = co_await connections_.peer_of(object.owner, deadline);
  if (!peer) co_return owner_is_gone(object.id, peer.error());
  protocol::ResolveObjects request{{object.id}, *store_.node(), missing_at};
  auto values = co_await transport::call<protocol::ObjectValues>(
      *peer, Method::resolve_objects, std::move(request), deadline - environment_.clock.now());
  if (!values) co_return unanswered(object.id, std::move(values).error());
  if (values->items.size() != 1) {
    co_return error(Code::internal, "an owner answered for other objects than asked for");
  }
  co_return std::move(values->items[0]);
}

// Shared by the coroutines that fetch many objects, and by whoever waits for them.
struct ObjectDirectory::Gathered {
  Gathered(const Executor& loop, std::vector<ObjectName> given)
      : names(std::move(given)), results(names.size()), done(loop) {}
  // One of them, while it runs.
  struct Share {
    explicit Share(std::shared_ptr<Gathered> of) : gathered(std::move(of)) {}
    ~Share() {
      if (--gathered->running == 0) gathered->done.set();
    }
    std::shared_ptr<Gathered> gathered;
  };

  const std::vector<ObjectName> names;
  std::vector<std::optional<Result<ObjectBytes>>> results;
  size_t running = 0;
  Event done;
};

Async<void> ObjectDirectory::get_into(std::shared_ptr<Gathered> gathered, size_t position,
                                      Instant deadline) {
  const Gathered::Share share{gathered};
  auto value = co_await get(gathered->names[position], deadline);
  gathered->results[position].emplace(std::move(value));
}

Async<void> ObjectDirectory::get_stored_into(std::shared_ptr<Gathered> gathered, size_t position,
                                             protocol::ObjectValue place, Instant deadline) {
  const Gathered::Share share{gathered};
  auto value = co_await get_stored(gathered->names[position], std::move(place), deadline);
  gathered->results[position].emplace(std::move(value));
}

Async<void> ObjectDirectory::get_from_owner(std::shared_ptr<Gathered> gathered,
                                            std::vector<size_t> positions, Instant deadline) {
  const Gathered::Share share{gathered};
  const protocol::ProcessAddress owner = gathered->names[positions[0]].owner;
  for (size_t next = 0; next < positions.size();) {
    auto& clock = environment_.clock;
    const ObjectId first = gathered->names[positions[next]].id;
    auto& outcome = gathered->results[positions[next]];
    auto peer = co_await connections_.peer_of(owner, deadline);
    if (!peer) {
      outcome.emplace(owner_is_gone(first, peer.error()));
      co_return;
    }
    protocol::ResolveObjects request{{}, *store_.node(), {}};
    const size_t end = std::min(positions.size(), next + asked_max);
    for (size_t i = next; i < end; ++i) {
      request.objects.push_back(gathered->names[positions[i]].id);
    }
    auto values = co_await transport::call<protocol::ObjectValues>(
        *peer, Method::resolve_objects, std::move(request), deadline - clock.now());
    if (!values) {
      outcome.emplace(unanswered(first, std::move(values).error()));
      co_return;
    }
    if (values->items.empty() || values->items.size() > end - next) {
      outcome.emplace(error(Code::internal, "an owner answered for other objects than asked for"));
      co_return;
    }
    for (protocol::ObjectValue& value : values->items) {
      const size_t position = positions[next++];
      if (value.error.code != 0) {
        gathered->results[position].emplace(protocol::from_info(value.error));
        co_return;  // What is behind it is not wanted.
      }
      if (value.in_store) {
        ++gathered->running;
        spawn(scope_, get_stored_into(gathered, position, std::move(value), deadline));
      } else {
        auto bytes = std::make_shared<const Bytes>(std::move(value.inline_value));
        gathered->results[position].emplace(ObjectBytes{*bytes, bytes});
      }
    }
  }
}

Async<std::vector<Result<ObjectBytes>>> ObjectDirectory::get_many(std::vector<ObjectName> objects,
                                                                  Instant deadline) {
  const auto gathered = std::make_shared<Gathered>(environment_.loop, std::move(objects));
  ++gathered->running;  // For this one.
  std::map<ProcessId, std::vector<size_t>> by_owner;
  for (size_t i = 0; i < gathered->names.size(); ++i) {
    const ObjectName& name = gathered->names[i];
    if (owns(name)) {
      const auto object = find(name.id);
      if (object) gathered->results[i] = read(object);
      if (!gathered->results[i]) {
        ++gathered->running;
        spawn(scope_, get_into(gathered, i, deadline));
      }
    } else if (auto view = store_.find(name.id)) {
      gathered->results[i].emplace(std::move(*view));
    } else {
      by_owner[name.owner.process].push_back(i);
    }
  }
  for (auto& [owner, positions] : by_owner) {
    // Two questions at a time, so that the owner writes an answer while the other one is read.
    const auto middle = positions.size() < halved_from
                            ? positions.end()
                            : positions.begin() + static_cast<std::ptrdiff_t>(positions.size() / 2);
    std::vector<size_t> rest(middle, positions.end());
    positions.erase(middle, positions.end());
    ++gathered->running;
    spawn(scope_, get_from_owner(gathered, std::move(positions), deadline));
    if (rest.empty()) continue;
    ++gathered->running;
    spawn(scope_, get_from_owner(gathered, std::move(rest), deadline));
  }
  if (--gathered->running > 0) co_await gathered->done.wait();
  std::vector<Result<ObjectBytes>> results;
  results.reserve(gathered->results.size());
  for (auto& result : gathered->results) {
    if (result) {
      results.push_back(std::move(*result));
    } else {
      results.emplace_back(error(Code::cancelled, "not fetched: one before it failed"));
    }
  }
  co_return results;
}

protocol::ObjectValue ObjectDirectory::value_of(const std::shared_ptr<Object>& object,
                                                const protocol::ProcessAddress& reader) {
  protocol::ObjectValue value;
  if (object->is_discarded()) {
    value.error = protocol::to_info(was_discarded(object->id()));
  } else if (object->failure()) {
    value.error = protocol::to_info(*object->failure());
  } else if (!object->in_store()) {
    value.inline_value.assign(object->value().begin(), object->value().end());
  } else if (const auto view = store_.find(object->id());
             view && view->bytes.size() <= inline_bytes_max) {
    value.inline_value.assign(view->bytes.begin(), view->bytes.end());
  } else {
    value = place_for(*object, reader);
  }
  return value;
}

// Readers form a binary tree below the object's node, in the order in which they came: each reads
// from its parent, and turns to those above it where that fails.
protocol::ObjectValue ObjectDirectory::place_for(Object& object,
                                                 const protocol::ProcessAddress& reader) {
  protocol::ObjectValue value;
  value.in_store = true;
  value.node = *object.node();
  value.size_bytes = object.size_bytes();
  const bool counts = !reader.process.is_nil() && reader.node != value.node.node;
  if (!counts && !object.has_ties()) return value;
  auto& copies = object.ties().copies;
  if (counts) {
    // One that asks again has no copy any more, or needs no other.
    std::erase_if(copies, [&](const auto& copy) { return copy.node == reader.node; });
    object.entangle();
  }
  const auto add = [&](const protocol::ProcessAddress& node) {
    if (value.copies.size() >= holders_max) return;
    if (std::ranges::find(value.copies, node.process, &protocol::ProcessAddress::process) ==
        value.copies.end()) {
      value.copies.push_back(node);
    }
  };
  for (size_t parent = copies.size() / 2; parent > 0; parent = (parent - 1) / 2) {
    add(copies[parent - 1]);
  }
  add(value.node);
  for (const auto& copy : copies) add(copy);
  if (counts) copies.push_back(reader);
  return value;
}

Async<Result<protocol::ObjectValues>> ObjectDirectory::resolve_objects(
    protocol::ResolveObjects request, CallContext context) {
  protocol::ObjectValues values;
  std::vector<ObjectId> stored;
  size_t bytes = 0;
  for (const ObjectId id : request.objects) {
    if (bytes > answer_bytes_max) break;
    const auto object = find(id);
    if (!object) {
      values.items.emplace_back().error = protocol::to_info(was_freed(id));
      break;
    }
    if (!object->is_ready()) {
      if (!values.items.empty()) break;
      const bool ready = co_await Object::wait_ready(object, environment_.clock, context.deadline);
      if (!ready) co_return error(Code::deadline_exceeded, "the object is not ready");
    }
    if (!request.missing_at.is_nil() && object->in_store() && !object->is_discarded()) {
      const Status found = co_await find_again(object, request.missing_at, context.deadline);
      if (!found) {
        values.items.emplace_back().error = protocol::to_info(found.error());
        break;
      }
    }
    protocol::ObjectValue value = value_of(object, request.reader);
    bytes += value.inline_value.size();
    if (value.in_store) stored.push_back(id);
    const bool failed = value.error.code != 0;
    values.items.push_back(std::move(value));
    if (failed) break;
  }
  if (!stored.empty()) TROUPE_CO_CHECK(co_await store_.expose(std::move(stored)));
  co_return values;
}

// --- Waiting

Async<Status> ObjectDirectory::wait_objects(transport::Message message, CallContext context,
                                            transport::OutgoingStream& out) {
  using namespace boost::asio::experimental::awaitable_operators;
  TROUPE_CO_TRY(auto request, protocol::decode<protocol::ObjectIds>(message.body));
  const auto list = std::make_shared<ReadyList>(environment_.loop, std::move(request.objects));
  struct Hooks {
    const std::shared_ptr<ReadyList>& list;
    std::vector<std::shared_ptr<Object>> objects;
    ~Hooks() {
      for (const auto& object : objects) object->remove_hook(*list);
    }
  } hooks{list, {}};
  const auto& objects = list->objects();
  for (uint32_t i = 0; i < objects.size(); ++i) {
    auto object = find(objects[i]);
    // What was freed is ready: reading it says so.
    if (object && object->add_hook(list, i)) {
      hooks.objects.push_back(std::move(object));
    } else {
      list->ready(i);
    }
  }
  for (size_t told = 0; told < objects.size();) {
    protocol::ObjectIds ready{list->take()};
    if (ready.objects.empty()) {
      co_await (list->changed.wait() || context.cancelled->wait());
      if (context.cancelled->is_set()) co_return error(Code::cancelled, "the caller gave up");
      continue;
    }
    told += ready.objects.size();
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(ready)));
  }
  co_return ok();
}

void ObjectDirectory::watch(std::vector<ObjectName> objects, std::vector<uint32_t> numbers,
                            std::shared_ptr<ReadyHook> hook, std::shared_ptr<Event> enough) {
  struct OfOwner {
    protocol::ProcessAddress owner;
    std::vector<ObjectId> objects;
    std::vector<uint32_t> numbers;
  };
  std::map<ProcessId, OfOwner> by_owner;
  for (size_t i = 0; i < objects.size(); ++i) {
    OfOwner& of = by_owner[objects[i].owner.process];
    if (of.objects.empty()) of.owner = std::move(objects[i].owner);
    of.objects.push_back(objects[i].id);
    of.numbers.push_back(numbers[i]);
  }
  for (auto& [process, of] : by_owner) {
    spawn(scope_, watch_owner(std::move(of.owner), std::move(of.objects), std::move(of.numbers),
                              hook, enough));
  }
}

Async<void> ObjectDirectory::watch_owner(protocol::ProcessAddress owner,
                                         std::vector<ObjectId> objects,
                                         std::vector<uint32_t> numbers,
                                         std::shared_ptr<ReadyHook> hook,
                                         std::shared_ptr<Event> enough) {
  using namespace boost::asio::experimental::awaitable_operators;
  std::unordered_multimap<ObjectId, uint32_t> waiting;
  for (size_t i = 0; i < objects.size(); ++i) waiting.emplace(objects[i], numbers[i]);
  // Whatever ends it: reading the rest says why.
  struct Rest {
    std::unordered_multimap<ObjectId, uint32_t>& waiting;
    ReadyHook& hook;
    ~Rest() {
      for (const auto& [object, number] : waiting) hook.ready(number);
    }
  } rest{waiting, *hook};
  auto peer = co_await connections_.peer_of(std::move(owner), Instant::max());
  if (!peer) co_return;
  protocol::ObjectIds request{std::move(objects)};
  transport::Message message{protocol::encode(request), {}};
  auto stream = (*peer)->open_stream(Method::wait_objects, std::move(message), Duration::zero());
  if (!stream) co_return;
  while (!waiting.empty()) {
    auto raced = co_await ((*stream)->next() || enough->wait());
    if (raced.index() == 1) {
      waiting.clear();
      co_return;
    }
    auto& item = std::get<0>(raced);
    if (!item || !*item) co_return;
    auto ready = protocol::decode<protocol::ObjectIds>(**item);
    if (!ready) co_return;
    for (const ObjectId id : ready->objects) {
      const auto [first, last] = waiting.equal_range(id);
      for (auto it = first; it != last; ++it) hook->ready(it->second);
      waiting.erase(first, last);
    }
  }
}

// --- Freeing

void ObjectDirectory::release_stored(Object& object) {
  store_.release_owned(object.id(), *object.node());
  if (!object.has_ties()) return;
  for (const auto& node : std::exchange(object.ties().copies, {})) {
    store_.release_owned(object.id(), node);
  }
}

void ObjectDirectory::discard(const std::shared_ptr<Object>& object) {
  if (!object->discard()) return;
  if (!object->is_ready()) {
    set_error(object, was_discarded(object->id()));
  } else if (object->in_store() && !object->is_freed()) {
    release_stored(*object);
  }
}

Async<Status> ObjectDirectory::free(std::vector<ObjectName> objects) {
  std::map<ProcessId, std::pair<protocol::ProcessAddress, protocol::ObjectIds>> by_owner;
  for (ObjectName& name : objects) {
    if (owns(name)) {
      if (const auto object = find(name.id)) discard(object);
      continue;
    }
    store_.forget(name.id);
    auto& [owner, ids] = by_owner[name.owner.process];
    if (ids.objects.empty()) owner = std::move(name.owner);
    ids.objects.push_back(name.id);
  }
  Status outcome = ok();
  for (auto& [process, of] : by_owner) {
    const ObjectId first = of.second.objects[0];
    auto peer = co_await connections_.peer_of(std::move(of.first),
                                              environment_.clock.now() + notice_budget);
    if (!peer) {
      if (outcome) outcome = owner_is_gone(first, peer.error());
      continue;
    }
    auto freed = co_await transport::call<Empty>(*peer, Method::free_objects, std::move(of.second),
                                                 notice_budget);
    if (!freed && outcome) outcome = unanswered(first, std::move(freed).error());
  }
  co_return outcome;
}

Async<Result<Empty>> ObjectDirectory::free_objects(protocol::ObjectIds request, CallContext) {
  for (const ObjectId id : request.objects) {
    if (const auto object = find(id)) discard(object);
  }
  co_return Empty{};
}

// --- Looking in

protocol::ObjectEntry ObjectDirectory::describe(Object& object) const {
  protocol::ObjectEntry entry;
  entry.object = object.id();
  entry.owner = connections_.address();
  entry.references = object.references();
  if (object.has_ties()) {
    for (const ProcessId borrower : object.ties().borrowers) {
      if (entry.borrowers.empty() || entry.borrowers.back() != borrower) {
        entry.borrowers.push_back(borrower);
      }
    }
  }
  if (!object.is_ready()) {
    entry.state = "pending";
  } else if (object.is_discarded()) {
    entry.state = "freed";
  } else if (object.failure()) {
    entry.state = "failed";
  } else if (object.in_store()) {
    entry.state = "stored";
    entry.node = object.node()->node;
    entry.size_bytes = object.size_bytes();
  } else {
    entry.state = "inline";
    entry.size_bytes = object.value().size();
  }
  if (entry.references > 0) entry.why = fmt::format("{} refs in its owner", entry.references);
  if (!entry.borrowers.empty()) {
    if (!entry.why.empty()) entry.why += ", ";
    entry.why += fmt::format("refs in {} other processes", entry.borrowers.size());
  }
  return entry;
}

protocol::ObjectList ObjectDirectory::list(const protocol::ListObjects& request) const {
  protocol::ObjectList list;
  for (const auto& [id, size_bytes] : store_.list_private()) {
    if (find(id)) continue;  // Below, with more to say.
    protocol::ObjectEntry& entry = list.items.emplace_back();
    entry.object = id;
    entry.owner = connections_.address();
    entry.node = connections_.address().node;
    entry.state = "stored";
    entry.size_bytes = size_bytes;
    entry.why = "refs in its owner";
  }
  {
    const std::lock_guard lock{mutex_};
    for (const auto& [id, object] : owned_) list.items.push_back(describe(*object));
  }
  list.total = list.items.size();
  protocol::keep_largest(list, request.limit);
  return list;
}

Async<Result<Empty>> ObjectDirectory::object_copied(protocol::ObjectCopied notice,
                                                    CallContext context) {
  const ProcessId worker = notice.node.process;
  if (context.peer->remote().address.process != worker) {
    co_return error(Code::denied, "a worker speaks of its own copies only");
  }
  const auto object = find(notice.object);
  if (!object || !object->is_ready() || !object->in_store() || object->is_discarded()) {
    co_return was_freed(notice.object);
  }
  auto& copies = object->ties().copies;
  const auto known = std::ranges::find(copies, worker, &protocol::ProcessAddress::process);
  if (notice.dropped && known != copies.end()) copies.erase(known);
  if (!notice.dropped && known == copies.end()) copies.push_back(std::move(notice.node));
  object->entangle();
  co_return Empty{};
}

// --- Borrowers

Async<Result<Empty>> ObjectDirectory::add_borrow(protocol::ObjectIds request, CallContext context) {
  const ProcessId borrower = context.peer->remote().address.process;
  // Requests are looked at a little later than a connection's end: nobody would forget this one.
  if (!connections_.is_connected(borrower))
    co_return error(Code::unavailable, "its sender is gone");
  Status known;
  for (const ObjectId id : request.objects) {
    if (const auto object = find(id)) {
      object->ties().borrowers.insert(borrower);
    } else {
      known =
          error(Code::not_found, fmt::format("object {} was freed by its owner", id.to_string()));
    }
  }
  if (!known) co_return std::move(known).error();
  co_return Empty{};
}

Async<Result<Empty>> ObjectDirectory::remove_borrow(protocol::ObjectIds request,
                                                    CallContext context) {
  const ProcessId borrower = context.peer->remote().address.process;
  for (const ObjectId id : request.objects) forget_borrower(id, borrower);
  co_return Empty{};
}

void ObjectDirectory::forget_borrower(ObjectId id, ProcessId borrower) {
  if (const auto held = held_.find(id); held != held_.end() && held->second.caller == borrower) {
    let_go_for_result(id);
    return;
  }
  const auto object = find(id);
  if (!object) return;
  auto& borrowers = object->ties().borrowers;
  if (const auto one = borrowers.find(borrower); one != borrowers.end()) {
    borrowers.erase(one);
    if (object->references() == 0) free_if_unused(object);
  }
}

}  // namespace troupe::client
