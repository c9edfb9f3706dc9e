// The real clock, randomness and threads of a process. Made by main, or by the SDK's session.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <map>
#include <memory>

#include "transport/environment.h"

namespace troupe::transport {

// now() and wall_now() are thread-safe; the rest belongs to the loop.
class SteadyTimerClock final : public TimerClock {
 public:
  explicit SteadyTimerClock(boost::asio::io_context& loop);
  Instant now() const override;
  WallTime wall_now() const override;
  TimerId call_at(Instant when, std::function<void()> callback) override;
  void cancel(TimerId timer) override;

 private:
  void arm();
  void fire();

  boost::asio::steady_timer timer_;
  std::map<std::pair<Instant, TimerId>, std::function<void()>> due_;
  std::map<TimerId, Instant> when_;
  TimerId next_ = 1;
  Instant armed_for_ = Instant::max();
};

// One loop, run by the thread that calls run(), and a small pool for what may block.
class RealEnvironment {
 public:
  explicit RealEnvironment(size_t blocking_threads = 2);
  ~RealEnvironment();

  // From now on processes of this node can be reached through rings. Errors: exhausted.
  Status enable_rings();

  // Without credentials only Unix sockets can be used: connect and listen on TLS are then denied.
  void set_credentials(Credentials* credentials);

  boost::asio::io_context& io() { return io_; }
  Environment environment();

 private:
  boost::asio::io_context io_{1};
  boost::asio::thread_pool blocking_;
  SteadyTimerClock clock_{io_};
  SystemRandom random_;
  Scope scope_{io_.get_executor()};
  std::unique_ptr<class AsioNetwork> network_;
  std::unique_ptr<RingPort> rings_;
};

}  // namespace troupe::transport
