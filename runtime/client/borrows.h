// The objects of other processes that this one holds refs to, and what their owners know of it.
#pragma once

#include <atomic>
#include <boost/unordered/unordered_flat_map.hpp>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "client/client.h"

namespace troupe::client {

// An owner is told once of the first ref and once of the last, many objects in a message, one
// message on its way at a time. The first is told at once: until it is, borrows are not settled.
// The last is told after a while without a new one, for what was read is often read again.
//
// Thread-safe but for what says otherwise.
class Borrows {
 public:
  using Owner = std::shared_ptr<const protocol::ProcessAddress>;

  // `on_gone` is called on the loop with each object whose last ref is gone.
  Borrows(transport::Environment environment, Scope& scope, Connections& connections,
          std::function<void(ObjectId)> on_gone);
  ~Borrows();

  void add(ObjectId object, const Owner& owner);
  void add(const ObjectName& object);
  void drop(ObjectId object);
  bool holds(ObjectId object) const;
  // The owners know of every ref that was added so far.
  bool settled() const { return unsettled_.load() == 0; }
  // On the loop: waits until the owners know of every ref that was added before.
  Async<void> settle();

 private:
  struct Link {
    Owner owner;
    std::vector<ObjectId> added;      // Not told yet.
    std::vector<ObjectId> dropped;    // Without refs, a while ago or less.
    std::vector<ObjectId> to_remove;  // Of which the owner is to be told.
    // Numbers of the oldest add that is not told, and of the oldest on its way; 0: none.
    uint64_t first_added = 0;
    uint64_t in_flight = 0;
    bool telling = false;
  };
  struct Entry {
    Link* link = nullptr;
    uint32_t references = 0;
    bool told = false;      // The owner knows, or is being told.
    bool awaiting = false;  // Counted as unsettled.
    bool in_dropped = false;
    bool idle = false;  // It had no ref a while ago.
  };
  void add_to(Entry& entry, ObjectId object);
  Link& link_of(ProcessId process, const Owner& owner);
  void start(Link& link);
  Async<void> tell(Link& link);
  bool unsettled_until(uint64_t number) const;
  void arm();
  void look_at_dropped();

  transport::Environment environment_;
  Scope& scope_;
  Connections& connections_;
  const std::function<void(ObjectId)> on_gone_;
  mutable std::mutex mutex_;
  // Looked into for each ref that comes or goes.
  boost::unordered_flat_map<ObjectId, Entry, std::hash<ObjectId>> entries_;
  std::unordered_map<ProcessId, std::unique_ptr<Link>> links_;
  uint64_t adds_ = 0;  // Numbers them.
  bool armed_ = false;
  std::atomic<uint64_t> unsettled_ = 0;
  TimerClock::TimerId timer_ = 0;  // The loop's, as the rest.
  Event told_;
  const std::shared_ptr<const bool> alive_ = std::make_shared<const bool>(true);
};

}  // namespace troupe::client
