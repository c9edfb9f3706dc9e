#pragma once

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "transport/environment.h"

namespace troupe::transport {

template <class Work>
auto run_blocking(Environment environment, Work work) -> Async<decltype(work())> {
  auto body = [](Work moved) -> Async<decltype(work())> { co_return moved(); };
  auto token = boost::asio::use_awaitable;
  co_return co_await boost::asio::co_spawn(environment.blocking, body(std::move(work)), token);
}

}  // namespace troupe::transport
