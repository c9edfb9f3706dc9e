#pragma once

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <optional>

#include "transport/environment.h"

namespace troupe::transport {

template <class Work>
auto run_blocking(Environment environment, Work work) -> Async<decltype(work())> {
  // Asio hands results over by default construction and assignment; not every result has the first.
  using Outcome = std::optional<decltype(work())>;
  auto body = [](Work moved) -> Async<Outcome> { co_return moved(); };
  // What blocks cannot be told to end, and a signal would reach it on another thread of the pool.
  const boost::asio::cancellation_slot none;
  auto token = boost::asio::bind_cancellation_slot(none, boost::asio::use_awaitable);
  auto outcome = co_await boost::asio::co_spawn(environment.blocking, body(std::move(work)), token);
  co_return std::move(*outcome);
}

}  // namespace troupe::transport
