#pragma once

#include <boost/asio/experimental/awaitable_operators.hpp>
#include <utility>
#include <variant>

#include "transport/async.h"

namespace troupe {

template <class T>
Async<Result<T>> with_deadline(TimerClock& clock, Instant deadline, Async<Result<T>> operation) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto raced = co_await (std::move(operation) || sleep_until(clock, deadline));
  if (raced.index() == 0) co_return std::get<0>(std::move(raced));
  co_return error(Code::deadline_exceeded, "no answer in time");
}

}  // namespace troupe
