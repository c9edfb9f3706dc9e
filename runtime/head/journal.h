// The head's promises on their way to the disk.
//
// The rule of every mutation: it is applied to memory and written here in one turn of the loop;
// whatever leaves the head because of it (an answer, a call to a worker) waits for settled() first.
// A failed commit breaks the head for good: memory now says more than the disk. So none is tried
// that a full disk would fail: below a reserve nothing new is promised, and what follows from
// events (a node's death, say) waits in memory, told to nobody, when even that is used up. Reads go
// on.
#pragma once

#include <functional>

#include "metadata/group_commit.h"
#include "metadata/store.h"
#include "transport/environment.h"

namespace troupe::head {

// What must be free on the disk for a new promise. A store that works writes its log and a few
// small tables: some 30 MiB before old files go.
inline constexpr uint64_t room_for_promises_bytes = uint64_t{64} << 20;

class Journal {
 public:
  // All outlive the journal. Call stop() before destroying it.
  Journal(transport::Environment environment, Scope& scope, Store& store, uint64_t epoch,
          Replication* replication = nullptr);

  using Ticket = uint64_t;
  // Queues the batch behind all earlier ones; the ticket says when it is durable.
  Ticket write(Batch batch);
  // Waits until this write, and all before it, are durable. Errors: those of Store::commit; none of
  // what was written since the last good commit may then be told to anyone. Unavailable: another
  // head may lead by now, and have promised other things.
  Async<Status> settled(Ticket ticket);
  // For what this head does, and answers to nobody: whom it tells checks the epoch. Waits until the
  // write is durable alone. Errors: health().
  Async<Status> durable(Ticket ticket);
  // Of the last write. Whoever says that something is not there, or is taken, waits for it: what
  // took or removed it may not be durable yet.
  Ticket latest() const { return written_; }

  // Whether what happened may be noted. Errors: unavailable (a commit failed), exhausted (the disk
  // lags behind by too much).
  Status keeps_up() const;
  // Whether more may be promised. Errors: unavailable (a commit failed), exhausted (the disk is
  // full, or would be with so many bytes of files beside the store, or lags behind by too much).
  Status admits(uint64_t file_bytes = 0) const;
  // Set when a commit failed: the process should end, and a new one load what is durable.
  Event& broken() { return broken_; }

  Async<void> stop();

 private:
  Async<void> flush();
  Async<void> gather();
  Async<void> await_room();
  void plan_next(Duration sync, Ticket answered);

  TimerClock& clock_;
  Scope& scope_;
  const Replication* const replication_;
  const Store& store_;
  GroupCommit group_;
  Batch gathered_;
  Ticket first_ = 0;  // Nothing is told before it is durable, not even what was there.
  Ticket written_ = 0;
  Ticket durable_ = 0;
  bool flushing_ = false;
  Status health_ = ok();
  Event progress_;
  // Of gather().
  Instant answered_at_;
  Ticket back_ = 0;  // With this ticket most of those who were answered then have come back.
  Duration back_after_ = Duration::max();
  Ticket wanted_ = 0;  // So many writes in the next sync, if they come until...
  Instant gather_until_;
  Ticket awaited_ = 0;  // The last of them, if it is waited for.
  Event arrived_;
  Event broken_;
};

}  // namespace troupe::head
