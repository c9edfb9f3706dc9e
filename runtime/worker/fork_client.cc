#include "worker/fork_client.h"

#include <sys/socket.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/log.h"
#include "protocol/codec.h"
#include "protocol/fork_server.h"
#include "transport/descriptor_passing.h"

namespace troupe::worker {
namespace asio = boost::asio;

namespace {

Result<pid_t> outcome_of(BytesView packet) {
  TROUPE_TRY(const auto forked, protocol::decode<protocol::ProcessForked>(packet));
  if (forked.pid != 0) return static_cast<pid_t>(forked.pid);
  const int number = static_cast<int>(forked.error_number);
  const bool is_full = number == EAGAIN || number == ENOMEM;
  return error(is_full ? Code::exhausted : Code::unimplemented,
               std::string("fork: ") + std::strerror(number));
}

}  // namespace

ForkClient::ForkClient(asio::io_context& loop, Scope& scope, FileDescriptor socket)
    : state_(std::make_shared<State>(loop, socket.release())) {
  state_->descriptor.non_blocking(true);
  spawn(scope, read(state_));
}

bool ForkClient::fork(const protocol::ForkProcess& request,
                      std::span<const FileDescriptor> descriptors, Answer answer) {
  if (!state_->is_open) return false;
  const Bytes packet = protocol::encode(request);
  if (packet.size() > protocol::fork_packet_bytes_max) return false;
  const auto sent =
      transport::send_with_descriptors(state_->descriptor.native_handle(), packet, descriptors);
  if (sent < 0) return false;
  state_->waiting.push_back(std::move(answer));
  return true;
}

Async<void> ForkClient::read(std::shared_ptr<State> state) {
  // However this ends.
  struct Close {
    State& state;
    ~Close() {
      state.is_open = false;
      boost::system::error_code ignored;
      state.descriptor.close(ignored);
    }
  } close{*state};
  std::array<uint8_t, 4096> packet;
  for (;;) {
    const ssize_t size = ::recv(state->descriptor.native_handle(), packet.data(), packet.size(), 0);
    if (size < 0 && errno == EAGAIN) {
      auto token = asio::as_tuple(asio::use_awaitable);
      const auto [failed] =
          co_await state->descriptor.async_wait(asio::posix::stream_descriptor::wait_read, token);
      if (failed) co_return;
      continue;
    }
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) break;
    auto outcome = outcome_of({packet.data(), static_cast<size_t>(size)});
    if (state->waiting.empty()) break;
    const Answer answer = std::move(state->waiting.front());
    state->waiting.pop_front();
    answer(std::move(outcome));
  }
  log::warning("fork_server_gone", {{"then", "the next process starts another"}});
  state->is_open = false;
  for (const Answer& answer : std::exchange(state->waiting, {})) {
    answer(error(Code::unavailable, "the fork server is gone"));
  }
}

}  // namespace troupe::worker
