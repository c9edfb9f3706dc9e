// The caller's end of a generator: items that a task or call makes while it runs.
#pragma once

#include <memory>
#include <optional>

#include "transport/peer.h"

namespace troupe::client {

class ObjectDirectory;

// While `keep_alive` lives, what made the item keeps the objects alive that it has refs to: drop it
// once they are read.
struct Item {
  Bytes bytes;
  std::shared_ptr<const void> keep_alive;  // Null: there are none.
};

// On the loop. `objects` outlives it, and its items.
class ItemSource {
 public:
  ItemSource(const Executor& loop, ObjectDirectory& objects) : objects_(objects), changed_(loop) {}

  // The next item; nullopt at the orderly end. What the call failed with comes after the items that
  // were delivered. One reader at a time.
  Async<Result<std::optional<Item>>> next();

  // --- Of whoever makes the call.
  // It was sent: its items come here, until it is sent anew or settled.
  void begin(std::shared_ptr<transport::IncomingStream> stream);
  // Its outcome; the first counts.
  void settle(Status outcome);

 private:
  ObjectDirectory& objects_;
  std::shared_ptr<transport::IncomingStream> stream_;
  std::optional<Status> outcome_;
  Event changed_;
};

}  // namespace troupe::client
