// The waits of this process that have gone to sleep: told to whoever asks why something waits,
// logged when they take long, and ended when they can never end by themselves.
#pragma once

#include <boost/intrusive/list.hpp>
#include <mutex>
#include <string>

#include "client/client.h"
#include "client/wait_graph.h"

namespace troupe::client {

// For people and for the graph.
struct WaitFacts {
  std::string how;  // get, wait, co_await.
  std::vector<protocol::WaitsFor> subjects;
  enum class Needs : uint8_t {
    all,
    any,      // Some of them suffice.
    item,     // One that they give before they end.
    unknown,  // There are more than are told.
  };
  Needs needs = Needs::all;
  Instant deadline = Instant::max();
};
protocol::WaitsFor as_subject(const ObjectName& object);

// A wait, while it is in the list. Whoever waits makes it and takes it out again.
class BlockedWait : public boost::intrusive::list_base_hook<> {
 public:
  // `call`: the handle of the call whose code waits (see plugin.h); null: none. `holds_thread`: it
  // blocks its thread, rather than a coroutine.
  BlockedWait(const void* call, bool holds_thread) : call_(call), holds_thread_(holds_thread) {}
  virtual ~BlockedWait() = default;
  BlockedWait(const BlockedWait&) = delete;
  BlockedWait& operator=(const BlockedWait&) = delete;

  const void* call() const { return call_; }
  bool holds_thread() const { return holds_thread_; }
  Instant since() const { return since_; }

  // --- With the list locked, on the loop: neither may block nor come back to the list.
  virtual WaitFacts facts() = 0;
  // It fails with this, unless it is over already.
  virtual void fail(const Error& why) = 0;

 private:
  friend class BlockedWaits;
  const void* const call_;
  const bool holds_thread_;
  // Guarded by the list.
  uint64_t number_ = 0;  // Never used again.
  Instant since_;
  Instant looked_at_next_;
  Instant logged_next_;
};

// Thread-safe but for what says otherwise.
class BlockedWaits {
 public:
  explicit BlockedWaits(Client& client, Duration log_after);

  void add(BlockedWait& wait);
  // Also of one that is out of the list, for it failed.
  void remove(BlockedWait& wait);
  // On the loop; `look` as BlockedWait::facts.
  template <class Look>
  void for_each(Look look) {
    const std::lock_guard lock{mutex_};
    for (BlockedWait& wait : waits_) look(wait);
  }

 private:
  // What is looked at in a turn.
  struct Due {
    uint64_t number = 0;
    TaskId call;
    WaitFacts facts;
    Duration age{};
    bool logs = false;
  };
  Async<void> tend();
  std::vector<Due> take_due();
  Async<void> examine(Due due);
  // Whether it was one that will never end: then it is logged, and ended if it is its victim.
  Async<bool> end_deadlock(std::vector<protocol::WaitsFor> roots, std::shared_ptr<WaitGraph> graph,
                           uint64_t number);
  void fail(uint64_t number, const Error& why);
  std::vector<protocol::WaitsFor> roots_of(const Due& due) const;

  Client& client_;
  const Duration log_after_;  // Zero: never.
  size_t examined_ = 0;       // On the loop: so many are looked at now.
  std::mutex mutex_;          // Guards what follows.
  boost::intrusive::list<BlockedWait> waits_;
  uint64_t last_ = 0;
  bool tending_ = false;
};

// A wait's place in the list, for as long as it lives.
class InBlockedWaits {
 public:
  InBlockedWaits(BlockedWaits& waits, BlockedWait& wait) : waits_(waits), wait_(wait) {
    waits_.add(wait_);
  }
  InBlockedWaits(const InBlockedWaits&) = delete;
  InBlockedWaits& operator=(const InBlockedWaits&) = delete;
  ~InBlockedWaits() { waits_.remove(wait_); }

 private:
  BlockedWaits& waits_;
  BlockedWait& wait_;
};

// TROUPE_BLOCKED_LOG_S: seconds after which a wait is logged, 0 for never; 10 for null and for what
// is no number.
Duration blocked_log_after(const char* text);

}  // namespace troupe::client
