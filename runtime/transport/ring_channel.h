// One peer process at the other end of a pair of rings.
#pragma once

#include <deque>
#include <memory>
#include <mutex>

#include "transport/call_channel.h"

namespace troupe::transport {

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
class RingChannel final : public CallChannel {
 public:
  RingChannel(RingPort& port, RingMemory memory, Doorbell peer, RingPort::Offer& offer);
  ~RingChannel() override;

  void begin(uint64_t ordinal) override;
  bool shows_begun() const override { return true; }
  // Sends what is queued, then closes.
  void close();
  // Closes at once.
  void abandon();

  // --- Of the connection that speaks frames over this channel (ring_connection.cc).
  Status send_frame(Bytes payload);
  // What came before this call comes at once.
  void set_frame_sink(std::shared_ptr<FrameSink> sink);

 private:
  friend class RingPort;
  struct Queued {
    RecordHeader header;
    Bytes payload;
    size_t written = 0;
  };

  uint8_t* reserve(size_t payload_bytes) override;
  void publish(RecordHeader header) override;
  void queue(RecordHeader header, Bytes payload) override;

  // Reads some of what has arrived; true if there may be more.
  bool receive(CallHandler* handler);
  void handle_record(CallHandler* handler, RecordHeader header, BytesView payload);
  void flush();
  void mark_closed();
  void tell_closed(CallHandler* handler);

  RingMemory memory_;
  Doorbell peer_;
  const int side_;
  const uint32_t index_;
  const uint32_t peer_index_;

  // --- The reading thread's.
  RingReader reader_;
  Bytes scratch_;
  Bytes partial_;
  bool told_closed_ = false;

  // --- Guarded by the channel's lock.
  RingWriter writer_;
  std::deque<Queued> queue_;

  std::mutex sink_mutex_;
  std::shared_ptr<FrameSink> sink_;
  std::deque<Bytes> unclaimed_;
  bool closed_unclaimed_ = false;
};

}  // namespace troupe::transport
