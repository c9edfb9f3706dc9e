// The objects that this process owns or borrows: their values, and who holds refs to them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "client/borrows.h"
#include "client/lineage.h"
#include "client/object.h"

namespace troupe::client {

// On the loop but for what says otherwise.
class ObjectDirectory {
 public:
  // What it needs of the rest of the client.
  struct Needs {
    std::function<void(TaskSpec, const std::shared_ptr<Object>&)> run;  // A task, once more.
    std::function<Async<Result<protocol::NodeList>>()> nodes;           // As the head knows them.
    JobId job;
  };
  ObjectDirectory(transport::Environment environment, Scope& scope, Connections& connections,
                  StoreClient& store, Needs needs, uint64_t lineage_bytes_max);

  // --- Thread-safe.
  // A new object of this process, not ready yet, with one reference. Others cannot name it before
  // publish().
  std::shared_ptr<Object> make(Object::Maker maker = Object::Maker::none);
  // The results of a call; those after the first go to `more`, too. They have one outcome: whoever
  // sets or cancels the first sets or cancels all, and cancelling another cancels the first.
  std::shared_ptr<Object> make_results(Object::Maker maker, uint32_t count,
                                       std::vector<std::shared_ptr<Object>>* more);
  ObjectName publish(const std::shared_ptr<Object>& object);
  // The object of a name that publish() gave; null if it was freed.
  std::shared_ptr<Object> find(ObjectId id) const;
  // The same with one reference more, which the caller gives back.
  std::shared_ptr<Object> find_and_hold(ObjectId id);
  // One reference less.
  void drop_reference(const std::shared_ptr<Object>& object);
  // What makes the object is done. `producer` holds refs inside a reply's value for us. With the
  // recipe, what lies in a store is made again if it is lost; its `kept` are refs that are held.
  void set_value(const std::shared_ptr<Object>& object, BytesView value);
  void set_reply(const std::shared_ptr<Object>& object, protocol::InvokeReply reply,
                 const protocol::ProcessAddress& producer, Lineage::RecipePointer recipe = {});
  void set_error(const std::shared_ptr<Object>& object, Error failure);
  // As set_error, of a call by its name: a failure that nobody can read is logged and counted.
  void set_failed(const std::shared_ptr<Object>& object, Error failure, std::string_view name);
  uint64_t unread_failures() const { return unread_failures_.load(); }
  // Ends it with `why` unless it is ready, and tells what makes it to stop. `how`:
  // protocol::CancelBits.
  void cancel(const std::shared_ptr<Object>& object, Error why, uint8_t how = 0);
  CallCount& calls() { return home_.calls; }
  // It has a value no more, though there are refs: reading it fails from now on. What makes it, if
  // it is not there yet, goes on, and its value is given back. On the loop.
  void discard(const std::shared_ptr<Object>& object);
  // What a reader of the object gets now; nothing: it is not ready, or has to be fetched.
  std::optional<Result<ObjectBytes>> read(const std::shared_ptr<Object>& object) const;

  // --- Thread-safe: refs of this process to objects of others.
  Borrows& borrows() { return borrows_; }
  ReadyWatches& watches() { return home_.watches; }

  // --- On the loop but for what says otherwise.
  void set_stored(const std::shared_ptr<Object>& object, protocol::ProcessAddress node,
                  uint64_t size_bytes);
  // Refs inside the value, kept for as long as the object.
  void set_held(const std::shared_ptr<Object>& object, std::vector<ObjectName> held);

  // Thread-safe: a reference more to each, or one less.
  void hold(const std::vector<ObjectName>& refs);
  void add_reference(const ObjectName& object);
  void drop_reference(const ObjectName& object);

  Async<Result<ObjectBytes>> get(ObjectName object, Instant deadline);
  Async<Result<ObjectBytes>> get_owned(std::shared_ptr<Object> object, Instant deadline);
  // One result each, in the same order; those after the first that failed may be missing: then they
  // are cancelled. Each owner is asked for many at a time.
  Async<std::vector<Result<ObjectBytes>>> get_many(std::vector<ObjectName> objects,
                                                   Instant deadline);
  // hook->ready(n) for the n-th, once its owner says that it is ready or cannot say any more; until
  // `enough` is set.
  void watch(std::vector<ObjectName> objects, std::vector<uint32_t> numbers,
             std::shared_ptr<ReadyHook> hook, std::shared_ptr<Event> enough);
  // Frees them, wherever they are owned, whoever has refs. Errors: data_loss (an owner is gone).
  Async<Status> free(std::vector<ObjectName> objects);
  // What this process owns, as far as others may know of it or it lies in the store.
  protocol::ObjectList list(const protocol::ListObjects& request) const;

  // Keeps `held` alive until the caller lets go of its result (see InvokeReply.borrowed).
  void hold_for_result(ObjectId result, ProcessId caller, std::vector<ObjectName> held);
  void let_go_for_result(ObjectId result);
  // The same for an item of a stream, which gets a number that travels with it.
  uint32_t hold_for_item(ProcessId receiver, std::vector<ObjectName> held);
  void let_go_for_item(uint32_t number);
  // The receiver's end: what the producer holds lives as long as this. Drop it once the refs in the
  // item are read. Thread-safe to drop.
  std::shared_ptr<const void> hold_of_item(protocol::ProcessAddress producer, uint32_t number);
  void release_item(const protocol::ProcessAddress& producer, uint32_t number);
  // Whether other processes have refs to what this one owns, or it holds refs for them.
  bool is_needed() const;
  void process_gone(ProcessId process);
  // Fails what is pending.
  void stop();

  // Methods that other processes call.
  Async<Result<protocol::ObjectValues>> resolve_objects(protocol::ResolveObjects request,
                                                        transport::CallContext context);
  Async<Status> wait_objects(transport::Message message, transport::CallContext context,
                             transport::OutgoingStream& out);
  Async<Result<protocol::Empty>> free_objects(protocol::ObjectIds request,
                                              transport::CallContext context);
  // From the worker: a node is drained; what lies there moves.
  Async<Result<protocol::Empty>> evacuate(protocol::Evacuate request,
                                          transport::CallContext context);
  // From the owner of results that this process made: which refs in them it holds for them.
  Async<Result<protocol::HeldRefs>> list_held(protocol::ObjectIds request,
                                              transport::CallContext context);
  // A worker has a copy of an object in the store, or has one no longer.
  Async<Result<protocol::Empty>> object_copied(protocol::ObjectCopied notice,
                                               transport::CallContext context);
  Async<Result<protocol::Empty>> add_borrow(protocol::ObjectIds request,
                                            transport::CallContext context);
  Async<Result<protocol::Empty>> remove_borrow(protocol::ObjectIds request,
                                               transport::CallContext context);

 private:
  struct Gathered;
  struct Run;
  struct Search;
  struct Held {
    ProcessId caller;
    std::vector<ObjectName> refs;
  };

  // On the loop: one of a reply's values. `held`: the producer holds refs inside it for us.
  void set_result(const std::shared_ptr<Object>& object, protocol::ObjectValue value, bool held,
                  const protocol::ProcessAddress& producer);
  // What was made for us and nobody wants.
  void give_back(ObjectId id, const protocol::ProcessAddress& node, bool held,
                 const protocol::ProcessAddress& producer);
  // Where a reader's worker (nil: none that keeps a copy) finds a stored object. It counts among
  // the copies from now on.
  protocol::ObjectValue place_for(Object& object, const protocol::ProcessAddress& reader);
  void forget_borrower(ObjectId id, ProcessId borrower);
  void free_if_unused(const std::shared_ptr<Object>& object);
  // From any thread: frees it if it is unused and has become ready, or was ready before.
  void free_when_unused(const std::shared_ptr<Object>& object);
  bool owns(const ObjectName& object) const;
  // `producer` need no longer hold what it holds for us under this id.
  void release_held(ObjectId id, const protocol::ProcessAddress& producer);
  Async<void> tell_released(protocol::ProcessAddress producer);
  // The owner's answer to a reader.
  protocol::ObjectValue value_of(const std::shared_ptr<Object>& object,
                                 const protocol::ProcessAddress& reader);
  // What lies in the store for it, here and as copies, is given up.
  void release_stored(Object& object);
  protocol::ObjectEntry describe(Object& object) const;
  Async<void> get_into(std::shared_ptr<Gathered> gathered, size_t position, Instant deadline);
  Async<void> get_stored_into(std::shared_ptr<Gathered> gathered, size_t position,
                              protocol::ObjectValue place, Instant deadline);
  Async<void> get_from_owner(std::shared_ptr<Gathered> gathered, std::vector<size_t> positions,
                             Instant deadline);
  Async<Result<ObjectBytes>> get_stored(ObjectName object, protocol::ObjectValue place,
                                        Instant deadline);
  // Where another's object lies that is not at the process that its owner named.
  Async<Result<protocol::ObjectValue>> ask_again(ObjectName object, ProcessId missing_at,
                                                 Instant deadline);

  // --- What was lost.
  // Until the object lies elsewhere than with this worker, where a reader did not find it, or that
  // one has it after all: it is looked for, and made again if it is nowhere.
  // Errors: data_loss (it cannot be made again), deadline_exceeded.
  Async<Status> find_again(std::shared_ptr<Object> object, ProcessId missing_at, Instant deadline);
  std::shared_ptr<Search> begin_search(const std::shared_ptr<Object>& object);
  Async<void> search(std::shared_ptr<Object> object, std::shared_ptr<Search> found);
  Async<Status> look_for(std::shared_ptr<Object> object);
  Async<Status> make_again(std::shared_ptr<Object> object);
  // Asks a worker to be these objects' home; those that are there now, from `source` if it is set.
  Async<Result<std::vector<ObjectId>>> adopt_at(protocol::ProcessAddress worker,
                                                std::vector<ObjectId> objects,
                                                protocol::ProcessAddress source, Duration budget);
  Async<bool> are_dead(std::vector<ProcessId> workers);
  void move(const std::shared_ptr<Object>& object, protocol::ProcessAddress node);
  Async<void> leave(protocol::Evacuate request, std::shared_ptr<Search> left);
  // From producers on this node, which is drained, the refs that they hold for results of ours.
  Async<Status> take_refs(NodeId node);
  Async<void> move_all(std::vector<std::shared_ptr<Object>> objects,
                       protocol::ProcessAddress source, protocol::ProcessAddress target,
                       std::shared_ptr<Event> moved);
  // How to make these results, which have just come.
  void remember(const Lineage::RecipePointer& recipe, const std::shared_ptr<Object>& first,
                const std::vector<std::shared_ptr<Object>>& more);
  void drop_lineage();
  // Runs the task of a recipe again, and before it those that make arguments which are gone.
  Async<Result<std::shared_ptr<Run>>> run_again(Lineage::RecipePointer recipe);
  // Until those of its arguments that still have refs are there again, if their nodes are gone.
  Async<Status> find_lost_parents(Lineage::RecipePointer recipe);
  Status begin_run(const Lineage::RecipePointer& recipe);
  std::shared_ptr<Run> run_of(ObjectId result) const;
  // The object of this name, which nobody has refs to any more: what the run makes of it.
  std::shared_ptr<Object> revive(ObjectId id);
  // Takes over a result that was made again. False: it was not, or it is the object itself.
  bool take_remade(const std::shared_ptr<Object>& made, protocol::ObjectValue& value, bool held,
                   const protocol::ProcessAddress& producer);
  Async<void> keep_remade(std::shared_ptr<Object> object, std::shared_ptr<Object> made);
  Async<void> follow(std::shared_ptr<Run> run);
  Async<void> watch_owner(protocol::ProcessAddress owner, std::vector<ObjectId> objects,
                          std::vector<uint32_t> numbers, std::shared_ptr<ReadyHook> hook,
                          std::shared_ptr<Event> enough);

  transport::Environment environment_;
  Scope& scope_;
  Connections& connections_;
  StoreClient& store_;
  ObjectHome home_;
  std::atomic<uint64_t> unread_failures_ = 0;
  const uint64_t id_base_;  // Random: with the count of objects made it is an id.
  std::atomic<uint64_t> made_ = 0;
  mutable std::mutex mutex_;
  std::unordered_map<ObjectId, std::shared_ptr<Object>> owned_;  // Those with a name. Guarded.
  std::map<ObjectId, Held> held_;                                // For results and items of others.
  uint32_t items_held_ = 0;                                      // So far.
  std::map<ProcessId, std::vector<ObjectId>> released_;  // By the producers that are being told.
  const Needs needs_;
  Lineage lineage_;
  std::unordered_map<ObjectId, std::shared_ptr<Run>> runs_;  // By each of their results.
  std::map<ObjectId, std::shared_ptr<Search>> searches_;
  std::map<NodeId, std::shared_ptr<Search>> evacuations_;
  std::vector<std::shared_ptr<Object>> unused_;  // To be freed, while that goes on.
  bool freeing_ = false;
  Borrows borrows_;
};

}  // namespace troupe::client
