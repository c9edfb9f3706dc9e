#include "client/object_directory.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "client/connections.h"
#include "client/store_client.h"

namespace troupe::client {

using protocol::Empty;
using transport::CallContext;

namespace {
constexpr Duration notice_budget = std::chrono::seconds(30);
}

ObjectDirectory::ObjectDirectory(transport::Environment environment, Scope& scope,
                                 Connections& connections, StoreClient& store)
    : environment_(environment),
      scope_(scope),
      connections_(connections),
      store_(store),
      borrows_settled_(environment.loop) {}

ObjectName ObjectDirectory::create(std::function<void()> cancel) {
  return create_with_id(ObjectId::random(environment_.random), std::move(cancel));
}

ObjectName ObjectDirectory::create_with_id(ObjectId id, std::function<void()> cancel) {
  auto object = std::make_shared<Owned>(environment_.loop);
  object->cancel = std::move(cancel);
  owned_[id] = std::move(object);
  return {id, connections_.address()};
}

bool ObjectDirectory::is_pending(ObjectId id) const {
  const auto found = owned_.find(id);
  return found != owned_.end() && !found->second->ready.is_set();
}

void ObjectDirectory::set_value(ObjectId id, Bytes value) {
  const auto found = owned_.find(id);
  if (found == owned_.end() || found->second->ready.is_set()) return;
  found->second->inline_value = std::make_shared<const Bytes>(std::move(value));
  found->second->cancel = nullptr;
  found->second->ready.set();
}

void ObjectDirectory::set_reply(ObjectId id, protocol::InvokeReply reply,
                                protocol::ProcessAddress producer) {
  const auto found = owned_.find(id);
  const bool wanted = found != owned_.end() && !found->second->ready.is_set();
  if (!wanted) {
    // Cancelled or dropped meanwhile: what was made for us is given back at once.
    if (!reply.node.process.is_nil()) store_.release_owned(id, reply.node);
    if (!reply.borrowed.empty()) {
      spawn(scope_, tell_owner(Method::remove_borrow, id, producer));
    }
    return;
  }
  Owned& object = *found->second;
  if (!reply.borrowed.empty()) object.producer = std::move(producer);
  if (reply.node.process.is_nil()) {
    set_value(id, std::move(reply.inline_value));
  } else {
    set_stored(id, std::move(reply.node), reply.size_bytes);
  }
}

void ObjectDirectory::set_stored(ObjectId id, protocol::ProcessAddress node, uint64_t size_bytes) {
  const auto found = owned_.find(id);
  if (found == owned_.end() || found->second->ready.is_set()) {
    store_.release_owned(id, std::move(node));
    return;
  }
  Owned& object = *found->second;
  object.in_store = true;
  object.node = std::move(node);
  object.size_bytes = size_bytes;
  object.cancel = nullptr;
  object.ready.set();
}

void ObjectDirectory::set_error(ObjectId id, Error failure) {
  const auto found = owned_.find(id);
  if (found == owned_.end() || found->second->ready.is_set()) return;
  found->second->failure = std::move(failure);
  found->second->cancel = nullptr;
  found->second->ready.set();
}

void ObjectDirectory::set_held(ObjectId id, std::vector<ObjectName> held) {
  const auto found = owned_.find(id);
  if (found == owned_.end()) return;
  for (const ObjectName& ref : held) add_reference(ref);
  found->second->held = std::move(held);
}

bool ObjectDirectory::owns(const ObjectName& object) const {
  return object.owner.process == connections_.address().process;
}

void ObjectDirectory::add_reference(const ObjectName& object) {
  if (owns(object)) {
    if (const auto found = owned_.find(object.id); found != owned_.end()) {
      ++found->second->references;
    }
    return;
  }
  Borrowed& borrowed = borrowed_[object.id];
  if (borrowed.references++ > 0) return;
  borrowed.owner = object.owner;
  borrows_in_flight_.insert(++borrows_told_);
  spawn(scope_, borrow(borrows_told_, object.id, object.owner));
}

void ObjectDirectory::drop_reference(const ObjectName& object) {
  if (owns(object)) {
    const auto found = owned_.find(object.id);
    if (found == owned_.end() || found->second->references == 0) return;
    --found->second->references;
    free_if_unused(object.id);
    return;
  }
  const auto found = borrowed_.find(object.id);
  if (found == borrowed_.end() || --found->second.references > 0) return;
  spawn(scope_, tell_owner(Method::remove_borrow, object.id, found->second.owner));
  borrowed_.erase(found);
}

void ObjectDirectory::free_if_unused(ObjectId id) {
  // What an object holds may go with it, and so on: a list, for a chain of refs can be long.
  unused_.push_back(id);
  if (std::exchange(freeing_, true)) return;
  while (!unused_.empty()) {
    const ObjectId next = unused_.back();
    unused_.pop_back();
    const auto found = owned_.find(next);
    if (found == owned_.end()) continue;
    const auto object = found->second;
    if (object->references > 0 || !object->borrowers.empty()) continue;
    owned_.erase(found);
    if (object->in_store) store_.release_owned(next, object->node);
    if (object->producer) {
      spawn(scope_, tell_owner(Method::remove_borrow, next, *object->producer));
    }
    for (const ObjectName& ref : object->held) drop_reference(ref);
    // What nobody will read need not be waited for, but it runs on: its effects may be wanted.
  }
  freeing_ = false;
}

Async<void> ObjectDirectory::tell_owner(Method method, ObjectId id,
                                        protocol::ProcessAddress owner) {
  auto peer =
      co_await connections_.peer_of(std::move(owner), environment_.clock.now() + notice_budget);
  if (!peer) co_return;  // A ref to an object whose owner is gone fails when it is read.
  protocol::BorrowObject notice{id};
  auto told = co_await transport::call<Empty>(*peer, method, notice, notice_budget);
  if (!told) log::debug("owner_not_told", {{"object", id}, {"why", told.error().message()}});
}

Async<void> ObjectDirectory::borrow(uint64_t number, ObjectId id, protocol::ProcessAddress owner) {
  struct Settle {
    ObjectDirectory& directory;
    uint64_t number;
    ~Settle() {
      directory.borrows_in_flight_.erase(number);
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

void ObjectDirectory::process_gone(ProcessId process) {
  std::vector<ObjectId> touched;
  for (auto& [id, object] : owned_) {
    if (object->borrowers.erase(process) > 0) touched.push_back(id);
  }
  for (const ObjectId id : touched) free_if_unused(id);
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
  for (auto& [id, object] : owned_) {
    if (object->ready.is_set()) continue;
    object->failure = error(Code::cancelled, "the session was closed");
    object->ready.set();
  }
}

void ObjectDirectory::cancel(ObjectId id) {
  const auto found = owned_.find(id);
  if (found == owned_.end() || found->second->ready.is_set()) return;
  const auto stop_it = found->second->cancel;
  set_error(id, error(Code::cancelled, "the task or call was cancelled"));
  if (stop_it) stop_it();
}

Async<Result<ObjectBytes>> ObjectDirectory::get(ObjectName object, Instant deadline) {
  if (owns(object)) co_return co_await get_owned(object.id, deadline);
  co_return co_await get_borrowed(std::move(object), deadline);
}

Async<Result<ObjectBytes>> ObjectDirectory::get_owned(ObjectId id, Instant deadline) {
  const auto found = owned_.find(id);
  if (found == owned_.end()) {
    co_return error(Code::not_found, fmt::format("object {} was freed", id.to_string()));
  }
  const auto object = found->second;
  const bool ready = co_await wait_until(environment_.clock, deadline, object->ready);
  if (!ready) {
    co_return error(Code::deadline_exceeded, fmt::format("object {} is not ready", id.to_string()));
  }
  if (object->failure) co_return *object->failure;
  if (object->inline_value) {
    ObjectBytes bytes{*object->inline_value, object->inline_value};
    co_return bytes;
  }
  co_return co_await store_.get(id, object->node, deadline);
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
    const auto found = owned_.find(object.id);
    if (found == owned_.end()) co_return true;  // get will say that it was freed.
    const auto kept = found->second;
    co_return co_await wait_until(environment_.clock, deadline, kept->ready);
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
  const auto found = owned_.find(request.object);
  if (found == owned_.end()) {
    co_return error(Code::not_found,
                    fmt::format("object {} was freed by its owner", request.object.to_string()));
  }
  const auto object = found->second;
  const bool ready = co_await wait_until(environment_.clock, context.deadline, object->ready);
  if (!ready) co_return error(Code::deadline_exceeded, "the object is not ready");
  if (object->failure) co_return *object->failure;
  protocol::ObjectValue value;
  if (object->inline_value) {
    value.inline_value = *object->inline_value;
  } else {
    value.in_store = true;
    value.node = object->node;
    value.size_bytes = object->size_bytes;
  }
  co_return value;
}

Async<Result<Empty>> ObjectDirectory::add_borrow(protocol::BorrowObject request,
                                                 CallContext context) {
  const auto found = owned_.find(request.object);
  if (found == owned_.end()) {
    co_return error(Code::not_found,
                    fmt::format("object {} was freed by its owner", request.object.to_string()));
  }
  found->second->borrowers.insert(context.peer->remote().address.process);
  co_return Empty{};
}

Async<Result<Empty>> ObjectDirectory::remove_borrow(protocol::BorrowObject request,
                                                    CallContext context) {
  const ProcessId borrower = context.peer->remote().address.process;
  if (const auto held = held_.find(request.object);
      held != held_.end() && held->second.caller == borrower) {
    const auto refs = std::move(held->second.refs);
    held_.erase(held);
    for (const ObjectName& ref : refs) drop_reference(ref);
    co_return Empty{};
  }
  const auto found = owned_.find(request.object);
  if (found == owned_.end()) co_return Empty{};
  auto& borrowers = found->second->borrowers;
  if (const auto one = borrowers.find(borrower); one != borrowers.end()) {
    borrowers.erase(one);
    free_if_unused(request.object);
  }
  co_return Empty{};
}

}  // namespace troupe::client
