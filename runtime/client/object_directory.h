// The objects that this process owns or borrows: their values, and who holds refs to them.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "client/client.h"

namespace troupe::client {

class ObjectDirectory {
 public:
  ObjectDirectory(transport::Environment environment, Scope& scope, Connections& connections,
                  StoreClient& store);

  // A new object of this process, not ready yet, with one reference. `cancel` is called when
  // someone asks to cancel what makes it.
  ObjectName create(std::function<void()> cancel);
  ObjectName create_with_id(ObjectId id, std::function<void()> cancel);
  // Makes it ready. A reply's value may lie in a node's store; `producer` then holds refs inside
  // it.
  void set_value(ObjectId id, Bytes value);
  void set_reply(ObjectId id, protocol::InvokeReply reply, protocol::ProcessAddress producer);
  void set_stored(ObjectId id, protocol::ProcessAddress node, uint64_t size_bytes);
  void set_error(ObjectId id, Error failure);
  // Refs inside the value, kept for as long as the object.
  void set_held(ObjectId id, std::vector<ObjectName> held);
  bool is_pending(ObjectId id) const;

  void add_reference(const ObjectName& object);
  void drop_reference(const ObjectName& object);
  void cancel(ObjectId id);

  Async<Result<ObjectBytes>> get(ObjectName object, Instant deadline);
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
  Async<Result<protocol::Empty>> add_borrow(protocol::BorrowObject request,
                                            transport::CallContext context);
  Async<Result<protocol::Empty>> remove_borrow(protocol::BorrowObject request,
                                               transport::CallContext context);

 private:
  struct Owned {
    explicit Owned(const Executor& executor) : ready(executor) {}
    uint32_t references = 1;
    std::multiset<ProcessId> borrowers;
    Event ready;
    std::optional<Error> failure;
    std::shared_ptr<const Bytes> inline_value;
    bool in_store = false;
    protocol::ProcessAddress node;
    uint64_t size_bytes = 0;
    std::vector<ObjectName> held;
    std::optional<protocol::ProcessAddress> producer;  // Holds refs inside the value for us.
    std::function<void()> cancel;
  };
  struct Borrowed {
    protocol::ProcessAddress owner;
    uint32_t references = 0;
  };
  struct Held {
    ProcessId caller;
    std::vector<ObjectName> refs;
  };

  void free_if_unused(ObjectId id);
  bool owns(const ObjectName& object) const;
  Async<void> tell_owner(Method method, ObjectId id, protocol::ProcessAddress owner);
  Async<void> borrow(uint64_t number, ObjectId id, protocol::ProcessAddress owner);
  Async<Result<ObjectBytes>> get_owned(ObjectId id, Instant deadline);
  Async<Result<ObjectBytes>> get_borrowed(ObjectName object, Instant deadline);

  transport::Environment environment_;
  Scope& scope_;
  Connections& connections_;
  StoreClient& store_;
  std::map<ObjectId, std::shared_ptr<Owned>> owned_;
  std::map<ObjectId, Borrowed> borrowed_;
  std::map<ObjectId, Held> held_;
  std::vector<ObjectId> unused_;  // To be freed, while that goes on.
  bool freeing_ = false;
  uint64_t borrows_told_ = 0;             // Numbers them.
  std::set<uint64_t> borrows_in_flight_;  // Ascending: the first is the oldest.
  Event borrows_settled_;
};

}  // namespace troupe::client
