#include "actor/inbox.h"

#include <fmt/format.h>

namespace troupe::actor {

namespace {

constexpr size_t chunk_bytes = 128;  // What an empty chunk costs, so that they are bounded too.

uint64_t operation_of(uint64_t tag) {
  return tag >> 32;
}
uint64_t kind_of(uint64_t tag) {
  return tag >> 24 & 0xff;
}

}  // namespace

Inbox::Outcome Inbox::offer(uint32_t rank, uint64_t tag, ReceivedChunk& chunk) {
  {
    const std::lock_guard lock{mutex_};
    Sender& sender = senders_[rank];
    if (tag < sender.next_tag || sender.chunks.contains(tag)) return Outcome::repeated;
    const size_t size = chunk.message.size() + chunk_bytes;
    if (sender.bytes + size > sender_bytes_max_ && tag > sender.awaited_tag) {
      sender.full = true;
      return Outcome::full;
    }
    sender.bytes += size;
    sender.chunks.emplace(tag, std::move(chunk));
  }
  changed_.notify_all();
  return Outcome::taken;
}

// The peer is in another kind of operation than this rank, or in a later one: its chunk for this
// one will never come.
bool Inbox::contradicts(uint64_t tag, const Sender& sender) {
  if (sender.chunks.empty()) return false;
  const uint64_t first = sender.chunks.begin()->first;
  return operation_of(first) == operation_of(tag) && kind_of(first) != kind_of(tag);
}

Result<ReceivedChunk> Inbox::take(uint32_t rank, uint64_t tag, std::chrono::nanoseconds budget,
                                  std::stop_token stop) {
  std::function<void()> room;
  ReceivedChunk chunk;
  {
    std::unique_lock lock{mutex_};
    Sender& sender = senders_[rank];
    sender.awaited_tag = tag;
    if (sender.full) {
      // The awaited chunk may be one that was refused before it was awaited.
      sender.full = false;
      lock.unlock();
      if (on_room_) on_room_();
      lock.lock();
    }
    const auto ready = [&] {
      return failed_ || sender.chunks.contains(tag) || contradicts(tag, sender);
    };
    const auto limit = std::chrono::steady_clock::now() + budget;
    changed_.wait_until(lock, stop, limit, ready);
    const auto found = sender.chunks.find(tag);
    if (found == sender.chunks.end()) {
      if (failed_) return *failed_;
      if (stop.stop_requested()) return error(Code::cancelled, "the actor is asked to stop");
      if (contradicts(tag, sender)) {
        return error(Code::invalid,
                     fmt::format("rank {} is in another operation than this rank: all ranks must "
                                 "call the same ones in the same order",
                                 rank));
      }
      return error(Code::deadline_exceeded, fmt::format("rank {} sent nothing within {} ms", rank,
                                                        budget / std::chrono::milliseconds(1)));
    }
    chunk = std::move(found->second);
    sender.chunks.erase(found);
    sender.bytes -= chunk.message.size() + chunk_bytes;
    sender.next_tag = tag + 1;
    if (sender.full) {
      sender.full = false;
      room = on_room_;
    }
  }
  if (room) room();
  return chunk;
}

void Inbox::fail(Error error) {
  {
    const std::lock_guard lock{mutex_};
    if (!failed_) failed_ = std::move(error);
  }
  changed_.notify_all();
}

}  // namespace troupe::actor
