#include "metadata/group_commit.h"

#include <atomic>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <type_traits>
#include <utility>
#include <vector>

namespace troupe {
namespace asio = boost::asio;

namespace {

// Someone who waits; hides the handler's type.
class Waiter {
 public:
  virtual ~Waiter() = default;
  // Resumes it on its own executor, never inside this call.
  virtual void resume(Status status) = 0;
};

template <class Handler>
class HandlerWaiter final : public Waiter {
 public:
  HandlerWaiter(Handler handler, const Executor& loop)
      : handler_(std::move(handler)), executor_(asio::get_associated_executor(handler_, loop)) {}

  void resume(Status status) override {
    asio::post(executor_, [handler = std::move(handler_), status = std::move(status)]() mutable {
      std::move(handler)(std::move(status));
    });
  }

 private:
  Handler handler_;
  asio::associated_executor_t<Handler, Executor> executor_;
};

using Waiters = std::vector<std::unique_ptr<Waiter>>;

template <class Handler>
std::unique_ptr<Waiter> make_waiter(Handler&& handler, const Executor& loop) {
  return std::make_unique<HandlerWaiter<std::decay_t<Handler>>>(std::forward<Handler>(handler),
                                                                loop);
}

void resume_all(Waiters& waiters, const Status& status) {
  for (const auto& waiter : waiters) waiter->resume(status);
  waiters.clear();
}

}  // namespace

// Touched on the loop only, but for `abandoned` and what write() reads.
struct GroupCommit::State : std::enable_shared_from_this<State> {
  State(Executor loop_executor, Store& target, Executor blocking_executor,
        const GroupCommitOptions& given)
      : loop(std::move(loop_executor)),
        store(target),
        blocking(std::move(blocking_executor)),
        options(given) {}

  void add(Batch batch, std::unique_ptr<Waiter> waiter);
  void begin();
  void write();
  void written(const Status& status);
  void finish(const Status& status);
  void abandon();

  const Executor loop;
  Store& store;
  const Executor blocking;
  const GroupCommitOptions options;

  Batch gathering;  // The group that has not begun.
  Waiters gathering_waiters;
  Batch writing;  // The group under way; from begin() to finish() write() alone reads it.
  Waiters writing_waiters;
  bool busy = false;  // begin() is posted or a group is under way.
  bool stopped = false;
  Waiters stop_waiters;
  uint64_t syncs = 0;
  std::atomic<bool> abandoned = false;
};

void GroupCommit::State::add(Batch batch, std::unique_ptr<Waiter> waiter) {
  if (stopped) return waiter->resume(error(Code::unavailable, "the head is stopping"));
  // Checked here, not in the store, so that a bad batch fails alone and not its whole group.
  if (Status valid = check_batch(batch); !valid) return waiter->resume(std::move(valid));
  if (gathering.bytes() + batch.bytes() > options.pending_bytes_max) {
    return waiter->resume(error(Code::exhausted, "too many commits wait for the disk"));
  }
  gathering.append(std::move(batch));
  gathering_waiters.push_back(std::move(waiter));
  if (busy) return;
  busy = true;
  // At the end of this turn of the loop, so that all of the turn's commits share the sync.
  asio::post(loop, [self = shared_from_this()] { self->begin(); });
}

void GroupCommit::State::begin() {
  if (abandoned) return;
  writing = std::exchange(gathering, Batch{});
  writing_waiters = std::exchange(gathering_waiters, Waiters{});
  if (options.replication != nullptr) options.replication->begin(writing);
  asio::post(blocking, [self = shared_from_this()] { self->write(); });
}

void GroupCommit::State::write() {
  if (abandoned) return;
  Status status = store.commit(writing, options.epoch);
  asio::post(loop, [self = shared_from_this(), status = std::move(status)] {  //
    self->written(status);
  });
}

void GroupCommit::State::written(const Status& status) {
  if (abandoned) return;
  if (!status || options.replication == nullptr) return finish(status);
  options.replication->confirm([self = shared_from_this()](const Status& copied) {  //
    self->finish(copied);
  });
}

void GroupCommit::State::finish(const Status& status) {
  if (abandoned) return;
  ++syncs;
  writing = Batch{};
  resume_all(writing_waiters, status);
  if (!gathering_waiters.empty()) return begin();
  busy = false;
  resume_all(stop_waiters, ok());
}

void GroupCommit::State::abandon() {
  abandoned = true;
  // `writing` stays: a write may be reading it.
  gathering_waiters.clear();
  writing_waiters.clear();
  stop_waiters.clear();
}

GroupCommit::GroupCommit(Executor loop, Store& store, Executor blocking,
                         const GroupCommitOptions& options)
    : state_(std::make_shared<State>(std::move(loop), store, std::move(blocking), options)) {}

GroupCommit::~GroupCommit() {
  state_->abandon();
}

Async<Status> GroupCommit::commit(Batch batch) {
  return asio::async_initiate<const asio::use_awaitable_t<>, void(Status)>(
      [](auto handler, std::shared_ptr<State> state, Batch mutations) {
        auto waiter = make_waiter(std::move(handler), state->loop);
        state->add(std::move(mutations), std::move(waiter));
      },
      asio::use_awaitable, state_, std::move(batch));
}

Async<void> GroupCommit::stop() {
  const std::shared_ptr<State> state = state_;
  state->stopped = true;
  Async<Status> idle = asio::async_initiate<const asio::use_awaitable_t<>, void(Status)>(
      [state](auto handler) {
        auto waiter = make_waiter(std::move(handler), state->loop);
        if (!state->busy) return waiter->resume(ok());
        state->stop_waiters.push_back(std::move(waiter));
      },
      asio::use_awaitable);
  (void)co_await std::move(idle);
}

uint64_t GroupCommit::syncs() const {
  return state_->syncs;
}

}  // namespace troupe
