// Group commit of a loop: all commits that arrive in one turn of the loop, or while an earlier
// write is being synced, share one write and one sync.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/status.h"
#include "metadata/replication.h"
#include "metadata/store.h"
#include "transport/async.h"

namespace troupe {

struct GroupCommitOptions {
  uint64_t epoch = 0;  // The leadership term of the head that commits; one GroupCommit a term.
  size_t pending_bytes_max = size_t{64} << 20;
  Replication* replication = nullptr;  // Null: there are no copies. Outlives the GroupCommit.
};

// Lives on its loop: call it there only. The store must outlive the last write, so co_await stop()
// before you destroy the two. Destroying it earlier, as a crash does, drops what was not begun and
// never resumes those who wait.
class GroupCommit {
 public:
  // Store::commit runs on `blocking`, one call at a time; in simulation that is the loop itself.
  GroupCommit(Executor loop, Store& store, Executor blocking, const GroupCommitOptions& options);
  ~GroupCommit();
  GroupCommit(const GroupCommit&) = delete;
  GroupCommit& operator=(const GroupCommit&) = delete;

  // Durable on OK, here and in all copies that count. Commits become durable in the order in which
  // they were awaited. A failed write fails all that shared it, and all that come after (see
  // Store::health). Cancellation and deadlines do not cut the wait short: a caller that unwound
  // while its rows reached the disk would leave the head's memory behind its metadata. What follows
  // the co_await up to the next one runs in any case. Errors: those of Store::commit and of
  // Replication::confirm, exhausted (over pending_bytes_max), unavailable (stopped).
  Async<Status> commit(Batch batch);

  // Takes no more commits and waits for those it has.
  Async<void> stop();

  // Syncs done so far; commits per sync is the point of this class.
  uint64_t syncs() const;

 private:
  struct State;
  std::shared_ptr<State> state_;  // Shared with the write under way on `blocking`.
};

}  // namespace troupe
