#include "client/lent_cpu.h"

#include "base/log.h"

namespace troupe::client {

namespace {

// Most waits are over before the head could make use of the cpu.
constexpr Duration told_after = std::chrono::milliseconds(10);
// A head that was restarted does not know what the one before was told.
constexpr Duration told_again_after = std::chrono::seconds(5);
constexpr Duration tell_budget = std::chrono::hours(1);

}  // namespace

LentCpu::LentCpu(Client& client) : client_(client), changed_(client.environment().loop) {}

void LentCpu::set_lease(LeaseId lease) {
  if (lease_.is_nil()) spawn(client_.scope(), report());
  lease_ = lease;
}

void LentCpu::begin_wait() {
  if (waits_++ == 0) changed_.pulse();
}

void LentCpu::end_wait() {
  if (--waits_ == 0) changed_.pulse();
}

Async<void> LentCpu::report() {
  auto& clock = client_.environment().clock;
  for (;;) {
    while (waits_ == 0) co_await changed_.wait();
    const bool over = co_await wait_until(clock, clock.now() + told_after, changed_);
    if (over) continue;
    while (waits_ > 0) {
      co_await tell(true);
      if (waits_ > 0) co_await wait_until(clock, clock.now() + told_again_after, changed_);
    }
    co_await tell(false);
  }
}

Async<void> LentCpu::tell(bool waiting) {
  protocol::SlotWaits news{lease_, waiting, ++sequence_};
  auto told = co_await client_.ask_head<protocol::Empty>(Method::slot_waits, news, tell_budget);
  if (!told) log::debug("wait_not_told", {{"lease", news.lease}, {"why", told.error().message()}});
}

}  // namespace troupe::client
