// How a handler waits on behalf of its caller.
#pragma once

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <memory>

#include "transport/peer.h"

namespace troupe::head {

// When to answer a caller who waits until `deadline`: the answer says why it waited in vain, so it
// has to arrive before the caller stops listening.
inline Instant answer_by(const Clock& clock, Instant deadline) {
  const Duration left = std::max(deadline - clock.now(), Duration::zero());
  return deadline - std::min<Duration>(left / 10, std::chrono::milliseconds(50));
}

// Waits for the next pulse of `changed`. Errors: deadline_exceeded, cancelled (the caller gave up).
inline Async<Status> wait_for_caller(TimerClock& clock, std::shared_ptr<Event> changed,
                                     transport::CallContext context) {
  using namespace boost::asio::experimental::awaitable_operators;
  if (context.cancelled->is_set()) co_return error(Code::cancelled, "the caller gave up");
  if (clock.now() >= context.deadline) co_return error(Code::deadline_exceeded, "not in time");
  const auto raced = co_await (changed->wait() || context.cancelled->wait() ||
                               sleep_until(clock, context.deadline));
  if (raced.index() == 1) co_return error(Code::cancelled, "the caller gave up");
  if (raced.index() == 2) co_return error(Code::deadline_exceeded, "not in time");
  co_return ok();
}

}  // namespace troupe::head
