#include "client/object_directory.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/post.hpp>

#include "base/log.h"
#include "client/connections.h"
#include "client/store_client.h"

namespace troupe::client {

using protocol::Empty;
using transport::CallContext;

namespace {

constexpr Duration notice_budget = std::chrono::seconds(30);
// The count goes through an odd factor, so that every bit of an id is fit for a hash.
constexpr uint64_t id_step = 0x9e3779b97f4a7c15ull;

bool contains(const std::vector<ObjectId>& ids, ObjectId id) {
  return std::ranges::find(ids, id) != ids.end();
}

bool needs_loop(const protocol::InvokeReply& reply) {
  return !reply.node.process.is_nil() || !reply.borrowed.empty() || !reply.more.empty();
}

}  // namespace

ObjectId result_id(ObjectId first, uint32_t index) {
  first.low += index * id_step;
  return first;
}

ObjectDirectory::ObjectDirectory(transport::Environment environment, Scope& scope,
                                 Connections& connections, StoreClient& store)
    : environment_(environment),
      scope_(scope),
      connections_(connections),
      store_(store),
      home_{environment.loop, {}},
      id_base_(environment.random.next()),
      borrows_settled_(environment.loop) {}

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
                                const protocol::ProcessAddress& producer) {
  auto more = object->take_more();
  if (!needs_loop(reply) && more.empty()) {
    set_value(object, reply.inline_value);
    return;
  }
  boost::asio::post(environment_.loop, [this, object, producer, reply = std::move(reply),
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
  });
}

void ObjectDirectory::give_back(ObjectId id, const protocol::ProcessAddress& node, bool held,
                                const protocol::ProcessAddress& producer) {
  if (!node.process.is_nil()) store_.release_owned(id, node);
  if (held) spawn(scope_, tell_owner(Method::remove_borrow, id, producer));
}

void ObjectDirectory::set_result(const std::shared_ptr<Object>& object, protocol::ObjectValue value,
                                 bool held, const protocol::ProcessAddress& producer) {
  if (object->is_ready() || object->freed) {  // Cancelled meanwhile.
    give_back(object->id(), value.node, held, producer);
    return;
  }
  if (held) {
    object->ties().producer = producer;
    object->entangle();
  }
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
  if (object->freed || !object->set_stored(node, size_bytes)) {
    store_.release_owned(object->id(), std::move(node));
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
    return;
  }
  Borrowed& borrowed = borrowed_[object.id];
  if (borrowed.references++ > 0) return;
  borrowed.owner = object.owner;
  borrows_in_flight_.insert(++borrows_told_);
  announce_borrow();
  spawn(scope_, borrow(borrows_told_, object.id, object.owner));
}

void ObjectDirectory::hold(const std::vector<ObjectName>& refs) {
  std::vector<ObjectName> foreign;
  for (const ObjectName& ref : refs) {
    if (owns(ref)) {
      add_reference(ref);
    } else {
      foreign.push_back(ref);
    }
  }
  if (foreign.empty()) return;
  boost::asio::dispatch(environment_.loop, [this, foreign = std::move(foreign)] {
    for (const ObjectName& ref : foreign) add_reference(ref);
  });
}

void ObjectDirectory::add_announced(const ObjectName& object) {
  add_reference(object);
  unsettled_.fetch_sub(1);
}

void ObjectDirectory::drop_reference(const ObjectName& object) {
  if (owns(object)) {
    if (const auto owned = find(object.id)) drop_reference(owned);
    return;
  }
  const auto found = borrowed_.find(object.id);
  if (found == borrowed_.end() || --found->second.references > 0) return;
  spawn(scope_, tell_owner(Method::remove_borrow, object.id, found->second.owner));
  borrowed_.erase(found);
}

void ObjectDirectory::drop_reference(const std::shared_ptr<Object>& object) {
  if (object->drop_reference()) free_when_unused(object);
}

void ObjectDirectory::free_when_unused(const std::shared_ptr<Object>& object) {
  // Whichever comes last, the outcome or the end of the last reference, sees the other. What nobody
  // will read runs on: its effects may be wanted.
  if (object->references() > 0) return;
  if (object->is_ready() ? object->is_plain() : find(object->id()) == nullptr) return;
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
    if (object->freed || (object->has_ties() && !object->ties().borrowers.empty())) continue;
    {
      const std::lock_guard lock{mutex_};
      if (object->references() > 0) continue;
      owned_.erase(object->id());
      object->freed = true;
    }
    if (object->is_ready() && object->in_store()) {
      store_.release_owned(object->id(), object->node());
    }
    if (!object->has_ties()) continue;
    Object::Ties& ties = object->ties();
    if (ties.producer) {
      spawn(scope_, tell_owner(Method::remove_borrow, object->id(), *ties.producer));
    }
    for (const ObjectName& ref : std::exchange(ties.held, {})) drop_reference(ref);
  }
  freeing_ = false;
}

Async<void> ObjectDirectory::tell_owner(Method method, ObjectId id,
                                        protocol::ProcessAddress owner) {
  auto peer =
      co_await connections_.peer_of(std::move(owner), environment_.clock.now() + notice_budget);
  if (!peer) co_return;  // A ref to an object whose owner is gone fails when it is read.
  protocol::BorrowObjects notice{{id}};
  auto told = co_await transport::call<Empty>(*peer, method, notice, notice_budget);
  if (!told) log::debug("owner_not_told", {{"object", id}, {"why", told.error().message()}});
}

Async<void> ObjectDirectory::borrow(uint64_t number, ObjectId id, protocol::ProcessAddress owner) {
  struct Settle {
    ObjectDirectory& directory;
    uint64_t number;
    ~Settle() {
      directory.borrows_in_flight_.erase(number);
      directory.unsettled_.fetch_sub(1);
      directory.borrows_settled_.pulse();
    }
  } settle{*this, number};
  co_await tell_owner(Method::add_borrow, id, std::move(owner));
}

Async<void> ObjectDirectory::flush_borrows() {
  const uint64_t last = borrows_told_;
  while (!borrows_in_flight_.empty() && *borrows_in_flight_.begin() <= last) {
    co_await borrows_settled_.wait();
  }
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

Async<Result<ObjectBytes>> ObjectDirectory::get(ObjectName object, Instant deadline) {
  if (!owns(object)) co_return co_await get_borrowed(std::move(object), deadline);
  const auto owned = find(object.id);
  if (!owned) {
    co_return error(Code::not_found, fmt::format("object {} was freed", object.id.to_string()));
  }
  co_return co_await get_owned(owned, deadline);
}

Async<Result<ObjectBytes>> ObjectDirectory::get_owned(std::shared_ptr<Object> object,
                                                      Instant deadline) {
  const bool ready = co_await object->wait_ready(environment_.clock, deadline);
  if (!ready) {
    co_return error(Code::deadline_exceeded,
                    fmt::format("object {} is not ready", object->id().to_string()));
  }
  if (object->failure()) co_return *object->failure();
  if (!object->in_store()) {
    ObjectBytes bytes{object->value(), object};
    co_return bytes;
  }
  co_return co_await store_.get(object->id(), object->node(), deadline);
}

Async<Result<ObjectBytes>> ObjectDirectory::get_borrowed(ObjectName object, Instant deadline) {
  auto peer = co_await connections_.peer_of(object.owner, deadline);
  if (!peer) {
    co_return error(Code::data_loss, fmt::format("the owner of object {} is gone: {}",
                                                 object.id.to_string(), peer.error().message()));
  }
  const Duration budget = deadline - environment_.clock.now();
  protocol::ResolveObject request{object.id};
  auto value = co_await transport::call<protocol::ObjectValue>(*peer, Method::resolve_object,
                                                               request, budget);
  if (!value) {
    const Code code = value.error().code();
    if (code == Code::outcome_unknown || code == Code::unavailable) {
      co_return error(Code::data_loss, fmt::format("the owner of object {} is gone: {}",
                                                   object.id.to_string(), value.error().message()));
    }
    co_return std::move(value).error();
  }
  if (value->in_store) {
    co_return co_await store_.get(object.id, value->node, deadline);
  }
  auto bytes = std::make_shared<const Bytes>(std::move(value->inline_value));
  ObjectBytes view{*bytes, bytes};
  co_return view;
}

Async<bool> ObjectDirectory::wait_ready(ObjectName object, Instant deadline) {
  if (owns(object)) {
    const auto kept = find(object.id);
    if (!kept) co_return true;  // get will say that it was freed.
    co_return co_await kept->wait_ready(environment_.clock, deadline);
  }
  auto peer = co_await connections_.peer_of(object.owner, deadline);
  if (!peer) co_return peer.error().code() != Code::deadline_exceeded;
  protocol::ResolveObject request{object.id};
  const Duration budget = deadline - environment_.clock.now();
  auto value = co_await transport::call<protocol::ObjectValue>(*peer, Method::resolve_object,
                                                               request, budget);
  co_return value || value.error().code() != Code::deadline_exceeded;
}

Async<Result<protocol::ObjectValue>> ObjectDirectory::resolve_object(
    protocol::ResolveObject request, CallContext context) {
  const auto object = find(request.object);
  if (!object) {
    co_return error(Code::not_found,
                    fmt::format("object {} was freed by its owner", request.object.to_string()));
  }
  const bool ready = co_await object->wait_ready(environment_.clock, context.deadline);
  if (!ready) co_return error(Code::deadline_exceeded, "the object is not ready");
  if (object->failure()) co_return *object->failure();
  protocol::ObjectValue value;
  if (object->in_store()) {
    value.in_store = true;
    value.node = object->node();
    value.size_bytes = object->size_bytes();
  } else {
    value.inline_value.assign(object->value().begin(), object->value().end());
  }
  co_return value;
}

Async<Result<Empty>> ObjectDirectory::add_borrow(protocol::BorrowObjects request,
                                                 CallContext context) {
  const ProcessId borrower = context.peer->remote().address.process;
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

Async<Result<Empty>> ObjectDirectory::remove_borrow(protocol::BorrowObjects request,
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
