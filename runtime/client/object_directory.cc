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
constexpr size_t holders_max = 6;  // That a reader is told of.
}  // namespace

ObjectDirectory::ObjectDirectory(transport::Environment environment, Scope& scope,
                                 Connections& connections, StoreClient& store)
    : environment_(environment),
      scope_(scope),
      connections_(connections),
      store_(store),
      id_base_(environment.random.next()),
      borrows_settled_(environment.loop) {}

std::shared_ptr<Object> ObjectDirectory::make() {
  // Unique among all processes by the base, and never nil. The count goes through an odd factor, so
  // that every bit of the id is fit for a hash.
  const uint64_t number = made_.fetch_add(1, std::memory_order_relaxed) + 1;
  ObjectId id;
  id.high = id_base_;
  id.low = number * 0x9e3779b97f4a7c15ull;
  return std::make_shared<Object>(id, environment_.loop);
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
  if (reply.node.process.is_nil() && reply.borrowed.empty()) {
    set_value(object, reply.inline_value);
    return;
  }
  boost::asio::post(environment_.loop,
                    [this, object, producer, reply = std::move(reply)]() mutable {
                      if (object->is_ready() || object->freed) {
                        // Cancelled meanwhile: what was made for us is given back at once.
                        if (!reply.node.process.is_nil())
                          store_.release_owned(object->id(), reply.node);
                        if (!reply.borrowed.empty()) {
                          spawn(scope_, tell_owner(Method::remove_borrow, object->id(), producer));
                        }
                        return;
                      }
                      if (!reply.borrowed.empty()) {
                        object->ties().producer = producer;
                        object->entangle();
                      }
                      if (reply.node.process.is_nil()) {
                        set_value(object, reply.inline_value);
                      } else {
                        set_stored(object, std::move(reply.node), reply.size_bytes);
                      }
                      // It may have been cancelled and dropped meanwhile, as one that has nothing
                      // to give back.
                      free_when_unused(object);
                    });
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
  if (object->set_error(std::move(failure))) free_when_unused(object);
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
    for (auto& node : std::exchange(ties.copies, {})) {
      store_.release_owned(object->id(), std::move(node));
    }
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

void ObjectDirectory::cancel(const std::shared_ptr<Object>& object, Error why) {
  object->cancel(std::move(why));
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
  const ObjectName name{object->id(), connections_.address()};
  auto place = place_for(*object, connections_.worker()->remote().address);
  co_return co_await store_.get(name, std::move(place), deadline);
}

Async<Result<ObjectBytes>> ObjectDirectory::get_borrowed(ObjectName object, Instant deadline) {
  auto peer = co_await connections_.peer_of(object.owner, deadline);
  if (!peer) {
    co_return error(Code::data_loss, fmt::format("the owner of object {} is gone: {}",
                                                 object.id.to_string(), peer.error().message()));
  }
  const Duration budget = deadline - environment_.clock.now();
  protocol::ResolveObject request{object.id, connections_.worker()->remote().address};
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
    co_return co_await store_.get(object, std::move(*value), deadline);
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
  protocol::ResolveObject request{object.id, {}};
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
    value = place_for(*object, request.reader);
  } else {
    value.inline_value.assign(object->value().begin(), object->value().end());
  }
  co_return value;
}

// Readers form a binary tree below the object's node, in the order in which they came: each reads
// from its parent, and turns to those above it where that fails.
protocol::ObjectValue ObjectDirectory::place_for(Object& object,
                                                 const protocol::ProcessAddress& reader) {
  protocol::ObjectValue value;
  value.in_store = true;
  value.node = object.node();
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

Async<Result<Empty>> ObjectDirectory::object_copied(protocol::ObjectCopied notice,
                                                    CallContext context) {
  const ProcessId worker = notice.node.process;
  if (context.peer->remote().address.process != worker) {
    co_return error(Code::denied, "a worker speaks of its own copies only");
  }
  const auto object = find(notice.object);
  if (!object || !object->is_ready() || !object->in_store()) {
    co_return error(Code::not_found,
                    fmt::format("object {} was freed by its owner", notice.object.to_string()));
  }
  auto& copies = object->ties().copies;
  const auto known = std::ranges::find(copies, worker, &protocol::ProcessAddress::process);
  if (notice.dropped && known != copies.end()) copies.erase(known);
  if (!notice.dropped && known == copies.end()) copies.push_back(std::move(notice.node));
  object->entangle();
  co_return Empty{};
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
    const auto refs = std::move(held->second.refs);
    held_.erase(held);
    for (const ObjectName& ref : refs) drop_reference(ref);
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
