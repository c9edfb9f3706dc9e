#include "transport/async.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/multiple_exceptions.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>

namespace troupe {
namespace asio = boost::asio;
using boost::system::error_code;

namespace {

template <class Handler>
struct HandlerWaiter final : Event::Waiter {
  HandlerWaiter(Handler h, const Executor& executor)
      : handler(std::move(h)), handler_executor(asio::get_associated_executor(handler, executor)) {}

  void complete(error_code outcome) override {
    asio::get_associated_cancellation_slot(handler).clear();
    asio::post(handler_executor,
               [moved = std::move(handler), outcome]() mutable { std::move(moved)(outcome); });
  }

  Handler handler;
  asio::associated_executor_t<Handler, Executor> handler_executor;
};

}  // namespace

Event::~Event() {
  TROUPE_ASSERT(waiters_.empty(), "an event is destroyed before its waiters");
}

void Event::set() {
  set_ = true;
  pulse();
}

void Event::pulse() {
  ++pulses_;
  auto woken = std::exchange(waiters_, {});
  for (auto& waiter : woken) waiter->complete({});
}

Async<void> Event::wait_beyond(uint64_t seen) {
  if (set_ || pulses_ != seen) co_return;
  auto start = [this](auto handler) {
    using Handler = decltype(handler);
    auto slot = asio::get_associated_cancellation_slot(handler);
    waiters_.push_back(std::make_unique<HandlerWaiter<Handler>>(std::move(handler), executor_));
    if (!slot.is_connected()) return;
    const auto position = std::prev(waiters_.end());
    slot.assign([this, position](asio::cancellation_type) {
      auto waiter = std::move(*position);
      waiters_.erase(position);
      waiter->complete(asio::error::operation_aborted);
    });
  };
  auto token = asio::use_awaitable;
  co_await asio::async_initiate<const asio::use_awaitable_t<>, void(error_code)>(start, token);
}

Async<Event::Winner> Event::race(Event& first, Event* second, TimerClock* clock, Instant deadline) {
  if (first.set_) co_return Winner::first;
  if (second != nullptr && second->set_) co_return Winner::second;
  // Lives in this frame, which outlasts every waiter: they leave before it goes on.
  struct Race {
    struct Link final : Waiter {
      Link(Race& of, size_t number) : race(of), which(number) {}
      void complete(error_code outcome) override { race.end(which, outcome); }
      Race& race;
      const size_t which;
    };
    void enter(size_t which, Event& event) {
      event.waiters_.push_back(std::make_unique<Link>(*this, which));
      events[which] = &event;
      positions[which] = std::prev(event.waiters_.end());
    }
    void end(size_t which, error_code outcome) {
      if (!completion) return;
      winner = which;
      for (size_t i = 0; i < 2; ++i) {
        // The winner's event has let go of its waiter.
        if (i != which && events[i] != nullptr) events[i]->waiters_.erase(positions[i]);
        events[i] = nullptr;
      }
      const auto ends = std::move(completion);
      ends->complete(outcome);
    }
    Event* events[2] = {};
    std::list<std::unique_ptr<Waiter>>::iterator positions[2];
    std::unique_ptr<Waiter> completion;
    size_t winner = 0;  // An event's number, or one of these.
    enum : size_t { by_deadline = 2, by_cancellation = 3 };
  } race;
  auto start = [&](auto handler) {
    using Handler = decltype(handler);
    auto slot = asio::get_associated_cancellation_slot(handler);
    race.completion = std::make_unique<HandlerWaiter<Handler>>(std::move(handler), first.executor_);
    race.enter(0, first);
    if (second != nullptr) race.enter(1, *second);
    if (!slot.is_connected()) return;
    slot.assign([&race](asio::cancellation_type) {
      race.end(Race::by_cancellation, asio::error::operation_aborted);
    });
  };
  struct Timer {
    TimerClock* clock;
    TimerClock::TimerId id = 0;
    ~Timer() {
      if (id != 0) clock->cancel(id);
    }
  } timer{clock};
  if (clock != nullptr && deadline != Instant::max()) {
    timer.id = clock->call_at(deadline, [&race] { race.end(Race::by_deadline, {}); });
  }
  auto token = asio::as_tuple(asio::use_awaitable);
  const auto [outcome] =
      co_await asio::async_initiate<decltype(token), void(error_code)>(start, token);
  if (outcome) throw boost::system::system_error{outcome};
  co_return race.winner == Race::by_deadline ? Winner::deadline
                                             : (race.winner == 0 ? Winner::first : Winner::second);
}

Scope::Scope(Executor executor)
    : executor_(std::move(executor)),
      running_(std::make_shared<std::list<Running>>()),
      idle_(executor_) {}

Scope::~Scope() {
  TROUPE_ASSERT(running_->empty(), "a scope is destroyed before its coroutines");
}

void Scope::cancel() {
  cancelled_ = true;
  // Never in the midst of a coroutine's first run: one that is cancelled there and then ends
  // without having been suspended is lost by co_spawn of Asio 1.81, which throws where it would
  // report the end.
  asio::post(executor_, [running = running_] {
    for (Running& one : *running) one.signal.emit(asio::cancellation_type::terminal);
  });
}

Async<void> Scope::join() {
  while (!running_->empty()) co_await idle_.wait();
}

Async<void> Scope::stop() {
  cancel();
  co_await join();
}

namespace {

// Whether a coroutine ended by cancellation. Of `a || b` both sides throw, in one envelope.
bool is_cancellation(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const boost::system::system_error& caught) {
    return caught.code() == asio::error::operation_aborted;
  } catch (const asio::multiple_exceptions& caught) {
    return is_cancellation(caught.first_exception());
  } catch (...) {
    return false;
  }
}

}  // namespace

void spawn(Scope& scope, Async<void> coroutine) {
  if (scope.cancelled_) return;  // Destroying the coroutine unwinds it before its first step.
  const auto position = scope.running_->emplace(scope.running_->end());
  auto ended = [&scope, position](const std::exception_ptr& thrown) {
    TROUPE_ASSERT(!thrown || is_cancellation(thrown), "a coroutine threw");
    scope.running_->erase(position);
    if (scope.running_->empty()) scope.idle_.pulse();
  };
  // co_spawn would begin it right here when called on the loop's thread, in the midst of a caller
  // that may hold iterators into what it changes.
  asio::post(scope.executor_, [executor = scope.executor_, slot = position->signal.slot(), ended,
                               coroutine = std::move(coroutine)]() mutable {
    asio::co_spawn(executor, std::move(coroutine), asio::bind_cancellation_slot(slot, ended));
  });
}

Async<void> sleep_until(TimerClock& clock, Instant when) {
  // The event lives in this frame, so an unwinding sleeper takes its timer along.
  Event due{co_await asio::this_coro::executor};
  struct Timer {
    TimerClock& clock;
    TimerClock::TimerId id;
    ~Timer() { clock.cancel(id); }
  } timer{clock, clock.call_at(when, [&due] { due.set(); })};
  co_await due.wait();
}

Async<void> sleep_for(TimerClock& clock, Duration duration) {
  co_await sleep_until(clock, clock.now() + duration);
}

Async<bool> wait_until(TimerClock& clock, Instant deadline, Event& event) {
  const auto winner = co_await Event::race(event, nullptr, &clock, deadline);
  co_return winner == Event::Winner::first;
}

Async<bool> wait_either(Event& first, Event& second) {
  const auto winner = co_await Event::race(first, &second, nullptr, Instant::max());
  co_return winner == Event::Winner::first;
}

}  // namespace troupe
