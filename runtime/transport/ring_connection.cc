#include "transport/ring_connection.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <cstring>

namespace troupe::transport {

namespace {
constexpr size_t queue_bytes_high = 8 << 20;  // Above it, writable() waits.
constexpr size_t queue_bytes_max = 1 << 30;   // Above it, the peer is taken for stuck and closed.
}  // namespace

// What the reading threads leave for the loop.
struct RingConnection::Inbox final : FrameSink, std::enable_shared_from_this<Inbox> {
  explicit Inbox(const Executor& executor) : loop(executor), changed(executor) {}

  void frame(Bytes payload) override {
    {
      const std::lock_guard lock{mutex};
      arrived.push_back(std::move(payload));
    }
    wake();
  }
  void drained() override { wake(); }
  void closed() override {
    {
      const std::lock_guard lock{mutex};
      is_closed = true;
    }
    wake();
  }
  void wake() {
    if (woken.exchange(true)) return;
    boost::asio::post(loop, [self = shared_from_this()] {
      self->woken = false;
      self->changed.pulse();
    });
  }

  const Executor loop;
  std::mutex mutex;
  std::deque<Bytes> arrived;
  bool is_closed = false;
  std::atomic<bool> woken = false;
  Event changed;  // Of the loop.
};

RingConnection::RingConnection(Executor loop, std::shared_ptr<RingChannel> channel,
                               PeerIdentity peer)
    : channel_(std::move(channel)),
      peer_(std::move(peer)),
      inbox_(std::make_shared<Inbox>(std::move(loop))) {
  channel_->set_frame_sink(inbox_);
}

RingConnection::~RingConnection() {
  channel_->set_frame_sink(nullptr);
  channel_->close();
}

Async<Result<Frame>> RingConnection::receive() {
  const auto inbox = inbox_;
  Bytes bytes;
  for (;;) {
    bool none = false;
    bool closed = false;
    {
      const std::lock_guard lock{inbox->mutex};
      none = inbox->arrived.empty();
      closed = inbox->is_closed;
      if (!none) {
        bytes = std::move(inbox->arrived.front());
        inbox->arrived.pop_front();
      }
    }
    if (!none) break;
    if (closed) co_return error(Code::unavailable, "the peer closed the connection");
    co_await inbox->changed.wait();
  }
  uint32_t header_bytes = 0;
  const bool whole = bytes.size() >= sizeof header_bytes;
  if (whole) std::memcpy(&header_bytes, bytes.data(), sizeof header_bytes);
  if (!whole || header_bytes > bytes.size() - sizeof header_bytes) {
    channel_->close();
    co_return error(Code::invalid, "the peer sent a frame that is cut off");
  }
  const BytesView all{bytes};
  auto header = protocol::decode_header(all.subspan(sizeof header_bytes, header_bytes));
  if (!header) {
    channel_->close();
    co_return std::move(header).error();
  }
  Frame frame;
  frame.header = std::move(*header);
  const BytesView body = all.subspan(sizeof header_bytes + header_bytes);
  frame.body.assign(body.begin(), body.end());
  co_return frame;
}

Status RingConnection::send(Frame frame) {
  if (!frame.descriptors.empty()) {
    return error(Code::invalid, "descriptors cannot be sent through a ring");
  }
  if (!frame.bulk.bytes.empty()) {
    return error(Code::invalid, "bulk cannot be sent through a ring");
  }
  if (frame.body.size() > protocol::body_bytes_max) {
    return error(Code::invalid, fmt::format("a message of {} bytes is over the limit of {}",
                                            frame.body.size(), protocol::body_bytes_max));
  }
  if (channel_->queued_bytes() > queue_bytes_max) {
    channel_->abandon();
    return error(Code::unavailable, "the peer does not read: its connection was closed");
  }
  if (frame.header.error.message.size() > 16 << 10) frame.header.error.message.resize(16 << 10);
  const Bytes header = protocol::encode_header(frame.header);
  const auto header_bytes = static_cast<uint32_t>(header.size());
  Bytes payload(sizeof header_bytes + header.size() + frame.body.size());
  std::memcpy(payload.data(), &header_bytes, sizeof header_bytes);
  std::memcpy(payload.data() + sizeof header_bytes, header.data(), header.size());
  if (!frame.body.empty()) {
    std::memcpy(payload.data() + sizeof header_bytes + header.size(), frame.body.data(),
                frame.body.size());
  }
  return channel_->send_frame(std::move(payload));
}

bool RingConnection::is_writable() const {
  return !channel_->is_open() || channel_->queued_bytes() <= queue_bytes_high;
}

Async<void> RingConnection::writable() {
  const auto inbox = inbox_;
  while (!is_writable()) co_await inbox->changed.wait();
}

}  // namespace troupe::transport
