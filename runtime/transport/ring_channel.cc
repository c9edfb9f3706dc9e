#include "transport/ring_channel.h"

#include <algorithm>
#include <cstring>

#include "base/log.h"

namespace troupe::transport {

namespace {
constexpr int records_a_visit = 256;
}  // namespace

RingChannel::RingChannel(RingPort& port, RingMemory memory, Doorbell peer, RingPort::Offer& offer)
    : CallChannel(&port, nullptr),
      memory_(std::move(memory)),
      peer_(std::move(peer)),
      side_(offer.side),
      index_(offer.index),
      peer_index_(offer.peer_index),
      reader_(memory_, 1 - offer.side),
      writer_(memory_, offer.side) {
  process_ = offer.process;
}

RingChannel::~RingChannel() = default;

uint8_t* RingChannel::reserve(size_t payload_bytes) {
  if (!queue_.empty() || payload_bytes > writer_.payload_max()) return nullptr;
  return writer_.reserve(payload_bytes);
}

void RingChannel::publish(RecordHeader header) {
  writer_.publish(header);
  if (header.kind == frame) {
    peer_.ring_now(peer_index_);  // Its loop waits for it, and no thread that reads.
  } else {
    peer_.ring(peer_index_);
  }
}

void RingChannel::queue(RecordHeader header, Bytes payload) {
  queued_bytes_ += payload.size() + sizeof header;
  queue_.push_back({header, std::move(payload)});
  flush();
}

// Moves what is queued into the ring, cut into pieces where it is large. With the lock held.
void RingChannel::flush() {
  bool wrote = false;
  while (!queue_.empty()) {
    Queued& first = queue_.front();
    const size_t left = first.payload.size() - first.written;
    const size_t piece = std::min(left, writer_.payload_max());
    uint8_t* room = writer_.reserve(piece);
    if (room == nullptr) {
      writer_.want_room();
      room = writer_.reserve(piece);
    }
    if (room == nullptr) break;
    if (piece > 0) std::memcpy(room, first.payload.data() + first.written, piece);
    first.written += piece;
    RecordHeader header = first.header;
    header.payload_bytes = static_cast<uint32_t>(piece);
    header.more = piece < left ? 1 : 0;
    writer_.publish(header);
    wrote = true;
    queued_bytes_ -= piece;
    if (header.more != 0) continue;
    queued_bytes_ -= sizeof first.header;
    queue_.pop_front();
  }
  if (wrote) peer_.ring_now(peer_index_);
  if (((closing_ && queue_.empty()) || writer_.is_broken()) && is_open()) {
    mark_closed();
    port_->look_at(index_);
  }
}

void RingChannel::begin(uint64_t ordinal) {
  // The peer's calls lie in the ring that it writes. One thread at a time may be a little late; the
  // count only grows.
  auto& begun = memory_.control().ring[1 - side_].begun;
  uint64_t before = begun.load(std::memory_order_relaxed);
  while (before < ordinal && !begun.compare_exchange_weak(before, ordinal)) {
  }
}

Status RingChannel::send_frame(Bytes payload) {
  const std::lock_guard lock{mutex_};
  if (!is_open() || closing_) return error(Code::unavailable, "the connection is closed");
  const RecordHeader header{static_cast<uint32_t>(payload.size()), frame, 0, 0};
  if (uint8_t* room = reserve(payload.size())) {
    if (!payload.empty()) std::memcpy(room, payload.data(), payload.size());
    publish(header);
  } else {
    queue(header, std::move(payload));
  }
  return ok();
}

bool RingChannel::receive(CallHandler* handler) {
  bool more = false;
  for (int i = 0; !told_closed_; ++i) {
    if (i == records_a_visit) {
      more = true;
      break;
    }
    auto next = reader_.next();
    if (!next) {
      log::warning("ring_broken", {{"why", next.error().message()}});
      mark_closed();
      break;
    }
    if (!*next) break;
    const Record record = **next;
    if (record.header.more == 0 && partial_.empty()) {
      scratch_.assign(record.payload.begin(), record.payload.end());
      reader_.consume();
      handle_record(handler, record.header, scratch_);
      continue;
    }
    if (partial_.size() + record.payload.size() > message_bytes_max) {
      log::warning("ring_broken", {{"why", "a message over the size limits"}});
      mark_closed();
      break;
    }
    partial_.insert(partial_.end(), record.payload.begin(), record.payload.end());
    reader_.consume();
    if (record.header.more != 0) continue;
    const Bytes whole = std::exchange(partial_, {});
    handle_record(handler, record.header, whole);
  }
  if (reader_.release()) peer_.ring_now(peer_index_);
  if (queued_bytes() > 0) {
    {
      const std::lock_guard lock{mutex_};
      flush();
    }
    const std::lock_guard lock{sink_mutex_};
    if (sink_) sink_->drained();
  }
  if (told_closed_) return false;
  const bool by_peer = memory_.control().closed.load(std::memory_order_acquire) != 0;
  if (is_open() && by_peer && !more) {
    // Whoever closed wrote before that: so look once more after the flag was seen.
    const auto last = reader_.next();
    more = last && *last;
  }
  // Closed here: what was not read yet is not wanted.
  if (is_open() && (more || !by_peer)) return more;
  mark_closed();
  tell_closed(handler);
  return false;
}

void RingChannel::tell_closed(CallHandler* handler) {
  told_closed_ = true;
  port_->forget(*this);
  {
    const std::lock_guard lock{mutex_};
    queue_.clear();
    queued_bytes_ = 0;
  }
  fail_pending(memory_.control().ring[side_].begun.load());
  if (handler != nullptr) handler->channel_closed(shared_from_this());
  const std::lock_guard lock{sink_mutex_};
  closed_unclaimed_ = true;
  if (sink_) sink_->closed();
}

void RingChannel::handle_record(CallHandler* handler, RecordHeader header, BytesView payload) {
  if (header.kind != frame) {
    handle(handler, header, payload);
    return;
  }
  Bytes copy{payload.begin(), payload.end()};
  const std::lock_guard lock{sink_mutex_};
  if (sink_) {
    sink_->frame(std::move(copy));
  } else {
    unclaimed_.push_back(std::move(copy));
  }
}

void RingChannel::mark_closed() {
  if (closed_.exchange(true)) return;
  memory_.control().closed.exchange(1);
  peer_.ring(peer_index_);
}

void RingChannel::close() {
  {
    const std::lock_guard lock{mutex_};
    closing_ = true;
    if (!queue_.empty() || !is_open()) return;  // flush() closes once all is written.
    mark_closed();
  }
  port_->look_at(index_);
}

void RingChannel::abandon() {
  if (!is_open()) return;  // Its port may be gone.
  mark_closed();
  port_->look_at(index_);
}

void RingChannel::set_frame_sink(std::shared_ptr<FrameSink> sink) {
  const std::lock_guard lock{sink_mutex_};
  sink_ = std::move(sink);
  if (!sink_) return;
  for (Bytes& waiting : unclaimed_) sink_->frame(std::move(waiting));
  unclaimed_.clear();
  if (closed_unclaimed_) sink_->closed();
}

}  // namespace troupe::transport
