// One peer process at the other end of a pair of rings.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "protocol/frame.h"
#include "transport/adaptive_mutex.h"
#include "transport/ring_port.h"

namespace troupe::transport {

// Who waits for the reply of a call that went through a ring. Exactly one of these is called, once,
// on whichever thread reads the ring, or on the thread that closes the channel; then it is
// destroyed. Neither may block.
class PendingReply {
 public:
  virtual ~PendingReply() = default;
  // Private memory, valid during the call.
  virtual void reply(BytesView payload) = 0;
  // The peer is gone. `begun`: the call may have run; else it surely has not.
  virtual void lost(bool begun) = 0;
};

// Where frames go that arrive in a ring. Called on whichever thread reads it; must not block.
class FrameSink {
 public:
  virtual ~FrameSink() = default;
  virtual void frame(Bytes payload) = 0;
  // What waited for room was written.
  virtual void drained() = 0;
  virtual void closed() = 0;
};

// Thread-safe.
class RingChannel : public std::enable_shared_from_this<RingChannel> {
 public:
  enum Kind : uint16_t {
    frame = 1,
    call_request = 2,
    call_reply = 3,
    call_cancel = 4,
    call_recall = 5,
  };

  RingChannel(RingPort& port, RingMemory memory, Doorbell peer, RingPort::Offer& offer);
  ~RingChannel();

  ProcessId process() const { return process_; }
  bool is_open() const { return !closed_.load(std::memory_order_acquire); }
  // Sends a call whose payload `fill` writes: payload_bytes at the address that it is given. The
  // number is for cancel(). Errors, of which `pending` is told nothing: unavailable (closed: it was
  // not sent), invalid (over the size limit).
  template <class Fill>
  Result<uint64_t> call(std::unique_ptr<PendingReply> pending, size_t payload_bytes, Fill fill);
  // Tells the callee that nobody waits any more. The reply is still awaited. `how`:
  // protocol::CancelBits.
  void cancel(uint64_t call, uint8_t how = 0);
  // Asks for the calls back that the callee has not begun: it refuses them.
  void recall();
  // One more call of the peer's was taken from the ring: its ordinal.
  uint64_t count_call() { return ++calls_received_; }
  // The call with this ordinal begins: if this process dies now, the peer knows that it may have
  // run.
  void begin(uint64_t ordinal);
  // Answers a call of the peer's. On a closed channel there is nobody to answer.
  template <class Fill>
  void reply(uint64_t call, size_t payload_bytes, Fill fill);

  // What waits for room in the ring.
  size_t queued_bytes() const { return queued_bytes_.load(std::memory_order_relaxed); }
  // Sends what is queued, then closes.
  void close();
  // Closes at once.
  void abandon();

  // --- Of the connection that speaks frames over this channel (ring_connection.cc).
  Status send_frame(Bytes payload);
  // What came before this call comes at once.
  void set_frame_sink(std::shared_ptr<FrameSink> sink);

  // What the one who answers calls keeps beside the channel.
  std::shared_ptr<void> attachment;

 private:
  friend class RingPort;
  struct Slot {
    std::unique_ptr<PendingReply> pending;
    uint32_t generation = 0;
    uint64_t ordinal = 0;
  };
  struct Queued {
    RecordHeader header;
    Bytes payload;
    size_t written = 0;
  };
  // The peer refuses more.
  static constexpr size_t message_bytes_max =
      protocol::header_bytes_max + protocol::body_bytes_max + 64;

  // Reads some of what has arrived; true if there may be more.
  bool receive(RingHandler* handler);
  void handle(RingHandler* handler, RecordHeader header, BytesView payload);
  void flush();
  // With the lock held: a record's room, or null if it must be queued.
  uint8_t* reserve(size_t payload_bytes);
  void publish(RecordHeader header);
  // Into the ring, or into the queue when there is no room.
  template <class Fill>
  void write(RecordHeader header, Fill& fill);
  void queue(RecordHeader header, Bytes payload);
  void fail_pending();
  void mark_closed();
  void tell_closed(RingHandler* handler);
  std::unique_ptr<PendingReply> take(uint64_t call);

  RingPort& port_;
  RingMemory memory_;
  Doorbell peer_;
  const ProcessId process_;
  const int side_;
  const uint32_t index_;
  const uint32_t peer_index_;
  std::atomic<bool> closed_ = false;

  // --- The reading thread's.
  RingReader reader_;
  Bytes scratch_;
  Bytes partial_;
  bool told_closed_ = false;
  uint64_t calls_received_ = 0;

  AdaptiveMutex mutex_;  // Guards what follows.
  RingWriter writer_;
  std::deque<Queued> queue_;
  bool closing_ = false;
  std::atomic<size_t> queued_bytes_ = 0;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  uint64_t calls_sent_ = 0;

  std::mutex sink_mutex_;
  std::shared_ptr<FrameSink> sink_;
  std::deque<Bytes> unclaimed_;
  bool closed_unclaimed_ = false;
};

template <class Fill>
void RingChannel::write(RecordHeader header, Fill& fill) {
  if (uint8_t* room = reserve(header.payload_bytes)) {
    fill(room);
    publish(header);
  } else {
    Bytes payload(header.payload_bytes);
    fill(payload.data());
    queue(header, std::move(payload));
  }
}

template <class Fill>
Result<uint64_t> RingChannel::call(std::unique_ptr<PendingReply> pending, size_t payload_bytes,
                                   Fill fill) {
  if (payload_bytes > message_bytes_max) return error(Code::invalid, "a call over the size limit");
  const std::lock_guard lock{mutex_};
  if (!is_open() || closing_) return error(Code::unavailable, "the connection is closed");
  uint32_t index = static_cast<uint32_t>(slots_.size());
  if (free_slots_.empty()) {
    slots_.emplace_back();
  } else {
    index = free_slots_.back();
    free_slots_.pop_back();
  }
  Slot& slot = slots_[index];
  slot.pending = std::move(pending);
  slot.ordinal = ++calls_sent_;
  const uint64_t number = uint64_t{++slot.generation} << 32 | index;
  const RecordHeader header{static_cast<uint32_t>(payload_bytes), call_request, 0, number};
  write(header, fill);
  return number;
}

template <class Fill>
void RingChannel::reply(uint64_t call, size_t payload_bytes, Fill fill) {
  const std::lock_guard lock{mutex_};
  if (!is_open()) return;
  const RecordHeader header{static_cast<uint32_t>(payload_bytes), call_reply, 0, call};
  write(header, fill);
}

}  // namespace troupe::transport
