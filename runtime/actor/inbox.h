// Where a group's chunks wait for the thread that receives them.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <stop_token>

#include "actor/collectives.h"

namespace troupe::actor {

// Early chunks are kept within a bound per sender; a repeated one is dropped. Thread-safe; one
// thread takes.
class Inbox {
 public:
  enum class Outcome { taken, repeated, full };

  explicit Inbox(size_t sender_bytes_max = 8u << 20) : sender_bytes_max_(sender_bytes_max) {}

  // When `full`, nothing was kept: offer it again after `on_room` was called.
  Outcome offer(uint32_t rank, uint64_t tag, ReceivedChunk& chunk);
  // Called, on the taker's thread, when a full sender has room again. Before any offer.
  void on_room(std::function<void()> callback) { on_room_ = std::move(callback); }

  // Waits for the chunk with this tag. A chunk of another kind of operation in its place: invalid.
  // Errors: deadline_exceeded (after `budget`), cancelled (stop), what fail() gave.
  Result<ReceivedChunk> take(uint32_t rank, uint64_t tag, std::chrono::nanoseconds budget,
                             std::stop_token stop);
  // Ends the present and all later takes. The first error counts.
  void fail(Error error);

 private:
  struct Sender {
    std::map<uint64_t, ReceivedChunk> chunks;  // By tag.
    size_t bytes = 0;
    uint64_t next_tag = 0;     // Lower ones were taken.
    uint64_t awaited_tag = 0;  // Always accepted up to here, or nothing would make room.
    bool full = false;
  };
  static bool contradicts(uint64_t tag, const Sender& sender);

  const size_t sender_bytes_max_;
  std::function<void()> on_room_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::map<uint32_t, Sender> senders_;
  std::optional<Error> failed_;
};

}  // namespace troupe::actor
