// What the two ends of one stream say to each other: frames, which belong to the loop, and calls,
// which do not. Over TLS a call is encrypted and sent by the thread that makes it, and its reply is
// read by the thread that waits for it: so a round trip takes one wake-up a side. The rest is
// written and read by the loop.
//
// A side that closes says first how many calls it took, and takes no more: the others did not
// begin, and may be made elsewhere. What it has said before is read though nothing can be sent to
// it.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>

#include "transport/byte_stream.h"
#include "transport/call_channel.h"

namespace troupe::transport {

// Belongs to the loop but for what its bases say.
class SocketChannel final : public CallChannel, public ReadSource {
 public:
  // `port` may be null: then it makes and takes no calls. start() comes next.
  SocketChannel(RingPort* port, Executor loop, std::unique_ptr<ByteStream> stream);
  ~SocketChannel() override;
  // The writer coroutine lives in `scope`.
  void start(Scope& scope);

  // From now on calls are taken: the peer's hello was accepted. Errors: cancelled.
  Status accept_calls(ProcessId peer);
  bool can_call() const { return port_ != nullptr && stream_->is_direct(); }

  // --- As in Connection.
  Status send_frame(Frame frame);
  Async<Result<Frame>> receive();
  void land_bulk(std::function<Landing(const protocol::FrameHeader&)> landing_of) {
    landing_of_ = std::move(landing_of);
  }
  bool is_writable() const;
  Async<void> writable();
  // What is queued is sent first.
  void close();
  // Closes at once. Nobody is called from here later.
  void abandon();

  // --- ReadSource
  bool take() override;
  Look look() override;
  void leave() override;
  int descriptor() const override { return stream_->descriptor(); }
  void stop() override { abandon(); }

 private:
  // On the wire: header length, body length (both little-endian), header, body. A call has no
  // header, and a RecordHeader begins its body.
  struct Prefix {
    uint32_t header_bytes = 0;
    uint32_t body_bytes = 0;
  };
  static_assert(sizeof(Prefix) == 8);
  static constexpr size_t record_head_bytes = sizeof(Prefix) + sizeof(RecordHeader);

  // In the order in which they were said.
  struct Outgoing {
    Frame frame;
    Bytes records;  // Not empty: calls, and no frame.
    uint64_t last_call = 0;
  };
  struct Batch {
    Bytes bytes;
    std::vector<FileDescriptor> descriptors;
    Bytes large;
    Bulk bulk;
    size_t queued_bytes = 0;
  };

  // --- Sending.
  uint8_t* reserve(size_t payload_bytes) override;
  void publish(RecordHeader header) override;
  void queue(RecordHeader header, Bytes payload) override;
  // False: the connection is broken.
  bool send_record();
  void queue_records(BytesView bytes);
  void say_goodbye();
  void fail_writing();
  void wake_writer();
  static Async<void> write_all(std::shared_ptr<SocketChannel> self);
  // With the lock held; false: there is nothing to write.
  bool take_batch(Batch& batch);
  void stop_writing();

  // --- Reading.
  enum class Reader : uint8_t { loop, nobody, thread };
  enum class Next : uint8_t { more, frame, broken };
  bool claim_for_loop();
  // Handles the calls at the buffer's front; says what is behind them.
  Next handle_records(CallHandler* handler);
  // Whether it is for the handler.
  bool takes(const RecordHeader& header, BytesView payload);
  Status make_room();
  Async<Status> fill(size_t count);
  Async<Result<Frame>> receive_frame(Prefix prefix);
  Async<Status> receive_large_record(Prefix prefix);
  size_t take_buffered(std::span<uint8_t> out);
  Async<Result<Bytes>> receive_bytes(size_t count);
  Async<Result<Bulk>> receive_bulk(protocol::FrameHeader header);
  Async<Result<size_t>> read_into(std::span<uint8_t> room);
  // Tells everybody who waits for replies, once.
  void end();
  CallHandler* handler() const { return port_ != nullptr ? port_->handler() : nullptr; }
  std::shared_ptr<SocketChannel> self() {
    return std::static_pointer_cast<SocketChannel>(shared_from_this());
  }

  const Executor loop_;
  const std::unique_ptr<ByteStream> stream_;

  // --- Guarded by the channel's lock.
  std::deque<Outgoing> outgoing_;
  Bytes record_;              // The one that is being made.
  uint64_t calls_begun_ = 0;  // Those that may have left.
  // Those that the peer took, once it has said so.
  uint64_t peer_took_ = std::numeric_limits<uint64_t>::max();
  bool loop_writes_ = false;
  bool write_failed_ = false;  // But what the peer sent before may still be read.
  bool writer_woken_ = false;

  // --- The loop's.
  Event outgoing_changed_;
  Event drained_;
  bool write_ended_ = false;
  bool left_ = false;  // By close().
  std::function<Landing(const protocol::FrameHeader&)> landing_of_;

  std::mutex reader_mutex_;  // Guards who reads; who does owns what follows.
  std::condition_variable reader_left_;
  Reader reader_ = Reader::loop;
  bool accepts_calls_ = false;
  bool told_closed_ = false;
  // Of the peer's calls; with the bit, those that come now are not taken any more.
  static constexpr uint64_t leaves = uint64_t{1} << 63;
  std::atomic<uint64_t> calls_taken_ = 0;
  bool over_ = false;  // What a thread found: only the loop can go on, and it has not yet.
  // Not cleared: most connections touch little of it.
  const std::unique_ptr<uint8_t[]> memory_;
  const std::span<uint8_t> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  std::vector<FileDescriptor> descriptors_;
};

}  // namespace troupe::transport
