#include "transport/socket_channel.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>

#include "base/log.h"

namespace troupe::transport {
namespace {

constexpr size_t queue_bytes_high = 8 << 20;  // Above it, writable() waits.
constexpr size_t queue_bytes_max = 1 << 30;   // Above it, the peer is taken for stuck and closed.
constexpr size_t frame_overhead_bytes = 256;  // Of a frame in the queue, roughly.
constexpr size_t batch_bytes = 256 << 10;
constexpr size_t read_bytes = 256 << 10;
constexpr size_t growth_bytes_first = 1 << 20;
constexpr size_t reads_a_turn = 16;
// With more under way nobody waits for a single one: the loop sends many at a time.
constexpr size_t direct_calls_max = 8;

size_t queued_bytes_of(const Frame& frame) {
  return frame.body.size() + frame.header.error.message.size() + frame_overhead_bytes;
}

void append(Bytes& out, const void* data, size_t size) {
  const auto* first = static_cast<const uint8_t*>(data);
  out.insert(out.end(), first, first + size);
}

}  // namespace

SocketChannel::SocketChannel(RingPort* port, Executor loop, std::unique_ptr<ByteStream> stream)
    : CallChannel(port, this),
      loop_(std::move(loop)),
      stream_(std::move(stream)),
      outgoing_changed_(loop_),
      drained_(loop_),
      memory_(std::make_unique_for_overwrite<uint8_t[]>(read_bytes)),
      buffer_(memory_.get(), read_bytes) {}

SocketChannel::~SocketChannel() = default;

void SocketChannel::start(Scope& scope) {
  spawn(scope, write_all(self()));
}

Status SocketChannel::accept_calls(ProcessId peer) {
  process_ = peer;
  TROUPE_CHECK(port_->add_source(self()));
  accepts_calls_ = true;
  return ok();
}

// --- Sending.

Status SocketChannel::send_frame(Frame frame) {
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
  {
    const std::lock_guard lock{mutex_};
    if (closing_ || !is_open()) return error(Code::unavailable, "the connection is closed");
    if (queued_bytes_ + bytes > queue_bytes_max) {
      closing_ = true;
      left_ = true;
      stream_->shut_down();
      outgoing_changed_.pulse();
      return error(Code::unavailable, "the peer does not read: its connection was closed");
    }
    queued_bytes_ += bytes;
    outgoing_.push_back({std::move(frame), {}, 0});
  }
  outgoing_changed_.pulse();
  return ok();
}

uint8_t* SocketChannel::reserve(size_t payload_bytes) {
  record_.resize(record_head_bytes + payload_bytes);
  return record_.data() + record_head_bytes;
}

void SocketChannel::publish(RecordHeader header) {
  const Prefix prefix{0, static_cast<uint32_t>(sizeof header + header.payload_bytes)};
  std::memcpy(record_.data(), &prefix, sizeof prefix);
  std::memcpy(record_.data() + sizeof prefix, &header, sizeof header);
  if (!write_failed_ && !send_record()) {
    fail_writing();
  }
  if (record_.capacity() > read_bytes) record_ = {};
}

// The reader finds out, after what has come until then; and so does the peer, if it still lives.
void SocketChannel::fail_writing() {
  closing_ = true;
  write_failed_ = true;
  stream_->end_writing();
}

void SocketChannel::queue(RecordHeader header, Bytes payload) {
  uint8_t* room = reserve(payload.size());
  if (!payload.empty()) std::memcpy(room, payload.data(), payload.size());
  publish(header);
}

bool SocketChannel::send_record() {
  BytesView rest{record_};
  const size_t under_way = calls_pending() + (calls_received() - replies_sent_);
  if (outgoing_.empty() && !loop_writes_ && under_way <= direct_calls_max) {
    while (!rest.empty()) {
      const auto sent = stream_->try_write(rest);
      if (!sent) return false;
      if (*sent == 0) break;
      rest = rest.subspan(*sent);
    }
    if (rest.empty()) {
      calls_begun_ = calls_sent_;
      return true;
    }
  }
  queue_records(rest);
  return true;
}

void SocketChannel::queue_records(BytesView bytes) {
  if (queued_bytes_ + bytes.size() > queue_bytes_max) {
    closing_ = true;
    stream_->shut_down();
    return;
  }
  queued_bytes_ += bytes.size();
  if (outgoing_.empty() || outgoing_.back().records.empty() ||
      outgoing_.back().records.size() > batch_bytes) {
    outgoing_.emplace_back();
  }
  append(outgoing_.back().records, bytes.data(), bytes.size());
  outgoing_.back().last_call = calls_sent_;
  wake_writer();
}

void SocketChannel::wake_writer() {
  if (std::exchange(writer_woken_, true)) return;
  boost::asio::post(loop_, [self = self()] {
    {
      const std::lock_guard lock{self->mutex_};
      self->writer_woken_ = false;
    }
    self->outgoing_changed_.pulse();
  });
}

// Many at a time; a frame with descriptors begins a batch, a large body or bulk ends one.
bool SocketChannel::take_batch(Batch& batch) {
  batch.bytes.clear();
  batch.descriptors.clear();
  batch.large = {};
  batch.bulk = {};
  batch.queued_bytes = 0;
  while (!outgoing_.empty() && batch.bytes.size() < batch_bytes) {
    Outgoing& next = outgoing_.front();
    if (!next.records.empty()) {
      append(batch.bytes, next.records.data(), next.records.size());
      batch.queued_bytes += next.records.size();
      calls_begun_ = std::max(calls_begun_, next.last_call);
      outgoing_.pop_front();
      continue;
    }
    Frame& frame = next.frame;
    if (!frame.descriptors.empty()) {
      if (!batch.bytes.empty()) break;
      batch.descriptors = std::move(frame.descriptors);
    }
    const Bytes header = protocol::encode_header(frame.header);
    const Prefix prefix{static_cast<uint32_t>(header.size()),
                        static_cast<uint32_t>(frame.body.size())};
    append(batch.bytes, &prefix, sizeof prefix);
    append(batch.bytes, header.data(), header.size());
    batch.queued_bytes += queued_bytes_of(frame);
    batch.bulk = std::move(frame.bulk);
    const bool is_large = frame.body.size() > batch_bytes;
    if (is_large) {
      batch.large = std::move(frame.body);
    } else {
      append(batch.bytes, frame.body.data(), frame.body.size());
    }
    outgoing_.pop_front();
    if (is_large || !batch.bulk.bytes.empty()) break;
  }
  return batch.queued_bytes > 0;
}

Async<void> SocketChannel::write_all(std::shared_ptr<SocketChannel> self) {
  struct AtEnd {
    SocketChannel& channel;
    ~AtEnd() { channel.stop_writing(); }
  } at_end{*self};
  Batch batch;
  for (;;) {
    bool ends = false;
    {
      const std::lock_guard lock{self->mutex_};
      if (self->write_failed_) self->outgoing_.clear();
      self->loop_writes_ = self->take_batch(batch);
      ends = !self->loop_writes_ && self->left_;
    }
    if (ends) co_return;
    if (batch.queued_bytes == 0) {
      co_await self->outgoing_changed_.wait();
      continue;
    }
    auto written = co_await self->stream_->write(batch.bytes, batch.descriptors);
    if (written && !batch.large.empty()) {
      const std::span<const FileDescriptor> none;
      written = co_await self->stream_->write(batch.large, none);
    }
    if (written && !batch.bulk.bytes.empty()) {
      written = co_await self->stream_->write_bulk(batch.bulk.bytes);
    }
    self->queued_bytes_ -= batch.queued_bytes;
    if (!written) {
      const std::lock_guard lock{self->mutex_};
      self->fail_writing();
      self->queued_bytes_ = 0;
    }
    if (self->queued_bytes_ <= queue_bytes_high) self->drained_.pulse();
  }
}

void SocketChannel::stop_writing() {
  write_ended_ = true;
  end();
  stream_->close();
  drained_.pulse();
}

bool SocketChannel::is_writable() const {
  return write_ended_ || queued_bytes_ <= queue_bytes_high;
}

Async<void> SocketChannel::writable() {
  const auto keep = self();
  while (!is_writable()) co_await drained_.wait();
}

void SocketChannel::close() {
  if (std::exchange(left_, true)) return;
  {
    const std::lock_guard lock{mutex_};
    if (!closing_ && accepts_calls_) say_goodbye();
    closing_ = true;
  }
  outgoing_changed_.pulse();
}

void SocketChannel::say_goodbye() {
  const uint64_t taken = calls_taken_.fetch_or(leaves);
  std::memcpy(reserve(sizeof taken), &taken, sizeof taken);
  publish({sizeof taken, call_goodbye, 0, 0});
}

void SocketChannel::abandon() {
  close();
  end();
}

void SocketChannel::end() {
  uint64_t begun = 0;
  {
    const std::lock_guard lock{mutex_};
    closed_.store(true, std::memory_order_release);
    outgoing_.clear();
    begun = std::min(calls_begun_, peer_took_);
  }
  stream_->shut_down();
  {
    std::unique_lock lock{reader_mutex_};
    reader_left_.wait(lock, [&] { return reader_ != Reader::thread; });
    if (std::exchange(told_closed_, true)) return;
  }
  if (port_ == nullptr || !accepts_calls_) return;
  port_->remove_source(*this);
  fail_pending(begun);
  if (CallHandler* told = handler()) told->channel_closed(shared_from_this());
}

// --- Reading.

bool SocketChannel::claim_for_loop() {
  const std::lock_guard lock{reader_mutex_};
  if (reader_ == Reader::thread) return false;
  reader_ = Reader::loop;
  over_ = false;
  return true;
}

bool SocketChannel::take() {
  const std::lock_guard lock{reader_mutex_};
  // What another thread left to the loop lies in the buffer, and nothing in the socket tells of it.
  if (reader_ != Reader::nobody || over_ || told_closed_ || !is_open()) return false;
  reader_ = Reader::thread;
  stream_->wake_loop_on_data(false);
  return true;
}

ReadSource::Look SocketChannel::look() {
  if (over_) return Look::over;
  const auto got = make_room() ? stream_->try_read(buffer_.subspan(end_))
                               : Result<size_t>{error(Code::invalid, "no room")};
  if (got && *got == 0) return Look::nothing;
  if (got) end_ += *got;
  over_ = !got || handle_records(handler()) != Next::more;
  return Look::read;
}

void SocketChannel::leave() {
  const std::lock_guard lock{reader_mutex_};
  reader_ = Reader::nobody;
  stream_->wake_loop_on_data(true);
  if (over_ || told_closed_ || !is_open()) stream_->wake_loop();
  reader_left_.notify_all();
}

Status SocketChannel::make_room() {
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (end_ == buffer_.size()) return error(Code::internal, "the buffer is full");
  return ok();
}

SocketChannel::Next SocketChannel::handle_records(CallHandler* handler) {
  for (;;) {
    const size_t there = end_ - begin_;
    if (there < sizeof(Prefix)) return Next::more;
    Prefix prefix;
    std::memcpy(&prefix, buffer_.data() + begin_, sizeof prefix);
    const size_t all = sizeof prefix + prefix.body_bytes;
    // One that the buffer cannot hold is read by the loop, as frames are.
    if (prefix.header_bytes != 0 || all > buffer_.size()) return Next::frame;
    RecordHeader header;
    if (prefix.body_bytes < sizeof header || !accepts_calls_) return Next::broken;
    if (there < all) return Next::more;
    std::memcpy(&header, buffer_.data() + begin_ + sizeof prefix, sizeof header);
    const size_t payload_bytes = prefix.body_bytes - sizeof header;
    if (header.payload_bytes != payload_bytes) return Next::broken;
    const BytesView payload{buffer_.data() + begin_ + record_head_bytes, payload_bytes};
    begin_ += all;
    if (!told_closed_ && takes(header, payload)) handle(handler, header, payload);
  }
}

bool SocketChannel::takes(const RecordHeader& header, BytesView payload) {
  if (header.kind == call_request) return (calls_taken_.fetch_add(1) & leaves) == 0;
  if (header.kind != call_goodbye) return true;
  const std::lock_guard lock{mutex_};
  closing_ = true;  // What is sent from now on is not taken.
  if (payload.size() == sizeof peer_took_) {
    std::memcpy(&peer_took_, payload.data(), sizeof peer_took_);
  }
  return false;
}

Async<Result<size_t>> SocketChannel::read_into(std::span<uint8_t> room) {
  return stream_->read_some(room, descriptors_);
}

Async<Result<Frame>> SocketChannel::receive() {
  const auto keep = self();
  Error failure;
  size_t reads = 0;
  for (;;) {
    if (!claim_for_loop()) {
      co_await stream_->readable();
      continue;
    }
    const Next next = handle_records(handler());
    if (next == Next::broken) {
      failure = error(Code::invalid, "the peer sent a call that is none");
      break;
    }
    if (next == Next::frame) {
      Prefix prefix;
      std::memcpy(&prefix, buffer_.data() + begin_, sizeof prefix);
      begin_ += sizeof prefix;
      if (prefix.header_bytes == 0) {
        auto received = co_await receive_large_record(prefix);
        if (received) continue;
        failure = std::move(received).error();
        break;
      }
      auto frame = co_await receive_frame(prefix);
      if (frame) co_return frame;
      failure = std::move(frame).error();
      break;
    }
    (void)make_room();  // There is: what is there is less than a message that fits.
    const std::span<uint8_t> room = buffer_.subspan(end_);
    Result<size_t> got = size_t{0};
    if (stream_->is_direct()) {
      got = stream_->try_read(room);
    } else {
      auto some = co_await read_into(room);
      got = std::move(some);
    }
    if (!got) {
      failure = std::move(got).error();
      break;
    }
    end_ += *got;
    if (*got > 0) {
      // A peer that never falls silent must not keep the loop from everybody else.
      if (++reads % reads_a_turn == 0) {
        auto token = boost::asio::use_awaitable;
        co_await boost::asio::post(loop_, token);
      }
      continue;
    }
    {
      const std::lock_guard lock{reader_mutex_};
      reader_ = Reader::nobody;
    }
    co_await stream_->readable();
  }
  {
    const std::lock_guard lock{mutex_};
    closing_ = true;  // There is nobody to take leave of.
  }
  close();
  end();
  co_return failure;
}

Async<Status> SocketChannel::receive_large_record(Prefix prefix) {
  if (prefix.body_bytes > message_bytes_max + sizeof(RecordHeader)) {
    co_return error(Code::invalid, "the peer sent a call over the size limit");
  }
  TROUPE_CO_TRY(const Bytes body, co_await receive_bytes(prefix.body_bytes));
  RecordHeader header;
  std::memcpy(&header, body.data(), sizeof header);
  const BytesView payload = BytesView{body}.subspan(sizeof header);
  if (header.payload_bytes != payload.size() || !accepts_calls_) {
    co_return error(Code::invalid, "the peer sent a call that is none");
  }
  if (!told_closed_ && takes(header, payload)) handle(handler(), header, payload);
  co_return ok();
}

Async<Result<Frame>> SocketChannel::receive_frame(Prefix prefix) {
  if (prefix.header_bytes > protocol::header_bytes_max ||
      prefix.body_bytes > protocol::body_bytes_max) {
    co_return error(Code::invalid, "the peer sent a message over the size limits");
  }
  TROUPE_CO_CHECK(co_await fill(prefix.header_bytes));
  TROUPE_CO_TRY(auto header,
                protocol::decode_header({buffer_.data() + begin_, prefix.header_bytes}));
  begin_ += prefix.header_bytes;
  Frame frame;
  frame.header = std::move(header);
  TROUPE_CO_TRY(frame.body, co_await receive_bytes(prefix.body_bytes));
  if (frame.header.bulk_bytes > protocol::bulk_bytes_max) {
    co_return error(Code::invalid, "the peer sent bulk over the size limit");
  }
  if (frame.header.bulk_bytes > 0) {
    TROUPE_CO_TRY(frame.bulk, co_await receive_bulk(frame.header));
  }
  if (frame.header.descriptors > descriptors_.size()) {
    co_return error(Code::invalid, "the peer announced descriptors that did not come");
  }
  for (uint32_t i = 0; i < frame.header.descriptors; ++i) {
    frame.descriptors.push_back(std::move(descriptors_.front()));
    descriptors_.erase(descriptors_.begin());
  }
  co_return frame;
}

// What the buffer has of them already.
size_t SocketChannel::take_buffered(std::span<uint8_t> out) {
  const size_t ready = std::min<size_t>(end_ - begin_, out.size());
  if (ready > 0) std::memcpy(out.data(), buffer_.data() + begin_, ready);
  begin_ += ready;
  return ready;
}

// Memory follows what arrives, not what was announced.
Async<Result<Bytes>> SocketChannel::receive_bytes(size_t count) {
  Bytes bytes(std::min<size_t>(end_ - begin_, count));
  size_t have = take_buffered(bytes);
  while (have < count) {
    if (have == bytes.size()) {
      bytes.resize(std::min(count, std::max(growth_bytes_first, 2 * have)));
    }
    TROUPE_CO_TRY(const size_t got, co_await read_into(std::span{bytes}.subspan(have)));
    have += got;
  }
  co_return bytes;
}

Async<Result<Bulk>> SocketChannel::receive_bulk(protocol::FrameHeader header) {
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
    TROUPE_CO_CHECK(co_await stream_->read_bulk(target.subspan(ready)));
  }
  Bulk bulk{target, std::move(landing.keep)};
  co_return bulk;
}

// Makes `count` bytes stand at buffer_[begin_].
Async<Status> SocketChannel::fill(size_t count) {
  while (end_ - begin_ < count) {
    TROUPE_CO_CHECK(make_room());
    TROUPE_CO_TRY(const size_t got, co_await read_into(buffer_.subspan(end_)));
    end_ += got;
  }
  co_return ok();
}

}  // namespace troupe::transport
