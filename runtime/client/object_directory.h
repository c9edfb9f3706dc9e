// The objects that this process owns or borrows: their values, and who holds refs to them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

#include "client/object.h"

namespace troupe::client {

// On the loop but for what says otherwise.
class ObjectDirectory {
 public:
  ObjectDirectory(transport::Environment environment, Scope& scope, Connections& connections,
                  StoreClient& store);

  // --- Thread-safe.
  // A new object of this process, not ready yet, with one reference. Others cannot name it before
  // publish().
  std::shared_ptr<Object> make();
  ObjectName publish(const std::shared_ptr<Object>& object);
  // The object of a name that publish() gave; null if it was freed.
  std::shared_ptr<Object> find(ObjectId id) const;
  // The same with one reference more, which the caller gives back.
  std::shared_ptr<Object> find_and_hold(ObjectId id);
  // One reference less.
  void drop_reference(const std::shared_ptr<Object>& object);
  // What makes the object is done. `producer` holds refs inside a reply's value for us.
  void set_value(const std::shared_ptr<Object>& object, BytesView value);
  void set_reply(const std::shared_ptr<Object>& object, protocol::InvokeReply reply,
                 const protocol::ProcessAddress& producer);
  void set_error(const std::shared_ptr<Object>& object, Error failure);
  // Ends it with `why` unless it is ready, and tells what makes it to stop.
  void cancel(const std::shared_ptr<Object>& object, Error why);
  // A ref was read that add_reference will be told of on the loop. The count of those that the
  // owners do not know of yet.
  void announce_borrow() { unsettled_.fetch_add(1); }
  bool borrows_settled() const { return unsettled_.load() == 0; }

  void set_stored(const std::shared_ptr<Object>& object, protocol::ProcessAddress node,
                  uint64_t size_bytes);
  // Refs inside the value, kept for as long as the object.
  void set_held(const std::shared_ptr<Object>& object, std::vector<ObjectName> held);

  // Thread-safe: a reference more to each, before this returns or before the loop does anything
  // that is posted later.
  void hold(const std::vector<ObjectName>& refs);
  void add_reference(const ObjectName& object);
  // As add_reference, of what announce_borrow announced.
  void add_announced(const ObjectName& object);
  void drop_reference(const ObjectName& object);

  Async<Result<ObjectBytes>> get(ObjectName object, Instant deadline);
  Async<Result<ObjectBytes>> get_owned(std::shared_ptr<Object> object, Instant deadline);
  Async<bool> wait_ready(ObjectName object, Instant deadline);

  // Waits until the owners know of every ref that this process has taken so far.
  Async<void> flush_borrows();
  // Keeps `held` alive until the caller lets go of its result (see InvokeReply.borrowed).
  void hold_for_result(ObjectId result, ProcessId caller, std::vector<ObjectName> held);
  void process_gone(ProcessId process);
  // Fails what is pending.
  void stop();

  // Methods that other processes call.
  Async<Result<protocol::ObjectValue>> resolve_object(protocol::ResolveObject request,
                                                      transport::CallContext context);
  // A worker has a copy of an object in the store, or has one no longer.
  Async<Result<protocol::Empty>> object_copied(protocol::ObjectCopied notice,
                                               transport::CallContext context);
  Async<Result<protocol::Empty>> add_borrow(protocol::BorrowObjects request,
                                            transport::CallContext context);
  Async<Result<protocol::Empty>> remove_borrow(protocol::BorrowObjects request,
                                               transport::CallContext context);

 private:
  struct Borrowed {
    protocol::ProcessAddress owner;
    uint32_t references = 0;
  };
  struct Held {
    ProcessId caller;
    std::vector<ObjectName> refs;
  };

  // Where a reader's worker (nil: none that keeps a copy) finds a stored object. It counts among
  // the copies from now on.
  protocol::ObjectValue place_for(Object& object, const protocol::ProcessAddress& reader);
  void forget_borrower(ObjectId id, ProcessId borrower);
  void free_if_unused(const std::shared_ptr<Object>& object);
  // From any thread: frees it if it is unused and has become ready, or was ready before.
  void free_when_unused(const std::shared_ptr<Object>& object);
  bool owns(const ObjectName& object) const;
  Async<void> tell_owner(Method method, ObjectId id, protocol::ProcessAddress owner);
  Async<void> borrow(uint64_t number, ObjectId id, protocol::ProcessAddress owner);
  Async<Result<ObjectBytes>> get_borrowed(ObjectName object, Instant deadline);

  transport::Environment environment_;
  Scope& scope_;
  Connections& connections_;
  StoreClient& store_;
  const uint64_t id_base_;  // Random: with the count of objects made it is an id.
  std::atomic<uint64_t> made_ = 0;
  mutable std::mutex mutex_;
  std::unordered_map<ObjectId, std::shared_ptr<Object>> owned_;  // Those with a name. Guarded.
  std::map<ObjectId, Borrowed> borrowed_;
  std::map<ObjectId, Held> held_;
  std::vector<std::shared_ptr<Object>> unused_;  // To be freed, while that goes on.
  bool freeing_ = false;
  uint64_t borrows_told_ = 0;             // Numbers them.
  std::set<uint64_t> borrows_in_flight_;  // Ascending: the first is the oldest.
  std::atomic<uint64_t> unsettled_ = 0;   // Announced or in flight.
  Event borrows_settled_;
};

}  // namespace troupe::client
