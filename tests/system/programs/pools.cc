// A driver that checks limited handles, callers that wait for room, pools, signals and sleeps
// inside a real cluster: `pools NAME` exits 0 if NAME holds.
#include <signal.h>
#include <troupe/troupe.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <map>
#include <ranges>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace {

using namespace std::chrono_literals;
using troupe::ActorPool;
using troupe::ActorProcess;
using troupe::Code;
using troupe::Coroutine;
using troupe::ObjectRef;
using troupe::WhenFull;

// For what must not happen: if it happens later, a check shows nothing but breaks nothing.
constexpr auto moment = 300ms;

template <class T>
bool is_ready(const troupe::Session& session, const ObjectRef<T>& ref,
              std::chrono::nanoseconds within) {
  const std::vector one{ref};
  return !session.wait(one, {.timeout = within}).value().ready.empty();
}

template <class T>
bool fails(const troupe::Result<T>& result, Code code, std::string_view text = {}) {
  if (!result && result.error().code() == code &&
      result.error().message().find(text) != std::string::npos) {
    return true;
  }
  std::cerr << (result ? std::string("it succeeded") : result.error().to_string()) << "\n";
  return false;
}

void wait_while_exists(const std::string& path) {
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 2);
}

}  // namespace

// Counts its calls.
class Counter {
 public:
  int add(int n) {
    ++calls_;
    return total_ += n;
  }
  int pass(int n) {
    ++calls_;
    return n;
  }
  int calls() { return calls_; }
  int fail(int) { throw std::runtime_error("as it was told"); }
  int exhausted(int) {
    ++calls_;
    throw troupe::error(Code::exhausted, "out of paper");
  }
  std::string fill(int bytes) {
    ++calls_;
    return std::string(static_cast<size_t>(bytes), 'x');
  }
  int hold(const std::string& path) {
    ++calls_;
    wait_while_exists(path);
    return 1;
  }
  int rest(int ms) {
    ++calls_;
    ::poll(nullptr, 0, ms);
    return ms;
  }
  int64_t process() { return ::getpid(); }
  int sum(int a, int b) { return a + b; }
  int die(int) {
    ::raise(SIGKILL);
    return 0;
  }

 private:
  int calls_ = 0;
  int total_ = 0;
};
TROUPE_ACTOR(Counter(), add, pass, calls, fill, fail, exhausted, hold, rest, process, sum, die);

// Calls others from coroutine methods.
class Mediator {
 public:
  explicit Mediator(troupe::ActorRef<Counter> counter)
      : counter_(std::move(counter)), limited_(counter_.limited(2)) {}

  Coroutine<int> pass(int n) {
    const auto ref = co_await limited_.call_later<&Counter::pass>(n);
    most_ = std::max<int>(most_, static_cast<int>(limited_.unfinished()));
    co_return (co_await ref).value();
  }
  Coroutine<int> hold(std::string path) {
    const auto ref = co_await limited_.call_later<&Counter::hold>(path);
    co_return (co_await ref).value();
  }
  // What a call says that would have to block.
  int blocking() {
    const auto ref = limited_.call<&Counter::pass>(1);
    const auto value = ref.get();
    return value ? *value : -static_cast<int>(value.error().code());
  }
  Coroutine<int> blocking_inside() { co_return blocking(); }
  Coroutine<int> in_time(int ms) {
    const auto ref =
        co_await limited_.within(std::chrono::milliseconds(ms)).call_later<&Counter::pass>(1);
    const auto value = co_await ref;
    co_return value ? *value : -static_cast<int>(value.error().code());
  }
  int most() { return most_; }

 private:
  troupe::ActorRef<Counter> counter_;
  troupe::LimitedActor<Counter> limited_;
  int most_ = 0;
};
TROUPE_ACTOR(Mediator(troupe::ActorRef<Counter>), pass, hold, blocking, blocking_inside, in_time,
             most);

// A light caller among thousands.
class Caller {
 public:
  explicit Caller(troupe::ActorRef<Counter> counter) : counter_(std::move(counter)) {}
  Coroutine<int> call(int n) {
    const auto ref = counter_.call<&Counter::add>({.when_full = WhenFull::wait}, n);
    const auto value = co_await ref;
    if (!value) throw value.error();
    co_return n;
  }

 private:
  troupe::ActorRef<Counter> counter_;
};
TROUPE_ACTOR(Caller(troupe::ActorRef<Counter>), call);

// Waits for time and for signals.
class Waiter {
 public:
  Coroutine<int> sleep(int ms) {
    const auto slept = co_await troupe::sleep_for(std::chrono::milliseconds(ms));
    if (!slept) throw slept.error();
    co_return ms;
  }
  // Leaves a mark when it was told to stop.
  Coroutine<int> sleep_long(std::string path) {
    ++waiting_;
    const auto slept = co_await troupe::sleep_for(std::chrono::hours(1));
    --waiting_;
    if (!slept && slept.error().code() == Code::cancelled) ::unlink(path.c_str());
    co_return 0;
  }
  Coroutine<int> wait(int ms) {
    ++waiting_;
    const auto woken =
        co_await changed_.wait(ms == 0 ? troupe::no_timeout : std::chrono::milliseconds(ms));
    --waiting_;
    co_return woken ? ++woken_ : -static_cast<int>(woken.error().code());
  }
  int waiting() { return waiting_; }
  bool notify() { return changed_.notify_one(); }
  void notify_all() { changed_.notify_all(); }

 private:
  troupe::Signal changed_;
  int waiting_ = 0;
  int woken_ = 0;
};
TROUPE_ACTOR(Waiter(), sleep, sleep_long, wait, waiting, notify, notify_all);

// A process of callers.
int add_many(const troupe::ActorRef<Counter>& counter, int count) {
  std::vector<ObjectRef<int>> calls;
  for (int i = 0; i < count; ++i) {
    calls.push_back(counter.call<&Counter::add>({.when_full = WhenFull::wait}, 1));
  }
  for (const auto& call : calls) (void)call.get(deadline).value();
  return count;
}
TROUPE_TASK(add_many);

namespace {

// --- Limited handles

void check_window(const troupe::Session& session) {
  const Gate gate;
  const auto actor = session.create<Counter>({}).value();
  const auto limited = actor.limited(3);
  std::vector<ObjectRef<int>> calls{limited.call<&Counter::hold>(gate.path())};
  for (int i = 0; i < 2; ++i) calls.push_back(limited.call<&Counter::pass>(i));
  REQUIRE(limited.unfinished() == 3);
  // Not sent, and it says why.
  REQUIRE(fails(limited.within(0s).call<&Counter::pass>(1).get(), Code::exhausted, "3 calls"));
  REQUIRE(fails(limited.within(50ms).call<&Counter::pass>(1).get(), Code::deadline_exceeded, "3"));
  REQUIRE(limited.unfinished() == 3);
  std::atomic<bool> went_on = false;
  std::thread caller{[&] {
    const auto next = limited.call<&Counter::pass>(7);
    went_on = true;
    REQUIRE(next.get(deadline).value() == 7);
  }};
  ::poll(nullptr, 0, 200);
  REQUIRE(!went_on);
  gate.open();
  caller.join();
  for (const auto& call : calls) REQUIRE(call.get(deadline));
  REQUIRE(eventually([&] { return limited.unfinished() == 0; }));
  REQUIRE(actor.call<&Counter::calls>().get(deadline).value() == 4);
  // Many threads share it.
  std::vector<std::thread> threads;
  std::atomic<int> done = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        done += limited.call<&Counter::pass>(1).get(deadline).value();
        REQUIRE(limited.unfinished() <= 3);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  REQUIRE(done == 2000);
}

// A place comes back however a call ends.
void check_window_failures(const troupe::Session& session) {
  const auto actor = session.create<Counter>({.max_restarts = 1}).value();
  const auto limited = actor.limited(2).within(deadline);
  const auto is_free = [&] { return eventually([&] { return limited.unfinished() == 0; }); };
  REQUIRE(fails(limited.call<&Counter::fail>(1).get(deadline), Code::internal));
  REQUIRE(is_free());
  {
    const Gate gate;
    const auto held = limited.call<&Counter::hold>(gate.path());
    const auto behind = limited.call<&Counter::pass>(1);
    session.cancel(behind).value();
    session.cancel(held).value();
    REQUIRE(is_free());
  }
  for (int i = 0; i < 100; ++i) (void)limited.call<&Counter::pass>(i);  // Refs that nobody holds.
  REQUIRE(is_free());
  REQUIRE(fails(limited.call<&Counter::die>(1).get(deadline), Code::outcome_unknown));
  REQUIRE(is_free());
  REQUIRE(limited.call<&Counter::pass>(5).get(deadline).value() == 5);
  actor.kill().value();
  // The head says so before its process has ended.
  REQUIRE(eventually([&] { return !limited.call<&Counter::pass>(1).get(deadline); }));
  for (int i = 0; i < 5; ++i) REQUIRE(!limited.call<&Counter::pass>(i).get(deadline));
  REQUIRE(is_free());
  // Its time is over while it runs.
  const auto timed = session.create<Counter>({}).value().limited(1);
  const Gate gate;
  const auto late = timed.call<&Counter::hold>({.timeout = 100ms}, gate.path());
  REQUIRE(fails(late.get(deadline), Code::deadline_exceeded));
  REQUIRE(eventually([&] { return timed.unfinished() == 0; }));
}

void check_window_in_coroutines(const troupe::Session& session) {
  const auto counter = session.create<Counter>({}).value();
  const auto mediator = session.create<Mediator>({}, counter).value();
  std::vector<ObjectRef<int>> calls;
  for (int i = 0; i < 500; ++i) calls.push_back(mediator.call<&Mediator::pass>(i));
  for (int i = 0; i < 500; ++i) REQUIRE(calls[size_t(i)].get(deadline).value() == i);
  REQUIRE(mediator.call<&Mediator::most>().get(deadline).value() <= 2);
  const Gate gate;
  std::vector<ObjectRef<int>> held;
  for (int i = 0; i < 2; ++i) held.push_back(mediator.call<&Mediator::hold>(gate.path()));
  REQUIRE(
      eventually([&] { return mediator.call<&Mediator::in_time>(1).get(deadline).value() == -2; }));
  REQUIRE(mediator.call<&Mediator::blocking_inside>().get(deadline).value() ==
          -static_cast<int>(Code::invalid));
  // One that waits is cancelled; its place in the line goes to the next.
  const auto cancelled = mediator.call<&Mediator::pass>(1);
  const auto next = mediator.call<&Mediator::pass>(2);
  REQUIRE(!is_ready(session, cancelled, moment));
  session.cancel(cancelled).value();
  gate.open();
  REQUIRE(next.get(deadline).value() == 2);
  for (const auto& one : held) REQUIRE(one.get(deadline).value() == 1);
}

// --- Callers that wait for room

void check_room(const troupe::Session& session) {
  const Gate gate;
  const auto actor = session.create<Counter>({.mailbox_calls_max = 10}).value();
  const auto held = actor.call<&Counter::hold>(gate.path());
  REQUIRE(!is_ready(session, held, moment));
  std::vector<ObjectRef<int>> calls;
  for (int i = 0; i < 200; ++i) {
    calls.push_back(actor.call<&Counter::pass>({.when_full = WhenFull::wait}, i));
  }
  const auto late = actor.call<&Counter::pass>({.timeout = 300ms, .when_full = WhenFull::wait}, 1);
  REQUIRE(fails(late.get(deadline), Code::deadline_exceeded, "mailbox was full"));
  const auto cancelled = actor.call<&Counter::pass>({.when_full = WhenFull::wait}, 1);
  session.cancel(cancelled).value();
  REQUIRE(!is_ready(session, calls[199], moment));
  gate.open();
  for (int i = 0; i < 200; ++i) REQUIRE(calls[size_t(i)].get(deadline).value() == i);
  REQUIRE(actor.call<&Counter::calls>().get(deadline).value() == 201);
  // What ran is never sent again, whatever it says.
  REQUIRE(fails(actor.call<&Counter::exhausted>({.when_full = WhenFull::wait}, 1).get(deadline),
                Code::exhausted, "out of paper"));
  REQUIRE(actor.call<&Counter::calls>().get(deadline).value() == 202);
  // An actor that dies meanwhile.
  const Gate other;
  (void)actor.call<&Counter::hold>(other.path());
  calls.clear();
  for (int i = 0; i < 100; ++i) {
    calls.push_back(actor.call<&Counter::pass>({.when_full = WhenFull::wait}, i));
  }
  REQUIRE(!is_ready(session, calls[0], moment));
  actor.kill().value();
  other.open();
  for (const auto& call : calls) {
    const auto value = call.get(deadline);
    REQUIRE(value || value.error().code() == Code::unavailable ||
            value.error().code() == Code::outcome_unknown);
  }
}

void check_crowd(const troupe::Session& session) {
  constexpr int count = 10'000;
  const auto counter = session.create<Counter>({.mailbox_calls_max = 50}).value();
  const auto callers =
      session.create_many<Caller>({.process = ActorProcess::shared}, count, counter).value();
  session.wait_alive(callers, deadline).value();
  std::vector<ObjectRef<int>> calls;
  for (const auto& caller : callers) calls.push_back(caller.call<&Caller::call>(1));
  // Other processes besides.
  std::vector<ObjectRef<int>> tasks;
  for (int i = 0; i < 2; ++i) tasks.push_back(session.submit(add_many, counter, 2000));
  for (const auto& call : calls) REQUIRE(call.get(deadline).value() == 1);
  for (const auto& task : tasks) REQUIRE(task.get(deadline).value() == 2000);
  // Nothing lost, nothing twice.
  REQUIRE(counter.call<&Counter::add>(0).get(deadline).value() == count + 4000);
  REQUIRE(counter.call<&Counter::calls>().get(deadline).value() == count + 4001);
}

// --- Pools

void check_pool(const troupe::Session& session) {
  const auto pool = ActorPool<Counter>::create(session, {}, 3).value();
  REQUIRE(eventually([&] { return pool.status().reached == 3; }));
  std::vector<ObjectRef<int>> calls;
  for (int i = 0; i < 300; ++i) calls.push_back(pool.submit<&Counter::pass>(i));
  for (int i = 0; i < 300; ++i) REQUIRE(calls[size_t(i)].get(deadline).value() == i);
  int ran = 0;
  for (const auto& actor : pool.actors()) {
    const int one = actor.call<&Counter::calls>().get(deadline).value();
    REQUIRE(one > 0);
    ran += one;
  }
  REQUIRE(ran == 300);
  REQUIRE(fails(pool.submit<&Counter::fail>(1).get(deadline), Code::internal, "as it was told"));
  // One that is slow holds up no other call.
  const Gate gate;
  const auto held = pool.submit<&Counter::hold>(gate.path());
  calls.clear();
  for (int i = 0; i < 50; ++i) calls.push_back(pool.submit<&Counter::pass>(i));
  for (int i = 0; i < 50; ++i) REQUIRE(calls[size_t(i)].get(deadline).value() == i);
  REQUIRE(!is_ready(session, held, 0s));
  // While all are busy calls wait, and can be cancelled.
  std::vector<ObjectRef<int>> busy;
  for (int i = 0; i < 2; ++i) busy.push_back(pool.submit<&Counter::hold>(gate.path()));
  const auto waits = pool.submit<&Counter::pass>(1);
  const auto cancelled = pool.submit<&Counter::pass>(2);
  const auto late = pool.submit<&Counter::pass>({.timeout = 100ms}, 3);
  REQUIRE(fails(late.get(deadline), Code::deadline_exceeded));
  REQUIRE(!is_ready(session, waits, moment));
  REQUIRE(!pool.pop_idle());
  session.cancel(cancelled).value();
  REQUIRE(fails(cancelled.get(deadline), Code::cancelled));
  gate.open();
  REQUIRE(waits.get(deadline).value() == 1);
  for (const auto& one : busy) REQUIRE(one.get(deadline).value() == 1);
  REQUIRE(eventually([&] { return pool.status().idle == 3; }));
  // Out and in again.
  const auto out = pool.pop_idle();
  REQUIRE(out && pool.status().actors == 2);
  REQUIRE(pool.push(*out) && !pool.push(*out));
  // Results of one feed another; arguments may be refs, also large ones.
  const auto sum = pool.submit<&Counter::sum>(waits, pool.submit<&Counter::pass>(4));
  REQUIRE(sum.get(deadline).value() == 5);
}

void check_pool_deaths(const troupe::Session& session) {
  constexpr int count = 4;
  const auto pool = ActorPool<Counter>::create(session, {.max_restarts = -1}, count).value();
  REQUIRE(eventually([&] { return pool.status().reached == count; }));
  // Members die again and again while calls go on; each may run twice.
  std::vector<ObjectRef<int>> calls;
  std::vector<ObjectRef<int>> deaths;
  for (int i = 0; i < 400; ++i) {
    calls.push_back(pool.submit<&Counter::pass>({.retries = -1}, i));
    if (i % 100 == 50) deaths.push_back(pool.submit<&Counter::die>(1));
  }
  for (int i = 0; i < 400; ++i) REQUIRE(calls[size_t(i)].get(deadline).value() == i);
  for (const auto& death : deaths) {
    REQUIRE(fails(death.get(deadline), Code::outcome_unknown));
  }
  REQUIRE(eventually([&] { return pool.status().reached == count; }));
  // Those that were killed for good are members no more, and what waited for them goes elsewhere.
  const Gate gate;
  std::vector<ObjectRef<int>> held;
  for (int i = 0; i < count; ++i) held.push_back(pool.submit<&Counter::hold>(gate.path()));
  calls.clear();
  for (int i = 0; i < 20; ++i) calls.push_back(pool.submit<&Counter::pass>(i));
  auto actors = pool.actors();
  while (actors.size() > 1) {
    actors.back().kill().value();
    actors.pop_back();
  }
  gate.open();
  for (int i = 0; i < 20; ++i) REQUIRE(calls[size_t(i)].get(deadline).value() == i);
  REQUIRE(eventually([&] { return pool.status().actors == 1; }));
  for (const auto& one : held) (void)one.get(deadline);
  actors.front().kill().value();
  REQUIRE(eventually([&] { return pool.status().actors == 0; }));
  REQUIRE(fails(pool.submit<&Counter::pass>(1).get(deadline), Code::unavailable, "no member"));
  REQUIRE(pool.push(session.create<Counter>({}).value()));
  REQUIRE(pool.submit<&Counter::pass>(1).get(deadline).value() == 1);
}

// What waits in the mailbox of a member that stops did not run: it goes to another one.
void check_pool_behind(const troupe::Session& session) {
  const auto pool = ActorPool<Counter>::create(session, {.calls_per_actor = 2}, {}, 2).value();
  REQUIRE(eventually([&] { return pool.status().reached == 2; }));
  const Gate gate;
  std::vector<ObjectRef<int>> held;
  std::vector<ObjectRef<int>> behind;
  for (int i = 0; i < 2; ++i) held.push_back(pool.submit<&Counter::hold>(gate.path()));
  for (int i = 0; i < 2; ++i) behind.push_back(pool.submit<&Counter::pass>(i));
  for (const auto& call : behind) {
    REQUIRE(eventually([&] {
      return session.explain(call).value().text.find("in the mailbox") != std::string::npos;
    }));
  }
  pool.actors().front().kill().value();
  gate.open();
  for (int i = 0; i < 2; ++i) REQUIRE(behind[size_t(i)].get(deadline).value() == i);
}

// An actor that is killed while many answers are on their way to another node: what it answered
// arrives, and what it did not begin is known not to have run.
void check_leaving(const troupe::Session& session) {
  constexpr int count = 200;
#ifdef __SANITIZE_THREAD__
  constexpr int bytes = 20'000;  // What it leaves behind is sent within a second.
#else
  constexpr int bytes = 60'000;
#endif
  const troupe::Placement there{.labels = {troupe::label::equals("n", "1")}};
  for (int round = 0; round < 3; ++round) {
    const auto actor = session.create<Counter>({.placement = there}).value();
    actor.wait_alive(deadline).value();
    std::vector<ObjectRef<std::string>> calls;
    for (int i = 0; i < count; ++i) calls.push_back(actor.call<&Counter::fill>(bytes));
    calls[size_t(round)].get(deadline).value();
    actor.kill().value();
    std::map<Code, std::string> failures;
    for (const auto& call : calls) {
      const auto result = call.get(deadline);
      if (!result) failures[result.error().code()] = result.error().to_string();
    }
    for (const auto& [code, text] : failures) std::cerr << text << "\n";
    REQUIRE(!failures.contains(Code::outcome_unknown));
  }
}

void check_pool_end(const troupe::Session& session) {
  const Gate gate;
  const auto lent = session.create<Counter>({}).value();
  ObjectRef<int> sent;
  ObjectRef<int> waits;
  std::vector<troupe::ActorRef<Counter>> own;
  {
    const ActorPool<Counter> pool{session, {lent}};
    // Until then nothing is sent, and all of it would wait.
    REQUIRE(eventually([&] { return pool.status().reached == 1; }));
    sent = pool.submit<&Counter::hold>(gate.path());
    waits = pool.submit<&Counter::pass>(1);
    const auto made = ActorPool<Counter>::create(session, {}, 2).value();
    own = made.actors();
    session.wait_alive(own, deadline).value();
    REQUIRE(made.submit<&Counter::pass>(1).get(deadline).value() == 1);
  }
  REQUIRE(fails(waits.get(deadline), Code::cancelled, "the pool was destroyed"));
  for (const auto& actor : own) {
    REQUIRE(eventually([&] { return actor.status().value().state == "dead"; }));
  }
  gate.open();
  REQUIRE(sent.get(deadline).value() == 1);
  REQUIRE(lent.call<&Counter::pass>(3).get(deadline).value() == 3);
}

void check_map(const troupe::Session& session) {
  const auto pool = ActorPool<Counter>::create(session, {.calls_per_actor = 8}, {}, 2).value();
  // A range without an end is read only as far as it is needed.
  std::atomic<int> read = 0;
  const auto numbers = std::views::iota(0) | std::views::transform([&](int n) {
                         ++read;
                         return n;
                       });
  {
    auto mapped = pool.map<&Counter::pass>(numbers, {.ahead_max = 10});
    for (int i = 0; i < 1000; ++i) {
      REQUIRE(mapped.next(deadline).value() == i);
      REQUIRE(mapped.index() == uint64_t(i));
      REQUIRE(read <= i + 11);
    }
  }
  REQUIRE(eventually([&] { return pool.status().unfinished == 0; }));
  std::vector<int> few{5, 6, 7};
  auto all = pool.map<&Counter::pass>(few);
  for (const int n : few) REQUIRE(all.next(deadline).value() == n);
  REQUIRE(all.next(deadline).value() == std::nullopt);
  auto none = pool.map<&Counter::pass>(std::vector<int>{});
  REQUIRE(none.next(deadline).value() == std::nullopt);
  auto pairs = pool.map<&Counter::sum>(std::vector<std::pair<int, int>>{{1, 2}, {3, 4}});
  REQUIRE(pairs.next(deadline).value() == 3);
  REQUIRE(pairs.next(deadline).value() == 7);
  // An error is one element's.
  auto failing = pool.map<&Counter::fail>(few);
  for (size_t i = 0; i < few.size(); ++i) {
    REQUIRE(fails(failing.next(deadline), Code::internal, "as it was told"));
    REQUIRE(failing.index() == i);
  }
  REQUIRE(failing.next(deadline).value() == std::nullopt);
  // Each once, as they come: a slow one holds up no other.
  const auto two = ActorPool<Counter>::create(session, {}, 2).value();
  REQUIRE(eventually([&] { return two.status().reached == 2; }));
  const Gate gate;
  auto rests = std::vector<int>(100, 1);
  rests[0] = 1500;
  auto any = two.map_unordered<&Counter::rest>(rests);
  std::set<uint64_t> seen;
  while (const auto one = any.next(deadline).value()) {
    REQUIRE(*one == rests[any.index()]);
    REQUIRE(seen.insert(any.index()).second);
    if (seen.size() == 2) REQUIRE(!seen.contains(0));
  }
  REQUIRE(seen.size() == rests.size());
  const std::vector<std::string> paths{gate.path()};
  auto held = pool.map_unordered<&Counter::hold>(paths);
  REQUIRE(fails(held.next(50ms), Code::deadline_exceeded));
  auto ordered = pool.map<&Counter::hold>(paths);
  REQUIRE(fails(ordered.next(50ms), Code::deadline_exceeded));
  gate.open();
  REQUIRE(held.next(deadline).value() == 1);
  REQUIRE(ordered.next(deadline).value() == 1);
}

// --- Time and signals

void check_sleep(const troupe::Session& session) {
  const auto waiter = session.create<Waiter>({}).value();
  const auto begin = std::chrono::steady_clock::now();
  // They sleep at once, on one thread.
  std::vector<ObjectRef<int>> sleeps;
  for (int i = 0; i < 500; ++i) sleeps.push_back(waiter.call<&Waiter::sleep>(200 + i % 10));
  REQUIRE(waiter.call<&Waiter::sleep>(0).get(deadline).value() == 0);
  for (int i = 0; i < 500; ++i) REQUIRE(sleeps[size_t(i)].get(deadline).value() == 200 + i % 10);
  const auto took = std::chrono::steady_clock::now() - begin;
  REQUIRE(took >= 200ms && took < 30s);
  // It ends with its call.
  const Gate gate;
  const auto cancelled = waiter.call<&Waiter::sleep_long>(gate.path());
  REQUIRE(eventually([&] { return waiter.call<&Waiter::waiting>().get(deadline).value() == 1; }));
  session.cancel(cancelled).value();
  REQUIRE(eventually([&] { return !std::filesystem::exists(gate.path()); }));
  REQUIRE(eventually([&] { return waiter.call<&Waiter::waiting>().get(deadline).value() == 0; }));
  // In a driver's coroutine.
  const auto nap = [](troupe::Session inside) -> Coroutine<bool> {
    const auto slept = co_await inside.sleep_for(1ms);
    const auto without_session = co_await troupe::sleep_for(1ms);
    co_return slept && !without_session && without_session.error().code() == Code::invalid;
  };
  REQUIRE(nap(session).get());
  // An actor ends though calls sleep.
  (void)waiter.call<&Waiter::sleep>(3'600'000);
  waiter.kill().value();
  REQUIRE(eventually([&] { return waiter.status().value().state == "dead"; }));
}

void check_signal(const troupe::Session& session) {
  for (const auto process : {ActorProcess::own, ActorProcess::shared}) {
    const auto waiter = session.create<Waiter>({.process = process}).value();
    const auto waiting = [&](int count) {
      return eventually(
          [&] { return waiter.call<&Waiter::waiting>().get(deadline).value() == count; });
    };
    REQUIRE(!waiter.call<&Waiter::notify>().get(deadline).value());
    std::vector<ObjectRef<int>> calls;
    for (int i = 0; i < 5; ++i) calls.push_back(waiter.call<&Waiter::wait>(0));
    REQUIRE(waiting(5));
    // The first that waits is woken first; who is cancelled or late is passed over.
    REQUIRE(waiter.call<&Waiter::notify>().get(deadline).value());
    REQUIRE(calls[0].get(deadline).value() == 1);
    REQUIRE(!is_ready(session, calls[1], 0s));
    session.cancel(calls[1]).value();
    REQUIRE(waiting(3));
    REQUIRE(waiter.call<&Waiter::notify>().get(deadline).value());
    REQUIRE(calls[2].get(deadline).value() == 2);
    REQUIRE(waiter.call<&Waiter::wait>(20).get(deadline).value() ==
            -static_cast<int>(Code::deadline_exceeded));
    waiter.call<&Waiter::notify_all>().get(deadline).value();
    REQUIRE(calls[3].get(deadline).value() == 3);
    REQUIRE(calls[4].get(deadline).value() == 4);
    REQUIRE(waiting(0));
    waiter.kill().value();
  }
}

}  // namespace

int main(int argc, char** argv) try {
  using Check = std::function<void(const troupe::Session&)>;
  const std::map<std::string, Check> checks{{"window", check_window},
                                            {"window_failures", check_window_failures},
                                            {"window_in_coroutines", check_window_in_coroutines},
                                            {"room", check_room},
                                            {"crowd", check_crowd},
                                            {"pool", check_pool},
                                            {"pool_deaths", check_pool_deaths},
                                            {"pool_behind", check_pool_behind},
                                            {"pool_end", check_pool_end},
                                            {"leaving", check_leaving},
                                            {"map", check_map},
                                            {"sleep", check_sleep},
                                            {"signal", check_signal}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: pools NAME\n";
    return 2;
  }
  found->second(troupe::connect().value());
  std::cout << "ok\n";
  return 0;
} catch (const std::exception& thrown) {
  std::cerr << thrown.what() << "\n";
  return 1;
}
