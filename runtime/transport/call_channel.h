// Calls to one peer process, and from it, that are made and answered on any thread: through a pair
// of rings within a node (ring_channel.h), over TLS between nodes (socket_channel.h).
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "protocol/frame.h"
#include "transport/adaptive_mutex.h"
#include "transport/ring.h"
#include "transport/ring_port.h"

namespace troupe::transport {

// Who waits for the reply of a call. Exactly one of these is called, once, on whichever thread
// reads for the process, or on the thread that closes the channel; then it is destroyed. Neither
// may block.
class PendingReply {
 public:
  virtual ~PendingReply() = default;
  // Private memory, valid during the call.
  virtual void reply(BytesView payload) = 0;
  // The peer is gone. `begun`: the call may have run; else it surely has not.
  virtual void lost(bool begun) = 0;
};

// Thread-safe.
class CallChannel : public std::enable_shared_from_this<CallChannel> {
 public:
  enum Kind : uint16_t {
    frame = 1,
    call_request = 2,
    call_reply = 3,
    call_cancel = 4,
    call_recall = 5,
    call_goodbye = 6,  // The sender leaves, and took so many calls (8 bytes, little-endian).
  };

  virtual ~CallChannel();

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
  // One more call of the peer's has arrived: its ordinal.
  uint64_t count_call() {
    const uint64_t ordinal = calls_received_.load(std::memory_order_relaxed) + 1;
    calls_received_.store(ordinal, std::memory_order_relaxed);
    return ordinal;
  }
  // The call with this ordinal begins: where the peer can still see it when this process has died,
  // it knows that the call may have run.
  virtual void begin(uint64_t ordinal) { (void)ordinal; }
  // Whether that can be seen: if not, every call that was sent may have run when it is lost.
  virtual bool shows_begun() const { return false; }
  // Answers a call of the peer's. On a closed channel there is nobody to answer.
  template <class Fill>
  void reply(uint64_t call, size_t payload_bytes, Fill fill);

  // What waits to be sent.
  size_t queued_bytes() const { return queued_bytes_.load(std::memory_order_relaxed); }

  // What the one who answers calls keeps beside the channel.
  std::shared_ptr<void> attachment;

 protected:
  // The peer refuses more.
  static constexpr size_t message_bytes_max =
      protocol::header_bytes_max + protocol::body_bytes_max + 64;

  // `source`: this, where who waits for its replies must read elsewhere than in the rings.
  explicit CallChannel(RingPort* port, ReadSource* source) : port_(port), source_(source) {}

  // --- With the lock held.
  // A record's room, or null if it must be queued.
  virtual uint8_t* reserve(size_t payload_bytes) = 0;
  // What was written there goes.
  virtual void publish(RecordHeader header) = 0;
  virtual void queue(RecordHeader header, Bytes payload) = 0;
  size_t calls_pending() const { return slots_.size() - free_slots_.size(); }

  // --- Of the thread that reads.
  void handle(CallHandler* handler, RecordHeader header, BytesView payload);
  // Everybody who waits is told; those of the first `begun` calls that theirs may have run.
  void fail_pending(uint64_t begun);

  // Of the peer's calls, as many as the reading thread has taken.
  uint64_t calls_received() const { return calls_received_.load(std::memory_order_relaxed); }

  RingPort* const port_;
  ProcessId process_;
  std::atomic<bool> closed_ = false;
  std::atomic<size_t> queued_bytes_ = 0;

  AdaptiveMutex mutex_;   // Guards what follows, and what a kind of channel writes to.
  bool closing_ = false;  // Nothing more is sent but what is queued.
  uint64_t calls_sent_ = 0;
  uint64_t replies_sent_ = 0;

 private:
  struct Slot {
    std::unique_ptr<PendingReply> pending;
    uint32_t generation = 0;
    uint64_t ordinal = 0;
  };
  template <class Fill>
  void write(RecordHeader header, Fill& fill);
  std::unique_ptr<PendingReply> take(uint64_t call);

  ReadSource* const source_;
  std::atomic<uint64_t> calls_received_ = 0;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
};

template <class Fill>
void CallChannel::write(RecordHeader header, Fill& fill) {
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
Result<uint64_t> CallChannel::call(std::unique_ptr<PendingReply> pending, size_t payload_bytes,
                                   Fill fill) {
  if (payload_bytes > message_bytes_max) return error(Code::invalid, "a call over the size limit");
  const std::lock_guard lock{mutex_};
  if (!is_open() || closing_) return error(Code::unavailable, "the connection is closed");
  port_->read_next(source_);
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
void CallChannel::reply(uint64_t call, size_t payload_bytes, Fill fill) {
  const std::lock_guard lock{mutex_};
  if (!is_open()) return;
  ++replies_sent_;
  const RecordHeader header{static_cast<uint32_t>(payload_bytes), call_reply, 0, call};
  write(header, fill);
}

}  // namespace troupe::transport
