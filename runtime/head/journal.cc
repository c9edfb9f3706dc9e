#include "head/journal.h"

#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <limits>

#include "base/log.h"

namespace troupe::head {

namespace {
// Past it nothing new is promised. What follows from events (a node's death, say) is written
// whatever its size: memory says it already.
constexpr size_t gathered_bytes_max = size_t{32} << 20;
}  // namespace

Journal::Journal(transport::Environment environment, Scope& scope, Store& store, uint64_t epoch)
    : scope_(scope),
      group_(environment.loop, store, environment.blocking,
             GroupCommitOptions{epoch, std::numeric_limits<size_t>::max()}),
      progress_(environment.loop),
      broken_(environment.loop) {}

Journal::Ticket Journal::write(Batch batch) {
  gathered_.append(std::move(batch));
  const Ticket ticket = ++written_;
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
    const Ticket through = written_;
    Batch batch = std::exchange(gathered_, Batch{});
    Status committed = co_await group_.commit(std::move(batch));
    if (committed) {
      durable_ = through;
    } else {
      health_ = std::move(committed);
      log::error("head_journal_failed", {{"why", health_.error()}});
      broken_.set();
    }
    progress_.pulse();
  }
  flushing_ = false;
}

Async<Status> Journal::settled(Ticket ticket) {
  while (durable_ < ticket && health_) co_await progress_.wait();
  if (durable_ >= ticket) co_return ok();
  co_return health_;
}

Status Journal::admits() const {
  if (!health_) {
    return error(Code::unavailable, "the head cannot write its store and must be restarted: " +
                                        health_.error().message());
  }
  if (gathered_.bytes() > gathered_bytes_max) {
    return error(Code::exhausted, "the head's disk is behind: too much waits to be written");
  }
  return ok();
}

Async<void> Journal::stop() {
  co_await group_.stop();
}

}  // namespace troupe::head
