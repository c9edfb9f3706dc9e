#include "head/journal.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <limits>
#include <utility>

#include "base/log.h"

namespace troupe::head {

namespace {
// Past it nothing new is promised. What follows from events (a node's death, say) is written
// whatever its size: memory says it already.
constexpr size_t gathered_bytes_max = size_t{32} << 20;
// A disk that syncs faster is not waited for: the head's own work then costs as much.
constexpr Duration slow_sync = std::chrono::milliseconds(1);
// What must be free for the rest.
constexpr uint64_t room_for_events_bytes = uint64_t{32} << 20;
constexpr Duration room_poll = std::chrono::milliseconds(100);
// However long a sync took once, nobody waits longer than this for those who were answered.
constexpr Duration patience_max = std::chrono::milliseconds(5);
}  // namespace

Journal::Journal(transport::Environment environment, Scope& scope, Store& store, uint64_t epoch,
                 Replication* replication)
    : clock_(environment.clock),
      scope_(scope),
      replication_(replication),
      store_(store),
      group_(environment.loop, store, environment.blocking,
             GroupCommitOptions{epoch, std::numeric_limits<size_t>::max(), replication}),
      progress_(environment.loop),
      arrived_(environment.loop),
      broken_(environment.loop) {
  // What this head found in its tables may be on no other one that may lead next: the head before
  // had not promised it yet. All of it is there once they have this head's first write.
  if (replication_ != nullptr) first_ = write(Batch{});
}

Journal::Ticket Journal::write(Batch batch) {
  gathered_.append(std::move(batch));
  const Ticket ticket = ++written_;
  if (ticket == back_) back_after_ = clock_.now() - answered_at_;
  if (ticket == awaited_) arrived_.pulse();
  if (!flushing_) {
    flushing_ = true;
    spawn(scope_, flush());
  }
  return ticket;
}

// One write at a time; what comes meanwhile is gathered for the next.
Async<void> Journal::flush() {
  // At the end of this turn of the loop, so that all of the turn's writes share the sync.
  co_await boost::asio::post(scope_.executor(), boost::asio::use_awaitable);
  while (durable_ < written_ && health_) {
    co_await gather();
    co_await await_room();
    const Ticket through = written_;
    const Instant began = clock_.now();
    Batch batch = std::exchange(gathered_, Batch{});
    Status committed = co_await group_.commit(std::move(batch));
    if (committed) {
      const Ticket answered = through - durable_;
      durable_ = through;
      plan_next(clock_.now() - began, answered);
    } else {
      health_ = std::move(committed);
      log::error("head_journal_failed", {{"why", health_.error()}});
      broken_.set();
    }
    progress_.pulse();
  }
  flushing_ = false;
}

// Clients that were answered and ask again at once come a moment after a sync has begun, and wait
// for all of it before their own: half of them in each. On a slow disk it pays to wait for them, as
// PostgreSQL's commit_delay does, if they were back within half a sync the last time. Else the head
// had better work while the disk does.
void Journal::plan_next(Duration sync, Ticket answered) {
  const Instant now = clock_.now();
  const Duration patience = std::min<Duration>(sync / 2, patience_max);
  const bool pays = sync >= slow_sync && back_after_ <= patience;
  wanted_ = pays ? answered + (written_ - durable_) : 0;
  gather_until_ = now + patience;
  answered_at_ = now;
  back_ = written_ + (answered * 9 + 9) / 10;
  back_after_ = Duration::max();
}

Async<void> Journal::gather() {
  awaited_ = durable_ + wanted_;
  while (written_ < awaited_ && clock_.now() < gather_until_) {
    co_await wait_until(clock_, gather_until_, arrived_);
  }
  awaited_ = 0;
}

Async<void> Journal::await_room() {
  bool is_noted = false;
  for (;;) {
    const Status room = store_.room(gathered_.bytes() + room_for_events_bytes);
    if (room) break;
    if (!std::exchange(is_noted, true)) {
      log::error("head_disk_full", {{"why", room.error()}, {"waits_bytes", gathered_.bytes()}});
    }
    co_await sleep_for(clock_, room_poll);
  }
  if (is_noted) log::info("head_disk_has_room", {{"waits_bytes", gathered_.bytes()}});
}

Async<Status> Journal::durable(Ticket ticket) {
  ticket = std::max(ticket, first_);
  while (durable_ < ticket && health_) co_await progress_.wait();
  if (durable_ < ticket) co_return health_;
  co_return ok();
}

Async<Status> Journal::settled(Ticket ticket) {
  TROUPE_CO_CHECK(co_await durable(ticket));
  if (replication_ == nullptr || replication_->holds()) co_return ok();
  co_return error(Code::unavailable, "this head may not lead any more");
}

Status Journal::keeps_up() const {
  if (!health_) {
    return error(Code::unavailable, "the head cannot write its store and must be restarted: " +
                                        health_.error().message());
  }
  if (gathered_.bytes() > gathered_bytes_max) {
    return error(Code::exhausted, "the head's disk is behind: too much waits to be written")
        .after(std::chrono::milliseconds(100));
  }
  return ok();
}

Status Journal::admits(uint64_t file_bytes) const {
  TROUPE_CHECK(keeps_up());
  if (Status room = store_.room(room_for_promises_bytes + file_bytes); !room) {
    return std::move(room).error().context("the head promises nothing new");
  }
  return ok();
}

Async<void> Journal::stop() {
  co_await group_.stop();
}

}  // namespace troupe::head
