// A connection whose frames travel through a pair of rings.
#pragma once

#include <memory>

#include "transport/network.h"
#include "transport/ring_channel.h"

namespace troupe::transport {

// File descriptors cannot be sent this way. `peer` is who the worker says is at the other end.
class RingConnection final : public Connection {
 public:
  RingConnection(Executor loop, std::shared_ptr<RingChannel> channel, PeerIdentity peer);
  ~RingConnection() override;

  const PeerIdentity& peer() const override { return peer_; }
  Async<Result<Frame>> receive() override;
  Status send(Frame frame) override;
  Async<void> writable() override;
  bool is_writable() const override;
  void close() override { channel_->close(); }
  std::shared_ptr<CallChannel> channel() const override { return channel_; }

 private:
  struct Inbox;
  std::shared_ptr<RingChannel> channel_;
  PeerIdentity peer_;
  std::shared_ptr<Inbox> inbox_;
};

}  // namespace troupe::transport
