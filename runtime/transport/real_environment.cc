#include "transport/real_environment.h"

#include "transport/asio_network.h"
#include "transport/ring_port.h"

namespace troupe::transport {

namespace {

std::chrono::steady_clock::time_point to_steady(Instant when) {
  return std::chrono::steady_clock::time_point{
      std::chrono::duration_cast<std::chrono::steady_clock::duration>(when.time_since_epoch())};
}

}  // namespace

SteadyTimerClock::SteadyTimerClock(boost::asio::io_context& loop) : timer_(loop) {}

Instant SteadyTimerClock::now() const {
  return Instant{std::chrono::steady_clock::now().time_since_epoch()};
}

WallTime SteadyTimerClock::wall_now() const {
  return WallTime{std::chrono::system_clock::now().time_since_epoch()};
}

TimerClock::TimerId SteadyTimerClock::call_at(Instant when, std::function<void()> callback) {
  const TimerId id = next_++;
  due_.emplace(std::pair{when, id}, std::move(callback));
  when_.emplace(id, when);
  if (when < armed_for_) arm();
  return id;
}

void SteadyTimerClock::cancel(TimerId timer) {
  const auto found = when_.find(timer);
  if (found == when_.end()) return;
  due_.erase({found->second, timer});
  when_.erase(found);
  // An early wake-up costs less than arming anew for each cancelled call; an idle loop has no
  // timer.
  if (due_.empty()) {
    timer_.cancel();
    armed_for_ = Instant::max();
  }
}

void SteadyTimerClock::arm() {
  if (due_.empty()) {
    armed_for_ = Instant::max();
    return;
  }
  armed_for_ = due_.begin()->first.first;
  timer_.expires_at(to_steady(armed_for_));
  timer_.async_wait([this](boost::system::error_code failed) {
    if (!failed) fire();
  });
}

void SteadyTimerClock::fire() {
  const Instant reached = now();
  while (!due_.empty() && due_.begin()->first.first <= reached) {
    auto entry = due_.extract(due_.begin());
    when_.erase(entry.key().second);
    entry.mapped()();
  }
  arm();
}

RealEnvironment::RealEnvironment(size_t blocking_threads)
    : blocking_(blocking_threads), network_(std::make_unique<AsioNetwork>(io_, clock_, scope_)) {}

RealEnvironment::~RealEnvironment() {
  scope_.cancel();
  io_.restart();
  // Writers flush and unwind here; nothing else is left on the loop.
  while (scope_.size() > 0 && io_.run_one() > 0) {
  }
  blocking_.join();
}

void RealEnvironment::set_credentials(Credentials* credentials) {
  network_->set_credentials(credentials);
}

Status RealEnvironment::enable_rings() {
  TROUPE_TRY(rings_, RingPort::create(io_.get_executor()));
  network_->set_rings(rings_.get());
  return ok();
}

Environment RealEnvironment::environment() {
  return {io_.get_executor(), blocking_.get_executor(), clock_, random_, *network_, rings_.get()};
}

}  // namespace troupe::transport
