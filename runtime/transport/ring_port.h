// The rings of one process: what arrives in them, and the threads that wait for it.
//
// Any thread that waits for something (a result, a call for its actor) may read the rings for the
// whole process. One of them, the leader, spins or sleeps on the doorbell; the others, followers,
// sleep until what they wait for is there or the lead is handed to them (leader/followers: Schmidt
// et al., "Leader/Followers", PLoP 2000). While nobody waits, a watcher thread answers the
// doorbell, and looks again every millisecond as long as something arrives: so a process that calls
// and is called at speed is never woken by a system call, and one that computes is still heard.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "transport/async.h"
#include "transport/doorbell.h"
#include "transport/network.h"

namespace troupe::transport {

class RingChannel;

// What a process does with calls that arrive in rings. Runs on whichever thread reads them: it must
// neither block nor wait. `payload` is private memory, valid during the call.
class RingHandler {
 public:
  virtual ~RingHandler() = default;
  virtual void ring_call(const std::shared_ptr<RingChannel>& channel, uint64_t call,
                         BytesView payload) = 0;
  // `how`: protocol::CancelBits.
  virtual void ring_cancel(const std::shared_ptr<RingChannel>& channel, uint64_t call,
                           uint8_t how) = 0;
  // The caller wants the calls back that have not begun: they are refused with unavailable.
  virtual void ring_recall(const std::shared_ptr<RingChannel>& channel) = 0;
  virtual void ring_closed(const std::shared_ptr<RingChannel>& channel) = 0;
};

// Thread-safe but for what is said otherwise.
class RingPort {
 public:
  // A thread's wait: lives on its stack.
  class Waiter {
   public:
    // eager: what it waits for may be in a ring. patient: whoever reads the rings signals it.
    // lazy: the same, and it never reads itself: many results at a time are better for it than one.
    enum class Kind : uint8_t { eager, patient, lazy };
    explicit Waiter(RingPort& port, Kind kind = Kind::eager) : port_(port), kind_(kind) {}
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    // What it waits for may be there: it looks. From any thread.
    void signal();

   private:
    friend class RingPort;
    enum Word : uint32_t { idle = 0, sleeping = 1, signalled = 2 };
    RingPort& port_;
    const Kind kind_;
    std::atomic<uint32_t> word_{idle};  // The futex of a follower.
    std::atomic<bool> leads_{false};    // Written under the port's mutex.
  };

  // Errors: exhausted.
  static Result<std::unique_ptr<RingPort>> create(Executor loop);
  ~RingPort();
  // Closes every channel; what waits for a reply is lost before this returns, and nothing of the
  // handler is called later. A thread that still waits does so for what others signal.
  void stop();

  // For the worker, which hands it to peers.
  Result<FileDescriptor> share_doorbell() const;
  // Errors: those of SharedPage::open.
  Status join_node(FileDescriptor node_page);
  // Before any channel is open.
  void set_handler(RingHandler* handler) { handler_ = handler; }

  // A pair of rings that the worker made. `side` is 0 or 1; `index` is the bit in the own doorbell,
  // `peer_index` in the peer's. Errors: invalid, exhausted, conflict (the index is taken).
  struct Offer {
    FileDescriptor memory;
    FileDescriptor peer_doorbell;
    int side = 0;
    uint32_t index = 0;
    uint32_t peer_index = 0;
    ProcessId process;  // Who is at the other end.
  };
  Result<std::shared_ptr<RingChannel>> open(Offer offer);

  // Blocks until done() is true, or false at the deadline. Before the thread sleeps arm() is called
  // (again and again): from then on whoever makes done() true must signal the waiter.
  template <class Done, class Arm>
  bool wait(Waiter& waiter, Instant deadline, Done done, Arm arm);

  // Reads what has arrived. False: there was nothing, or another thread does it.
  bool drain();
  const Executor& loop() const { return loop_; }

 private:
  friend class RingChannel;
  explicit RingPort(Executor loop, SharedPage page);

  void begin_wait(Waiter& waiter);
  void end_wait(Waiter& waiter);
  // Sleeps once. The leader: until a ring is ready or it is signalled.
  void sleep(Waiter& waiter, Instant until);
  bool may_spin() const;
  void learn(Duration waited);
  void watch();
  // A reading thread should visit the ring, though its peer wrote nothing.
  void look_at(uint32_t index);
  void forget(const RingChannel& channel);
  static Instant now() { return Instant{std::chrono::steady_clock::now().time_since_epoch()}; }

  const Executor loop_;
  Doorbell doorbell_;
  std::shared_ptr<SharedPage> node_;  // Also of threads that still count as awake.
  RingHandler* handler_ = nullptr;

  std::atomic<bool> draining_ = false;
  std::atomic<uint64_t> drains_ = 0;  // Those that found something.
  std::atomic<uint32_t> words_ = 0;   // Of the doorbell's bits that can be set.
  std::mutex channels_mutex_;
  bool stopped_ = false;
  std::vector<std::shared_ptr<RingChannel>> channels_;  // By index.

  std::mutex mutex_;
  std::atomic<Waiter*> leader_ = nullptr;
  std::list<Waiter*> followers_;
  bool watcher_ticks_ = false;
  std::atomic<bool> stopping_ = false;  // Written under the mutex.
  std::atomic<int64_t> spin_ns_ = 10'000;
  std::thread watcher_;  // Last: it uses all of the above.
};

template <class Done, class Arm>
bool RingPort::wait(Waiter& waiter, Instant deadline, Done done, Arm arm) {
  if (done()) return true;
  begin_wait(waiter);
  const Instant began = now();
  const Instant spin_until = began + Duration{spin_ns_.load(std::memory_order_relaxed)};
  const bool is_lazy = waiter.kind_ == Waiter::Kind::lazy;
  bool spins = !is_lazy && may_spin();
  bool over = false;
  for (uint32_t round = 1;; ++round) {
    const bool read = waiter.leads_ && drain();
    over = done();
    if (over) break;
    if (read) {
      // What arrives for others must not keep it beyond its deadline.
      if (round % 32 == 0 && now() >= deadline) break;
      continue;
    }
    if (spins && round % 32 != 0) {
      __builtin_ia32_pause();
      continue;
    }
    const Instant moment = now();
    if (moment >= deadline) break;
    if (spins && moment < spin_until && may_spin()) continue;
    spins = false;
    arm();
    over = done();
    if (over) break;
    sleep(waiter, deadline);
  }
  if (!is_lazy) learn(now() - began);
  end_wait(waiter);
  return over;
}

}  // namespace troupe::transport
