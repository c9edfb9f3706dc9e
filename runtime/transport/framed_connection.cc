// Frames over a byte stream.
#include "transport/byte_stream.h"
#include "transport/socket_channel.h"

namespace troupe::transport {
namespace {

class FramedConnection final : public Connection {
 public:
  FramedConnection(Scope& scope, std::unique_ptr<ByteStream> stream, PeerIdentity peer,
                   RingPort* port)
      : channel_(std::make_shared<SocketChannel>(port, scope.executor(), std::move(stream))),
        peer_(std::move(peer)) {
    channel_->start(scope);
  }
  ~FramedConnection() override {
    channel_->land_bulk({});
    channel_->close();
  }

  const PeerIdentity& peer() const override { return peer_; }
  void land_bulk(std::function<Landing(const protocol::FrameHeader&)> landing_of) override {
    channel_->land_bulk(std::move(landing_of));
  }
  Status send(Frame frame) override { return channel_->send_frame(std::move(frame)); }
  bool is_writable() const override { return channel_->is_writable(); }
  Async<void> writable() override { return channel_->writable(); }
  void close() override { channel_->close(); }
  Async<Result<Frame>> receive() override { return channel_->receive(); }
  std::shared_ptr<CallChannel> channel() const override {
    return channel_->can_call() ? channel_ : nullptr;
  }
  Status accept_calls(ProcessId peer) override { return channel_->accept_calls(peer); }

 private:
  const std::shared_ptr<SocketChannel> channel_;
  const PeerIdentity peer_;
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

Result<size_t> ByteStream::try_read(std::span<uint8_t>) {
  return error(Code::internal, "not a stream for threads");
}
Result<size_t> ByteStream::try_write(std::span<const uint8_t>) {
  return error(Code::internal, "not a stream for threads");
}
Async<void> ByteStream::readable() {
  co_return;
}

std::unique_ptr<Connection> make_connection(Scope& scope, std::unique_ptr<ByteStream> stream,
                                            PeerIdentity peer, RingPort* port) {
  return std::make_unique<FramedConnection>(scope, std::move(stream), std::move(peer), port);
}

}  // namespace troupe::transport
