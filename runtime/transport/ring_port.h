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
#include <optional>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "transport/async.h"
#include "transport/doorbell.h"
#include "transport/network.h"

namespace troupe::transport {

class CallChannel;
class RingChannel;

// What a process does with calls that arrive. Runs on whichever thread reads them, one at a time a
// channel: it must neither block nor wait. `payload` is private memory, valid during the call.
class CallHandler {
 public:
  virtual ~CallHandler() = default;
  virtual void take_call(const std::shared_ptr<CallChannel>& channel, uint64_t call,
                         BytesView payload) = 0;
  // `how`: protocol::CancelBits.
  virtual void cancel_call(const std::shared_ptr<CallChannel>& channel, uint64_t call,
                           uint8_t how) = 0;
  // The caller wants the calls back that have not begun: they are refused with unavailable.
  virtual void recall_calls(const std::shared_ptr<CallChannel>& channel) = 0;
  virtual void channel_closed(const std::shared_ptr<CallChannel>& channel) = 0;
};

// Where messages of another node arrive: a socket that the loop reads unless a thread that waits
// does. Thread-safe; one thread at a time reads.
class ReadSource {
 public:
  virtual ~ReadSource() = default;
  // From now on until leave() the caller reads, and the loop does not. False: another does.
  virtual bool take() = 0;
  // Reads what is there, without waiting for it.
  enum class Look : uint8_t { nothing, read, over };  // over: only the loop can go on.
  virtual Look look() = 0;
  virtual void leave() = 0;
  // Readable when there is more.
  virtual int descriptor() const = 0;
  // Nobody waits for it from now on: closed, with everything answered that is pending.
  virtual void stop() = 0;

  std::atomic<int64_t> spin_ns{10'000};  // How long it pays to spin for it.
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
    // How long, in all its waits.
    Duration waited() const { return waited_; }

   private:
    friend class RingPort;
    enum Word : uint32_t { idle = 0, sleeping = 1, signalled = 2, polling = 3 };
    RingPort& port_;
    const Kind kind_;
    Duration waited_{};
    std::atomic<uint32_t> word_{idle};  // The futex of a follower.
    std::atomic<bool> leads_{false};    // Written under the port's mutex.
    int alarm_ = -1;                    // While it polls: what wakes it.
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
  void set_handler(CallHandler* handler) { handler_ = handler; }
  CallHandler* handler() const { return handler_; }

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

  // Who waits next reads there (null: in the rings), for there most likely its message arrives.
  void read_next(ReadSource* source) {
    if (next_source_.load(std::memory_order_relaxed) != source) next_source_.store(source);
  }
  // Sources that may be read. Errors: cancelled (the port has stopped).
  Status add_source(const std::shared_ptr<ReadSource>& source);
  void remove_source(const ReadSource& source);

  // Reads what has arrived in the rings. False: there was nothing, or another thread does it.
  bool drain();
  const Executor& loop() const { return loop_; }

 private:
  friend class RingChannel;
  explicit RingPort(Executor loop, SharedPage page);

  // As wait(), but reads the source. Nothing: the wait is to go on in the rings.
  template <class Done, class Arm>
  std::optional<bool> wait_at(ReadSource& source, Waiter& waiter, Instant deadline, Done& done,
                              Arm& arm);
  std::shared_ptr<ReadSource> next_source();
  // With the mutex held: this thread counts as awake, from its first wait to its end.
  void count_awake();
  // Sleeps until the descriptor is readable or the waiter is signalled.
  void poll(Waiter& waiter, int descriptor, Instant until);
  void begin_wait(Waiter& waiter);
  void end_wait(Waiter& waiter);
  // Sleeps once. The leader: until a ring is ready or it is signalled.
  void sleep(Waiter& waiter, Instant until);
  bool may_spin() const;
  static void learn(std::atomic<int64_t>& spin_ns, Duration waited);
  void watch();
  // A reading thread should visit the ring, though its peer wrote nothing.
  void look_at(uint32_t index);
  void forget(const RingChannel& channel);
  static Instant now() { return Instant{std::chrono::steady_clock::now().time_since_epoch()}; }

  const Executor loop_;
  Doorbell doorbell_;
  std::shared_ptr<SharedPage> node_;  // Also of threads that still count as awake.
  CallHandler* handler_ = nullptr;

  std::atomic<bool> draining_ = false;
  std::atomic<uint64_t> drains_ = 0;  // Those that found something.
  std::atomic<uint32_t> words_ = 0;   // Of the doorbell's bits that can be set.
  std::mutex channels_mutex_;
  bool stopped_ = false;
  std::vector<std::shared_ptr<RingChannel>> channels_;  // By index.
  std::vector<std::shared_ptr<ReadSource>> sources_;
  std::atomic<ReadSource*> next_source_ = nullptr;

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
  if (next_source_.load(std::memory_order_relaxed) != nullptr &&
      waiter.kind_ != Waiter::Kind::lazy) {
    if (const auto source = next_source()) {
      if (const auto ended = wait_at(*source, waiter, deadline, done, arm)) return *ended;
    }
  }
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
  const Duration waited = now() - began;
  waiter.waited_ += waited;
  if (!is_lazy) learn(spin_ns_, waited);
  end_wait(waiter);
  return over;
}

template <class Done, class Arm>
std::optional<bool> RingPort::wait_at(ReadSource& source, Waiter& waiter, Instant deadline,
                                      Done& done, Arm& arm) {
  if (!source.take()) return {};
  struct Leave {
    ReadSource& source;
    ~Leave() { source.leave(); }
  } leave{source};
  {
    const std::lock_guard lock{mutex_};
    count_awake();
  }
  const Instant began = now();
  const Instant spin_until = began + Duration{source.spin_ns.load(std::memory_order_relaxed)};
  bool spins = may_spin();
  for (;;) {
    const ReadSource::Look look = source.look();
    if (done()) break;
    if (look == ReadSource::Look::over) return {};
    const Instant moment = now();
    if (moment >= deadline) return false;
    if (look == ReadSource::Look::read) continue;
    if (spins && moment < spin_until && may_spin()) continue;
    spins = false;
    arm();
    if (done()) break;
    poll(waiter, source.descriptor(), deadline);
    if (done()) break;
  }
  const Duration waited = now() - began;
  waiter.waited_ += waited;
  learn(source.spin_ns, waited);
  return true;
}

}  // namespace troupe::transport
