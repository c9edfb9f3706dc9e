// The caller's end of a generator: items that a task or call makes while it runs.
#pragma once

#include <memory>
#include <optional>

#include "transport/peer.h"

namespace troupe::client {

// On the loop.
class ItemSource {
 public:
  explicit ItemSource(const Executor& loop) : changed_(loop) {}

  // The next item; nullopt at the orderly end. What the call failed with comes after the items that
  // were delivered. One reader at a time.
  Async<Result<std::optional<Bytes>>> next();

  // --- Of whoever makes the call.
  // It was sent: its items come here, until it is sent anew or settled.
  void begin(std::shared_ptr<transport::IncomingStream> stream);
  // Its outcome; the first counts.
  void settle(Status outcome);

 private:
  std::shared_ptr<transport::IncomingStream> stream_;
  std::optional<Status> outcome_;
  Event changed_;
};

}  // namespace troupe::client
