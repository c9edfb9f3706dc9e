#include "transport/ring_port.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <thread>

#include "base/log.h"
#include "transport/ring_channel.h"

namespace troupe::transport {

namespace {

constexpr Duration tick = std::chrono::milliseconds(1);
constexpr int quiet_ticks_max = 4;  // Then the watcher sleeps for good.
constexpr int64_t spin_ns_min = 5'000;
constexpr int64_t spin_ns_max = 50'000;

// Counts a thread as awake from its first wait to its end.
struct AwakeThread {
  std::shared_ptr<SharedPage> node;
  std::shared_ptr<SharedPage> own;

  void wakes() const {
    own->as<DoorbellPage>().awake.fetch_add(1, std::memory_order_relaxed);
    node->as<NodePage>().awake.fetch_add(1, std::memory_order_relaxed);
  }
  void sleeps() const {
    // None is left if the worker took back what the process counted: it left the node.
    auto& mine = own->as<DoorbellPage>().awake;
    uint32_t counted = mine.load(std::memory_order_relaxed);
    while (counted > 0) {
      if (!mine.compare_exchange_weak(counted, counted - 1, std::memory_order_relaxed)) continue;
      node->as<NodePage>().awake.fetch_sub(1, std::memory_order_relaxed);
      return;
    }
  }
  ~AwakeThread() {
    if (node) sleeps();
  }
};
thread_local AwakeThread awake_thread;

// What wakes this thread from a poll.
int thread_alarm() {
  thread_local const FileDescriptor alarm{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  return alarm.get();
}

}  // namespace

void RingPort::Waiter::signal() {
  const uint32_t was = word_.exchange(signalled);
  if (was == sleeping) futex_wake(word_);
  if (was == polling) {
    const uint64_t one = 1;
    (void)!::write(alarm_, &one, sizeof one);
  }
  if (port_.leader_.load() == this) {
    uint32_t asleep = Doorbell::leader_sleeps;
    auto& state = port_.doorbell_.page().state;
    if (state.compare_exchange_strong(asleep, Doorbell::watched)) futex_wake(state);
  }
}

RingPort::RingPort(Executor loop, SharedPage page)
    : loop_(std::move(loop)), doorbell_(std::move(page)) {
  channels_.resize(rings_max);
  // Nobody reads yet, so the watcher is who must be woken.
  doorbell_.page().state = Doorbell::watcher_sleeps;
  watcher_ = std::thread([this] { watch(); });
}

Result<std::unique_ptr<RingPort>> RingPort::create(Executor loop) {
  TROUPE_TRY(auto page, SharedPage::create("troupe-doorbell"));
  return std::unique_ptr<RingPort>{new RingPort(std::move(loop), std::move(page))};
}

RingPort::~RingPort() {
  stop();
}

void RingPort::stop() {
  {
    const std::lock_guard lock{mutex_};
    if (stopping_.exchange(true)) return;
  }
  doorbell_.page().watcher.fetch_add(1);
  futex_wake(doorbell_.page().watcher);
  watcher_.join();
  // Threads that wait may be reading.
  while (draining_.exchange(true, std::memory_order_acquire)) std::this_thread::yield();
  std::vector<std::shared_ptr<RingChannel>> open;
  std::vector<std::shared_ptr<ReadSource>> sources;
  {
    const std::lock_guard lock{channels_mutex_};
    stopped_ = true;
    sources.swap(sources_);
    open.swap(channels_);
    channels_.resize(rings_max);
  }
  for (const auto& channel : open) {
    if (!channel) continue;
    channel->mark_closed();
    channel->receive(nullptr);
  }
  for (const auto& source : sources) source->stop();
  draining_.store(false, std::memory_order_release);
}

Result<FileDescriptor> RingPort::share_doorbell() const {
  FileDescriptor copy{::fcntl(doorbell_.memory()->file().get(), F_DUPFD_CLOEXEC, 0)};
  if (!copy.is_open()) return error(Code::exhausted, "no file descriptors left");
  return copy;
}

Status RingPort::join_node(FileDescriptor node_page) {
  TROUPE_TRY(auto page, SharedPage::open(std::move(node_page)));
  const std::lock_guard lock{mutex_};
  node_ = std::make_shared<SharedPage>(std::move(page));
  return ok();
}

Result<std::shared_ptr<RingChannel>> RingPort::open(Offer offer) {
  if (offer.index >= rings_max || offer.peer_index >= rings_max || offer.side < 0 ||
      offer.side > 1) {
    return error(Code::invalid, "a ring's numbers are out of range");
  }
  TROUPE_TRY(auto memory, RingMemory::open(std::move(offer.memory)));
  TROUPE_TRY(auto peer, SharedPage::open(std::move(offer.peer_doorbell)));
  peer.close_file();
  auto channel =
      std::make_shared<RingChannel>(*this, std::move(memory), Doorbell{std::move(peer)}, offer);
  const std::lock_guard lock{channels_mutex_};
  if (stopped_) return error(Code::cancelled, "this process is leaving its node");
  if (channels_[offer.index]) return error(Code::conflict, "the ring's number is taken");
  channels_[offer.index] = channel;
  words_.store(std::max(words_.load(), offer.index / 64 + 1));
  // What the peer wrote before this process knew of the ring.
  look_at(offer.index);
  return channel;
}

void RingPort::look_at(uint32_t index) {
  doorbell_.page().ready[index / 64].fetch_or(uint64_t{1} << (index % 64));
  doorbell_.wake();
}

void RingPort::forget(const RingChannel& channel) {
  const std::lock_guard lock{channels_mutex_};
  auto& place = channels_[channel.index_];
  if (place.get() == &channel) place.reset();
}

bool RingPort::drain() {
  const uint32_t words = words_.load(std::memory_order_acquire);
  if (!doorbell_.anything_ready(words)) return false;
  if (draining_.exchange(true, std::memory_order_acquire)) return false;
  for (uint32_t w = 0; w < words; ++w) {
    std::atomic<uint64_t>& word = doorbell_.page().ready[w];
    if (word.load(std::memory_order_relaxed) == 0) continue;
    for (uint64_t bits = word.exchange(0); bits != 0; bits &= bits - 1) {
      const uint32_t index = w * 64 + static_cast<uint32_t>(std::countr_zero(bits));
      std::shared_ptr<RingChannel> channel;
      {
        const std::lock_guard lock{channels_mutex_};
        channel = channels_[index];
      }
      // A peer may set bits of rings that are not there.
      if (channel && channel->receive(handler_)) look_at(index);
    }
  }
  drains_.fetch_add(1, std::memory_order_relaxed);
  draining_.store(false, std::memory_order_release);
  return true;
}

Status RingPort::add_source(const std::shared_ptr<ReadSource>& source) {
  const std::lock_guard lock{channels_mutex_};
  if (stopped_) return error(Code::cancelled, "this process is leaving its node");
  sources_.push_back(source);
  return ok();
}

void RingPort::remove_source(const ReadSource& source) {
  const std::lock_guard lock{channels_mutex_};
  std::erase_if(sources_, [&](const auto& known) { return known.get() == &source; });
  if (next_source_.load() == &source) next_source_.store(nullptr);
}

std::shared_ptr<ReadSource> RingPort::next_source() {
  if (thread_alarm() < 0) return nullptr;  // Out of descriptors: nothing could wake it there.
  const std::lock_guard lock{channels_mutex_};
  const auto found =
      std::ranges::find(sources_, next_source_.load(), &std::shared_ptr<ReadSource>::get);
  return found == sources_.end() ? nullptr : *found;
}

// With the mutex held.
void RingPort::count_awake() {
  if (!node_ || awake_thread.own == doorbell_.memory()) return;
  if (awake_thread.node) awake_thread.sleeps();  // Of a port that it waited on before.
  awake_thread.node = node_;
  awake_thread.own = doorbell_.memory();
  awake_thread.wakes();
}

void RingPort::poll(Waiter& waiter, int descriptor, Instant until) {
  waiter.alarm_ = thread_alarm();
  uint32_t word = Waiter::idle;
  bool rang = false;
  if (waiter.word_.compare_exchange_strong(word, Waiter::polling)) {
    pollfd watched[2] = {{descriptor, POLLIN, 0}, {waiter.alarm_, POLLIN, 0}};
    timespec left{};
    const bool bounded = until != Instant::max();
    if (bounded) {
      const Duration duration = std::max<Duration>(until - now(), Duration::zero());
      left.tv_sec = duration / std::chrono::seconds(1);
      left.tv_nsec = duration % std::chrono::seconds(1) / std::chrono::nanoseconds(1);
    }
    const bool counted = awake_thread.node != nullptr;
    if (counted) awake_thread.sleeps();
    ::ppoll(watched, 2, bounded ? &left : nullptr, nullptr);
    if (counted) awake_thread.wakes();
    rang = watched[1].revents != 0;
  }
  waiter.word_.exchange(Waiter::idle);
  if (!rang) return;
  uint64_t signals = 0;
  (void)!::read(waiter.alarm_, &signals, sizeof signals);
}

void RingPort::begin_wait(Waiter& waiter) {
  const std::lock_guard lock{mutex_};
  count_awake();
  if (leader_.load() == nullptr && waiter.kind_ != Waiter::Kind::lazy) {
    leader_.store(&waiter);
    waiter.leads_ = true;
    doorbell_.page().led.store(1);
    if (doorbell_.page().state.load() != Doorbell::watched) {
      doorbell_.page().state.exchange(Doorbell::watched);
    }
  } else {
    followers_.push_back(&waiter);
  }
}

void RingPort::end_wait(Waiter& waiter) {
  bool look_again = false;
  {
    const std::lock_guard lock{mutex_};
    if (!waiter.leads_) {
      followers_.remove(&waiter);
      return;
    }
    waiter.leads_ = false;
    // A patient one need not lead: the watcher reads for it, soon or when it is woken.
    const auto eager = std::ranges::find(followers_, Waiter::Kind::eager, &Waiter::kind_);
    if (eager != followers_.end()) {
      Waiter* next = *eager;
      followers_.erase(eager);
      next->leads_ = true;
      leader_.store(next);
      if (next->word_.exchange(Waiter::signalled) == Waiter::sleeping) futex_wake(next->word_);
      return;
    }
    leader_.store(nullptr);
    doorbell_.page().led.store(0);
    // A watcher that ticks looks soon; one that sleeps must be woken from now on.
    if (!watcher_ticks_) {
      doorbell_.page().state.exchange(Doorbell::watcher_sleeps);
      look_again = doorbell_.anything_ready(words_.load());
    }
  }
  if (look_again) doorbell_.wake();
}

void RingPort::sleep(Waiter& waiter, Instant until) {
  auto& state = doorbell_.page().state;
  const bool counted = awake_thread.node != nullptr;
  if (waiter.leads_) {
    if (waiter.word_.exchange(Waiter::idle) == Waiter::signalled) return;
    state.exchange(Doorbell::leader_sleeps);
    if (doorbell_.anything_ready(words_.load()) || waiter.word_.load() == Waiter::signalled) {
      state.exchange(Doorbell::watched);
      return;
    }
    if (counted) awake_thread.sleeps();
    futex_wait(state, Doorbell::leader_sleeps, until);
    if (counted) awake_thread.wakes();
    state.exchange(Doorbell::watched);
    return;
  }
  uint32_t word = Waiter::idle;
  if (waiter.word_.compare_exchange_strong(word, Waiter::sleeping)) {
    if (counted) awake_thread.sleeps();
    futex_wait(waiter.word_, Waiter::sleeping, until);
    if (counted) awake_thread.wakes();
  }
  waiter.word_.exchange(Waiter::idle);
}

bool RingPort::may_spin() const {
  static const int32_t processors = static_cast<int32_t>(std::thread::hardware_concurrency());
  if (!awake_thread.node) return false;
  return awake_thread.node->as<NodePage>().awake.load(std::memory_order_relaxed) <= processors;
}

void RingPort::learn(std::atomic<int64_t>& spin_ns, Duration waited) {
  // Long waits say that spinning is in vain; short ones how long it should be. Two processes that
  // both sleep wait for each other's wake-ups, tens of microseconds a call that would take one:
  // that must count as short, or they never begin to spin.
  const int64_t sample =
      waited.count() > 3 * spin_ns_max ? 0 : std::min(2 * waited.count(), spin_ns_max);
  const int64_t before = spin_ns.load(std::memory_order_relaxed);
  spin_ns.store(std::clamp(before + (sample - before) / 8, spin_ns_min, spin_ns_max),
                std::memory_order_relaxed);
}

void RingPort::watch() {
  auto& page = doorbell_.page();
  uint32_t seen = 0;
  int quiet = quiet_ticks_max;
  uint64_t drains = 0;
  for (;;) {
    bool sleeps = false;
    bool wake_again = false;
    {
      const std::lock_guard lock{mutex_};
      if (stopping_) return;
      seen = page.watcher.load();
      sleeps = quiet >= quiet_ticks_max;
      watcher_ticks_ = !sleeps;
      if (sleeps && leader_.load() == nullptr) {
        page.state.exchange(Doorbell::watcher_sleeps);
        wake_again = doorbell_.anything_ready(words_.load());
      }
    }
    if (wake_again) {
      doorbell_.wake();
    } else {
      futex_wait(page.watcher, seen, sleeps ? Instant::max() : now() + tick);
    }
    if (sleeps) quiet = 0;  // It was woken.
    // A leader that reads by itself, or that has just been woken, needs no help.
    const uint64_t now_drained = drains_.load(std::memory_order_relaxed);
    const bool others_read = now_drained != drains;
    bool read = false;
    // A peer that never falls silent must not keep it from its end.
    while (!stopping_.load() && !(others_read && leader_.load() != nullptr) && drain()) read = true;
    drains = drains_.load(std::memory_order_relaxed);
    quiet = read || others_read ? 0 : quiet + 1;
  }
}

}  // namespace troupe::transport
