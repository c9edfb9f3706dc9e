#include <fmt/format.h>

#include <cstring>
#include <deque>

#include "transport/byte_stream.h"

namespace troupe::transport {
namespace {

// On the wire: header length, body length (both little-endian), header, body.
struct Prefix {
  uint32_t header_bytes;
  uint32_t body_bytes;
};
static_assert(sizeof(Prefix) == 8);

constexpr size_t queue_bytes_high = 8 << 20;  // Above it, writable() waits.
constexpr size_t queue_bytes_max = 1 << 30;   // Above it, the peer is taken for stuck and closed.
constexpr size_t frame_overhead_bytes = 256;  // Of a frame in the queue, roughly.
constexpr size_t batch_bytes = 256 << 10;
constexpr size_t read_bytes = 256 << 10;
constexpr size_t growth_bytes_first = 1 << 20;

// State that the connection and its writer coroutine share.
struct Shared {
  Shared(const Executor& executor, std::unique_ptr<ByteStream> s)
      : stream(std::move(s)), changed(executor), drained(executor) {}

  std::unique_ptr<ByteStream> stream;
  std::deque<Frame> queue;
  size_t queued_bytes = 0;
  bool closing = false;  // No more sends; the writer ends when the queue is empty.
  bool closed = false;
  Event changed;
  Event drained;
};

size_t queued_bytes_of(const Frame& frame) {
  return frame.body.size() + frame.header.error.message.size() + frame_overhead_bytes;
}

void append(Bytes& out, const void* data, size_t size) {
  const auto* first = static_cast<const uint8_t*>(data);
  out.insert(out.end(), first, first + size);
}

void append_head(Bytes& out, const Frame& frame) {
  const Bytes header = protocol::encode_header(frame.header);
  const Prefix prefix{static_cast<uint32_t>(header.size()),
                      static_cast<uint32_t>(frame.body.size())};
  append(out, &prefix, sizeof prefix);
  append(out, header.data(), header.size());
}

Async<void> write_queue(std::shared_ptr<Shared> shared) {
  struct AtEnd {
    Shared& shared;
    ~AtEnd() {
      shared.closed = true;
      shared.queue.clear();
      shared.stream->close();
      shared.drained.pulse();
    }
  } at_end{*shared};
  Bytes batch;
  for (;;) {
    while (shared->queue.empty() && !shared->closing) co_await shared->changed.wait();
    if (shared->queue.empty()) co_return;
    batch.clear();
    std::vector<FileDescriptor> descriptors;
    Bytes large;
    Bulk bulk;
    size_t taken_bytes = 0;
    // Many frames a write; one with descriptors begins a write of its own, a large body or bulk
    // ends one.
    while (!shared->queue.empty() && batch.size() < batch_bytes) {
      Frame& frame = shared->queue.front();
      if (!frame.descriptors.empty()) {
        if (!batch.empty()) break;
        descriptors = std::move(frame.descriptors);
      }
      append_head(batch, frame);
      taken_bytes += queued_bytes_of(frame);
      bulk = std::move(frame.bulk);
      const bool is_large = frame.body.size() > batch_bytes;
      if (is_large) {
        large = std::move(frame.body);
      } else {
        append(batch, frame.body.data(), frame.body.size());
      }
      shared->queue.pop_front();
      if (is_large || !bulk.bytes.empty()) break;
    }
    auto written = co_await shared->stream->write(batch, descriptors);
    if (written && !large.empty()) {
      const std::span<const FileDescriptor> none;
      written = co_await shared->stream->write(large, none);
    }
    if (written && !bulk.bytes.empty()) written = co_await shared->stream->write_bulk(bulk.bytes);
    shared->queued_bytes -= taken_bytes;
    if (!written) co_return;
    if (shared->queued_bytes <= queue_bytes_high) shared->drained.pulse();
  }
}

class FramedConnection final : public Connection {
 public:
  FramedConnection(Scope& scope, std::unique_ptr<ByteStream> stream, PeerIdentity peer)
      : shared_(std::make_shared<Shared>(scope.executor(), std::move(stream))),
        peer_(std::move(peer)) {
    spawn(scope, write_queue(shared_));
  }
  ~FramedConnection() override { close(); }

  const PeerIdentity& peer() const override { return peer_; }

  void land_bulk(std::function<Landing(const protocol::FrameHeader&)> landing_of) override {
    landing_of_ = std::move(landing_of);
  }

  Status send(Frame frame) override {
    if (shared_->closing || shared_->closed) {
      return error(Code::unavailable, "the connection is closed");
    }
    if (frame.body.size() > protocol::body_bytes_max) {
      return error(Code::invalid, fmt::format("a message of {} bytes is over the limit of {}",
                                              frame.body.size(), protocol::body_bytes_max));
    }
    if (frame.bulk.bytes.size() > protocol::bulk_bytes_max) {
      return error(Code::invalid, fmt::format("bulk of {} bytes is over the limit of {}",
                                              frame.bulk.bytes.size(), protocol::bulk_bytes_max));
    }
    frame.header.bulk_bytes = static_cast<uint32_t>(frame.bulk.bytes.size());
    // Kept below header_bytes_max, which the other side enforces.
    if (frame.header.error.message.size() > 16 << 10) frame.header.error.message.resize(16 << 10);
    frame.header.descriptors = static_cast<uint32_t>(frame.descriptors.size());
    const size_t bytes = queued_bytes_of(frame);
    if (shared_->queued_bytes + bytes > queue_bytes_max) {
      shared_->closing = true;
      shared_->stream->close();
      return error(Code::unavailable, "the peer does not read: its connection was closed");
    }
    shared_->queued_bytes += bytes;
    shared_->queue.push_back(std::move(frame));
    shared_->changed.pulse();
    return ok();
  }

  bool is_writable() const override {
    return shared_->closed || shared_->queued_bytes <= queue_bytes_high;
  }

  Async<void> writable() override {
    auto shared = shared_;
    while (!shared->closed && shared->queued_bytes > queue_bytes_high) {
      co_await shared->drained.wait();
    }
  }

  void close() override {
    if (shared_->closing) return;
    shared_->closing = true;
    shared_->changed.pulse();
  }

  Async<Result<Frame>> receive() override {
    auto shared = shared_;
    TROUPE_CO_CHECK(co_await fill(sizeof(Prefix)));
    Prefix prefix;
    std::memcpy(&prefix, buffer_.data() + begin_, sizeof prefix);
    begin_ += sizeof prefix;
    if (prefix.header_bytes > protocol::header_bytes_max ||
        prefix.body_bytes > protocol::body_bytes_max) {
      close();
      co_return error(Code::invalid, "the peer sent a frame over the size limits");
    }
    TROUPE_CO_CHECK(co_await fill(prefix.header_bytes));
    auto header = protocol::decode_header({buffer_.data() + begin_, prefix.header_bytes});
    if (!header) {
      close();
      co_return std::move(header).error();
    }
    begin_ += prefix.header_bytes;
    Frame frame;
    frame.header = std::move(*header);
    TROUPE_CO_TRY(frame.body, co_await receive_bytes(prefix.body_bytes));
    if (frame.header.bulk_bytes > protocol::bulk_bytes_max) {
      close();
      co_return error(Code::invalid, "the peer sent bulk over the size limit");
    }
    if (frame.header.bulk_bytes > 0) {
      TROUPE_CO_TRY(frame.bulk, co_await receive_bulk(frame.header));
    }
    if (frame.header.descriptors > descriptors_.size()) {
      close();
      co_return error(Code::invalid, "the peer announced descriptors that did not come");
    }
    for (uint32_t i = 0; i < frame.header.descriptors; ++i) {
      frame.descriptors.push_back(std::move(descriptors_.front()));
      descriptors_.erase(descriptors_.begin());
    }
    co_return frame;
  }

 private:
  // What the buffer has of them already.
  size_t take_buffered(std::span<uint8_t> out) {
    const size_t ready = std::min<size_t>(end_ - begin_, out.size());
    if (ready > 0) std::memcpy(out.data(), buffer_.data() + begin_, ready);
    begin_ += ready;
    return ready;
  }

  // Memory follows what arrives, not what was announced.
  Async<Result<Bytes>> receive_bytes(size_t count) {
    auto shared = shared_;
    Bytes bytes(std::min<size_t>(end_ - begin_, count));
    size_t have = take_buffered(bytes);
    while (have < count) {
      if (have == bytes.size()) {
        bytes.resize(std::min(count, std::max(growth_bytes_first, 2 * have)));
      }
      std::span<uint8_t> rest{bytes.data() + have, bytes.size() - have};
      TROUPE_CO_TRY(const size_t got, co_await shared->stream->read_some(rest, descriptors_));
      have += got;
    }
    co_return bytes;
  }

  Async<Result<Bulk>> receive_bulk(protocol::FrameHeader header) {
    auto shared = shared_;
    Landing landing = landing_of_ ? landing_of_(header) : Landing{};
    if (landing.bytes.size() < header.bulk_bytes) {
      TROUPE_CO_TRY(auto bytes, co_await receive_bytes(header.bulk_bytes));
      auto own = std::make_shared<const Bytes>(std::move(bytes));
      Bulk bulk{*own, own};
      co_return bulk;
    }
    const std::span<uint8_t> target = landing.bytes.first(header.bulk_bytes);
    const size_t ready = take_buffered(target);
    if (ready < target.size()) {
      TROUPE_CO_CHECK(co_await shared->stream->read_bulk(target.subspan(ready)));
    }
    Bulk bulk{target, std::move(landing.keep)};
    co_return bulk;
  }

  // Makes `count` bytes stand at buffer_[begin_].
  Async<Status> fill(size_t count) {
    auto shared = shared_;
    if (end_ - begin_ >= count) co_return ok();
    if (begin_ > 0) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    while (end_ < count) {
      std::span<uint8_t> room{buffer_.data() + end_, buffer_.size() - end_};
      TROUPE_CO_TRY(const size_t got, co_await shared->stream->read_some(room, descriptors_));
      end_ += got;
    }
    co_return ok();
  }

  std::shared_ptr<Shared> shared_;
  PeerIdentity peer_;
  std::function<Landing(const protocol::FrameHeader&)> landing_of_;
  Bytes buffer_ = Bytes(read_bytes);
  size_t begin_ = 0;
  size_t end_ = 0;
  std::vector<FileDescriptor> descriptors_;
};

}  // namespace

Async<Status> ByteStream::read_bulk(std::span<uint8_t> out) {
  std::vector<FileDescriptor> none;
  while (!out.empty()) {
    TROUPE_CO_TRY(const size_t count, co_await read_some(out, none));
    out = out.subspan(count);
  }
  co_return ok();
}

std::unique_ptr<Connection> make_connection(Scope& scope, std::unique_ptr<ByteStream> stream,
                                            PeerIdentity peer) {
  return std::make_unique<FramedConnection>(scope, std::move(stream), std::move(peer));
}

}  // namespace troupe::transport
