// A driver that checks what tasks and calls can do beside running once inside a real cluster:
// `task_checks NAME` exits 0 if NAME holds.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"

namespace {

using namespace std::chrono_literals;
using troupe::CallOptions;
using troupe::Code;
using troupe::Coroutine;
using troupe::ObjectRef;
using troupe::TaskOptions;

void leave_mark(const std::string& path) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  const ssize_t written = ::write(file, "x", 1);
  ::close(file);
  if (written != 1) throw std::runtime_error("cannot mark");
}

bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

template <class T>
troupe::Error failure_of(const ObjectRef<T>& ref) {
  const auto got = ref.get(deadline);
  REQUIRE(!got);
  return got.error();
}

}  // namespace

int64_t successor(int64_t n) {
  return n + 1;
}
TROUPE_TASK(successor);
void mark(const std::string& path) {
  leave_mark(path);
}
TROUPE_TASK(mark);
// Marks each run; fails with the code until there are so many marks.
int64_t fail_until(const std::string& path, int64_t marks, Code code) {
  leave_mark(path);
  const auto seen = static_cast<int64_t>(std::filesystem::file_size(path));
  if (seen < marks) throw troupe::error(code, "not yet");
  return seen;
}
TROUPE_TASK(fail_until);
int64_t die_until(const std::string& path, int64_t marks) {
  leave_mark(path);
  if (static_cast<int64_t>(std::filesystem::file_size(path)) < marks) ::raise(SIGKILL);
  return 7;
}
TROUPE_TASK(die_until);
// Heeds nothing.
int64_t hold(const std::string& path) {
  leave_mark(path);
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 2);
  return 1;
}
TROUPE_TASK(hold);
// Takes a moment while the file exists.
int64_t take_a_moment(const std::string& path) {
  if (std::filesystem::exists(path)) ::poll(nullptr, 0, 10);
  return 1;
}
TROUPE_TASK(take_a_moment);
void write_letter(const std::string& path, const std::string& letter) {
  std::ofstream{path, std::ios::app} << letter;
}
TROUPE_TASK(write_letter);
void fail_when_free(const std::string& path) {
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 2);
  throw troupe::error(Code::conflict, "as it was asked to");
}
TROUPE_TASK(fail_when_free);
// Runs until it is told to end, and marks that in the other file.
int64_t run_until_told(const std::string& begun, const std::string& told) {
  leave_mark(begun);
  while (!troupe::should_stop()) ::poll(nullptr, 0, 2);
  leave_mark(told);
  return 7;
}
TROUPE_TASK(run_until_told);
// The same by a callback.
int64_t run_until_called(const std::string& path) {
  const std::stop_token token = troupe::stop_token();
  const std::stop_callback opens{token, [&] { ::unlink(path.c_str()); }};
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 2);
  return token.stop_requested() ? 7 : 0;
}
TROUPE_TASK(run_until_called);
int64_t process_id(const std::string& path) {
  std::ofstream{path + ".pid"} << ::getpid() << "\n";
  return hold(path);
}
TROUPE_TASK(process_id);
int64_t generations(int64_t left, const std::string& begun, const std::string& told) {
  if (left == 0) return run_until_told(begun, told);
  const auto session = troupe::connect().value();
  return session.submit(generations, left - 1, begun, told).get().value();
}
TROUPE_TASK(generations);
int64_t leave_child(const std::string& gate, const std::string& told) {
  const auto session = troupe::connect().value();
  const auto child = session.submit(hold, gate);
  while (!troupe::should_stop()) ::poll(nullptr, 0, 2);
  leave_mark(told);
  return child.get(deadline).value();  // It runs on, and this process with it.
}
TROUPE_TASK(leave_child);
std::tuple<int64_t, std::string, ObjectRef<int64_t>> three_kinds(int64_t n) {
  const auto session = troupe::connect().value();
  return {n, std::string(static_cast<size_t>(n), 'x'), session.submit(successor, n)};
}
TROUPE_TASK(three_kinds);
std::vector<std::string> strings(int64_t count, int64_t bytes) {
  std::vector<std::string> made;
  for (int64_t i = 0; i < count; ++i) {
    made.emplace_back(static_cast<size_t>(bytes), static_cast<char>('a' + i % 26));
  }
  return made;
}
TROUPE_TASK(strings);
std::vector<int64_t> fail_many(const std::string& why) {
  throw troupe::error(Code::conflict, why);
}
TROUPE_TASK(fail_many);
std::vector<int64_t> hold_many(const std::string& begun, const std::string& told) {
  return {run_until_told(begun, told)};
}
TROUPE_TASK(hold_many);

using troupe::Generator;
// Marks each item before it gives it.
Generator<int64_t> count(std::string path, int64_t items) {
  for (int64_t i = 0; i < items; ++i) {
    leave_mark(path);
    co_yield i;
  }
}
TROUPE_TASK(count);
Generator<int64_t> fail_after(int64_t items) {
  for (int64_t i = 0; i < items; ++i) co_yield i;
  throw troupe::error(Code::conflict, "no more");
}
TROUPE_TASK(fail_after);
Generator<int64_t> die_after(int64_t items) {
  for (int64_t i = 0; i < items; ++i) co_yield i;
  ::raise(SIGKILL);
}
TROUPE_TASK(die_after);
// Marks that it was ended.
Generator<int64_t> endless(std::string ended) {
  try {
    for (int64_t i = 0;; ++i) co_yield i;
  } catch (const troupe::Error&) {
    leave_mark(ended);
    throw;
  }
}
TROUPE_TASK(endless);
Generator<std::string> large(int64_t items, int64_t bytes) {
  for (int64_t i = 0; i < items; ++i) {
    co_yield std::string(static_cast<size_t>(bytes), static_cast<char>('a' + i));
  }
}
TROUPE_TASK(large);
Generator<int64_t> two_with_a_pause(std::string gate) {
  co_yield 1;
  hold(gate);
  co_yield 2;
}
TROUPE_TASK(two_with_a_pause);
Generator<int64_t> awaits(ObjectRef<int64_t> ref) {
  const auto value = co_await ref;
  co_yield value.value();
  co_yield value.value() + 1;
}
TROUPE_TASK(awaits);

class Worker {
 public:
  int64_t fail_until(const std::string& path, int64_t marks, Code code) {
    return ::fail_until(path, marks, code);
  }
  int64_t die_until(const std::string& path, int64_t marks) { return ::die_until(path, marks); }
  int64_t run_until_told(const std::string& begun, const std::string& told) {
    return ::run_until_told(begun, told);
  }
  std::tuple<int64_t, std::string> pair(int64_t n) { return {n, std::to_string(n)}; }
};
TROUPE_ACTOR(Worker(), fail_until, die_until, run_until_told, pair);

class Desk {
 public:
  Coroutine<std::tuple<int64_t, int64_t>> both(ObjectRef<int64_t> ref) {
    const int64_t value = (co_await ref).value();
    co_return std::tuple{value, value + 1};
  }
  // Whether it was told to end after it had waited: on a thread that ran other calls meanwhile.
  Coroutine<int64_t> told(ObjectRef<int64_t> gate, std::string begun, std::string told) {
    leave_mark(begun);
    (void)co_await gate;
    if (troupe::should_stop()) leave_mark(told);
    co_return 1;
  }
  int64_t stopped() const { return troupe::should_stop() ? 1 : 0; }
  Generator<int64_t> count(std::string path, ObjectRef<int64_t> first, int64_t items) {
    const int64_t from = (co_await first).value();
    for (int64_t i = 0; i < items; ++i) {
      leave_mark(path);
      co_yield from + i;
    }
  }
};
TROUPE_ACTOR(Desk(), both, told, stopped, count);

namespace {

void check_retries(const troupe::Session& session) {
  const Gate enough;
  const TaskOptions patient{
      .name = "patient", .retries = 3, .retry_on = {Code::unavailable, Code::conflict}};
  REQUIRE(session.submit(patient, fail_until, enough.path(), 3, Code::unavailable)
              .get(deadline)
              .value() == 3);
  const Gate never;
  TaskOptions slow = patient;
  slow.retries = 2;
  slow.retry_delay = 100ms;
  const auto before = std::chrono::steady_clock::now();
  const auto failure =
      failure_of(session.submit(slow, fail_until, never.path(), 99, Code::conflict));
  REQUIRE(std::chrono::steady_clock::now() - before >= 300ms);
  REQUIRE(failure.code() == Code::conflict && contains(failure.message(), "tried 3 times"));
  REQUIRE(contains(failure.where(), "patient") && never.marks() == 3);
  const Gate once;  // By another code, or by none.
  REQUIRE(failure_of(session.submit(patient, fail_until, once.path(), 2, Code::invalid)).code() ==
          Code::invalid);
  REQUIRE(failure_of(session.submit({.retries = 3}, fail_until, once.path(), 3, Code::conflict))
              .code() == Code::conflict);
  REQUIRE(once.marks() == 2);
  const Gate deaths;
  REQUIRE(session.submit({.retries = 2}, die_until, deaths.path(), 3).get(deadline).value() == 7);
  // Not past its deadline.
  const Gate late;
  TaskOptions hasty = patient;
  hasty.retry_delay = 10s;
  hasty.timeout = 5s;
  const auto early = failure_of(session.submit(hasty, fail_until, late.path(), 2, Code::conflict));
  REQUIRE(early.code() == Code::conflict && late.marks() == 1);
}

void check_call_retries(const troupe::Session& session) {
  const auto worker = session.create<Worker>({.max_restarts = -1, .max_call_retries = 1}).value();
  const Gate deaths;
  REQUIRE(worker.call<&Worker::die_until>(deaths.path(), 2).get(deadline).value() == 7);
  const Gate more;
  const CallOptions none{.retries = 0};
  REQUIRE(failure_of(worker.call<&Worker::die_until>(none, more.path(), 2)).code() ==
          Code::outcome_unknown);
  const Gate failures;
  const CallOptions listed{.name = "listed", .retries = 2, .retry_on = {Code::exhausted}};
  REQUIRE(worker.call<&Worker::fail_until>(listed, failures.path(), 3, Code::exhausted)
              .get(deadline)
              .value() == 3);
  const auto last =
      failure_of(worker.call<&Worker::fail_until>(listed, failures.path(), 99, Code::exhausted));
  REQUIRE(contains(last.message(), "tried 3 times") && contains(last.where(), "listed"));
  (void)worker.kill();
}

void check_time_limits(const troupe::Session& session) {
  // Of all of it.
  const Gate begun;
  const Gate told;
  const auto late = failure_of(session.submit({.name = "slow", .timeout = 300ms}, run_until_told,
                                              begun.path(), told.path()));
  REQUIRE(late.code() == Code::deadline_exceeded && contains(late.message(), "slow"));
  REQUIRE(eventually([&] { return told.marks() == 1 || begun.marks() == 0; }));
  // Of a run that heeds it.
  const Gate heeded;
  REQUIRE(session.submit({.time_limit = 100ms}, run_until_told, begun.path(), heeded.path())
              .get(deadline)
              .value() == 7);
  const Gate called;
  REQUIRE(session.submit({.time_limit = 100ms}, run_until_called, called.path())
              .get(deadline)
              .value() == 7);
  // Of one that does not, with others sent ahead to its process.
  std::vector<ObjectRef<int64_t>> others;
  for (int64_t i = 0; i < 1000; ++i) others.push_back(session.submit(successor, i));
  const Gate deaf;
  const TaskOptions limited{.name = "deaf", .time_limit = 200ms, .time_limit_grace = 100ms};
  const auto ended = session.submit(limited, hold, deaf.path());
  for (int64_t i = 1000; i < 2000; ++i) others.push_back(session.submit(successor, i));
  const auto why = failure_of(ended);
  REQUIRE(why.code() == Code::deadline_exceeded && contains(why.message(), "200 ms"));
  REQUIRE(contains(why.where(), "task deaf on node"));
  const auto values = session.get(others, deadline).value();
  REQUIRE(values.back() == 2000);
  // One that is quick hears nothing of its limit.
  REQUIRE(session.submit({.time_limit = 10s}, successor, 1).get(deadline).value() == 2);
}

void check_force(const troupe::Session& session) {
  const Gate gate;
  const auto stuck = session.submit(process_id, gate.path());
  REQUIRE(eventually([&] { return gate.marks() == 1; }));
  std::ifstream file{gate.path() + ".pid"};
  pid_t process = 0;
  file >> process;
  ::unlink((gate.path() + ".pid").c_str());
  REQUIRE(process > 0 && ::kill(process, 0) == 0);
  std::vector<ObjectRef<int64_t>> others;
  for (int64_t i = 0; i < 1000; ++i) others.push_back(session.submit(successor, i));
  session.cancel(stuck, {.force = true}).value();
  REQUIRE(failure_of(stuck).code() == Code::cancelled);
  REQUIRE(eventually([&] { return ::kill(process, 0) != 0 && errno == ESRCH; }));
  REQUIRE(session.get(others, deadline).value().back() == 1000);
  session.cancel(stuck, {.force = true}).value();  // It is done: nothing happens.
  REQUIRE(session.cancel(ObjectRef<int64_t>{}).error().code() == Code::invalid);
  const auto worker = session.create<Worker>({}).value();
  const Gate begun;
  const Gate told;
  const auto call = worker.call<&Worker::run_until_told>(begun.path(), told.path());
  REQUIRE(session.cancel(call, {.force = true}).error().code() == Code::invalid);
  REQUIRE(eventually([&] { return begun.marks() == 1; }));
  session.cancel(call).value();
  REQUIRE(failure_of(call).code() == Code::cancelled);
  REQUIRE(eventually([&] { return told.marks() == 1; }));
  (void)worker.kill();
}

void check_children(const troupe::Session& session) {
  const Gate begun;
  const Gate told;
  const auto family = session.submit(generations, 2, begun.path(), told.path());
  REQUIRE(eventually([&] { return begun.marks() == 1; }));
  session.cancel(family).value();
  REQUIRE(eventually([&] { return told.marks() == 1; }));
}

void check_spared_children(const troupe::Session& session) {
  const Gate gate;
  const Gate told;
  const auto parent = session.submit(leave_child, gate.path(), told.path());
  REQUIRE(eventually([&] { return gate.marks() == 1; }));
  session.cancel(parent, {.children = false}).value();
  REQUIRE(eventually([&] { return told.marks() == 1; }));
  gate.open();
}

// A coroutine method is told by itself, though others run on its thread meanwhile.
void check_coroutine_told(const troupe::Session& session) {
  const auto desk = session.create<Desk>({}).value();
  const Gate gate;
  const auto held = session.submit(hold, gate.path());
  const Gate begun;
  const Gate told;
  const auto call = desk.call<&Desk::told>(held, begun.path(), told.path());
  const auto other = desk.call<&Desk::told>(held, begun.path(), told.path());
  REQUIRE(eventually([&] { return begun.marks() == 2; }));
  session.cancel(call).value();
  REQUIRE(desk.call<&Desk::stopped>().get(deadline).value() == 0);
  gate.open();
  REQUIRE(other.get(deadline).value() == 1);
  REQUIRE(eventually([&] { return told.marks() == 1; }));
  (void)desk.kill();
}

void check_several(const troupe::Session& session) {
  for (const int64_t n : {10, 200'000}) {  // The text inline, and through the store.
    const auto [number, text, ref] = session.submit_many({}, three_kinds, n);
    REQUIRE(number.get(deadline).value() == n);
    REQUIRE(text.get(deadline).value().size() == static_cast<size_t>(n));
    REQUIRE(ref.get(deadline).value().get(deadline).value() == n + 1);
  }
  // Each lives by itself.
  std::vector<ObjectRef<std::string>> some =
      session.submit_many({.returns = 30}, strings, 30, 100'000);
  REQUIRE(some.size() == 30);
  const auto kept = some[27];
  some.clear();
  REQUIRE(kept.get(deadline).value() == std::string(100'000, 'b'));
  const auto many = session.submit_many({.returns = 3000}, strings, 3000, 2000);
  for (size_t i = 0; i < many.size(); ++i) {
    REQUIRE(many[i].get(deadline).value() == std::string(2000, static_cast<char>('a' + i % 26)));
  }
  // Another task takes one as its argument.
  const auto [first, second, third] = session.submit_many({}, three_kinds, int64_t{5});
  REQUIRE(session.submit(successor, first).get(deadline).value() == 6);
  // What fails, fails for all.
  for (const auto& ref : session.submit_many({.returns = 3}, fail_many, "told to")) {
    REQUIRE(failure_of(ref).code() == Code::conflict);
  }
  for (const auto& ref : session.submit_many({.returns = 5}, strings, 4, 1)) {
    const auto why = failure_of(ref);
    REQUIRE(why.code() == Code::invalid && contains(why.message(), "gave 4 results"));
  }
  for (const auto& ref : session.submit_many({.returns = 1u << 30}, strings, 4, 1)) {
    REQUIRE(failure_of(ref).code() == Code::invalid);
    break;
  }
  const Gate begun;
  const Gate told;
  const auto stuck = session.submit_many({.returns = 3}, hold_many, begun.path(), told.path());
  REQUIRE(eventually([&] { return begun.marks() == 1; }));
  session.cancel(stuck[1]).value();
  for (const auto& ref : stuck) REQUIRE(failure_of(ref).code() == Code::cancelled);
  REQUIRE(eventually([&] { return told.marks() == 1; }));
  // Of actors, also of coroutines.
  const auto worker = session.create<Worker>({}).value();
  const auto [n, text] = worker.call_many<&Worker::pair>({}, int64_t{42});
  REQUIRE(n.get(deadline).value() == 42 && text.get(deadline).value() == "42");
  const auto desk = session.create<Desk>({}).value();
  const auto [value, next] = desk.call_many<&Desk::both>({}, session.submit(successor, 1));
  REQUIRE(value.get(deadline).value() == 2 && next.get(deadline).value() == 3);
  (void)worker.kill();
  (void)desk.kill();
}

template <class T>
std::vector<T> read_all(troupe::Stream<T>& stream) {
  std::vector<T> items;
  while (auto item = stream.next(deadline).value()) items.push_back(std::move(*item));
  return items;
}

Coroutine<int64_t> sum_of(troupe::Stream<int64_t> stream) {
  int64_t total = 0;
  while (const auto item = (co_await stream).value()) total += *item;
  co_return total;
}

void check_streams(const troupe::Session& session) {
  // As many are unread as may be, and no more.
  const Gate marks;
  auto numbers = session.stream({.generator_items_max = 4}, count, marks.path(), 1000);
  for (int64_t i = 0; i < 10; ++i) REQUIRE(numbers.next(deadline).value() == i);
  REQUIRE(eventually([&] { return marks.marks() >= 13; }));
  ::poll(nullptr, 0, 100);
  REQUIRE(marks.marks() <= 15);  // One waits in co_yield.
  REQUIRE(read_all(numbers).size() == 990 && marks.marks() == 1000);
  REQUIRE(!numbers.next(deadline).value());  // It stays at its end.
  REQUIRE(numbers.call().get(deadline));
  const Gate more;
  REQUIRE(sum_of(session.stream(count, more.path(), 1000)).get() == 499'500);
  // One at a time, and large ones.
  auto single = session.stream({.generator_items_max = 1}, large, 20, 1 << 20);
  const auto texts = read_all(single);
  REQUIRE(texts.size() == 20 && texts[19] == std::string(1 << 20, 't'));
  auto awaiting = session.stream(awaits, session.submit(successor, 1));
  REQUIRE((read_all(awaiting) == std::vector<int64_t>{2, 3}));
  // An item that is late does not end the stream.
  const Gate gate;
  auto paused = session.stream(two_with_a_pause, gate.path());
  REQUIRE(paused.next(deadline).value() == 1);
  REQUIRE(paused.next(50ms).error().code() == Code::deadline_exceeded);
  gate.open();
  REQUIRE((read_all(paused) == std::vector<int64_t>{2}));
}

void check_stream_failures(const troupe::Session& session) {
  auto failing = session.stream({.name = "failing"}, fail_after, 100);
  for (int64_t i = 0; i < 100; ++i) REQUIRE(failing.next(deadline).value() == i);
  const auto why = failing.next(deadline).error();
  REQUIRE(why.code() == Code::conflict && contains(why.where(), "failing"));
  auto dying = session.stream({.retries = 3}, die_after, 10);
  for (int64_t i = 0;; ++i) {
    const auto item = dying.next(deadline);
    if (!item) {
      REQUIRE(item.error().code() == Code::outcome_unknown);
      break;
    }
    REQUIRE(*item == i);
  }
  for (const bool is_dropped : {true, false}) {
    const Gate ended;
    auto stream = session.stream(endless, ended.path());
    REQUIRE(stream.next(deadline).value() == 0);
    if (is_dropped) {
      stream = {};
    } else {
      session.cancel(stream.call()).value();
    }
    REQUIRE(eventually([&] { return ended.marks() == 1; }));
    if (is_dropped) continue;
    while (stream.next(deadline)) continue;  // What was delivered comes first.
    REQUIRE(stream.next(deadline).error().code() == Code::cancelled);
  }
  const Gate limited;
  auto late = session.stream({.time_limit = 100ms}, endless, limited.path());
  for (;;) {
    const auto item = late.next(deadline);
    if (item) continue;
    REQUIRE(item.error().code() == Code::deadline_exceeded);
    break;
  }
  REQUIRE(limited.marks() == 1);
  session.drain(deadline).value();
}

// One that waits for its reader holds up no other call of its actor.
void check_actor_stream(const troupe::Session& session) {
  const auto desk = session.create<Desk>({}).value();
  const Gate marks;
  auto numbers = desk.stream<&Desk::count>({.generator_items_max = 4}, marks.path(),
                                           session.submit(successor, 9), 100);
  REQUIRE(numbers.next(deadline).value() == 10);
  REQUIRE(eventually([&] { return marks.marks() >= 4; }));
  REQUIRE(desk.call<&Desk::stopped>().get(deadline).value() == 0);
  REQUIRE(marks.marks() <= 6);
  REQUIRE(read_all(numbers).back() == 109);
  (void)desk.kill();
  // Its process ends a little later.
  REQUIRE(eventually([&] {
    auto dead = desk.stream<&Desk::count>({}, marks.path(), session.submit(successor, 9), 100);
    return !dead.next(deadline);
  }));
}

// Of one class: more than all cpus do in 5 s, if the gate is not opened.
std::vector<ObjectRef<int64_t>> flood(const troupe::Session& session, const Gate& gate) {
  std::vector<ObjectRef<int64_t>> refs;
  for (int i = 0; i < 2000; ++i) refs.push_back(session.submit(take_a_moment, gate.path()));
  REQUIRE(session.wait(refs, {.count = 8}));
  return refs;
}

// Tasks of a class wait for each other alone.
void check_flooded_class(const troupe::Session& session) {
  const Gate gate;
  const auto refs = flood(session, gate);
  const auto wide = session.submit({.resources = {.cpu = 2}}, successor, 1);
  const auto urgent = session.submit({.priority = 1}, successor, 2);
  REQUIRE(wide.get(deadline).value() == 2);
  REQUIRE(urgent.get(deadline).value() == 3);
  const std::vector last{refs.back()};
  REQUIRE(session.wait(last, {.timeout = 0s}).value().pending.size() == 1);
  gate.open();
  for (const auto& ref : refs) REQUIRE(ref.get(deadline).value() == 1);
}

// Whoever has the higher priority goes first, however late it came.
void check_priorities(const troupe::Session& session) {
  const Gate gate;
  const Gate letters;  // Which are its content.
  // In a class of its own, or another of its class would have the slot next.
  const TaskOptions all{.resources = {.cpu = 4}, .priority = -2};
  const auto holds = session.submit(all, hold, gate.path());
  REQUIRE(eventually([&] { return gate.marks() == 1; }));
  std::vector<ObjectRef<void>> refs;
  for (int i = 0; i < 20; ++i) {
    refs.push_back(session.submit({.priority = -1}, write_letter, letters.path(), "d"));
  }
  for (const int priority : {0, 1, 2}) {
    const std::string letter{"cba"[priority]};
    const TaskOptions options{.resources = {.cpu = 4}, .priority = priority};
    refs.push_back(session.submit(options, write_letter, letters.path(), letter));
  }
  for (const auto& ref : refs) {
    REQUIRE(eventually([&] { return contains(session.explain(ref).value().text, "short of"); }));
  }
  gate.open();
  for (const auto& ref : refs) REQUIRE(ref.get(deadline));
  std::ifstream file{letters.path()};
  std::string order;
  std::getline(file, order);
  std::cout << order << "\n";
  REQUIRE(order == "abc" + std::string(20, 'd'));
}

void check_dropped(const troupe::Session& session) {
  const Gate marks;
  for (int i = 0; i < 100; ++i) (void)session.submit(mark, marks.path());
  session.drain(deadline).value();
  REQUIRE(marks.marks() == 100 && session.pending() == 0 && session.unread_failures() == 0);
  const Gate gate;
  (void)session.submit(hold, gate.path());
  REQUIRE(session.pending() == 1);
  const auto early = session.drain(50ms);
  REQUIRE(!early && early.error().code() == Code::deadline_exceeded);
  REQUIRE(contains(early.error().message(), "1 tasks"));
  REQUIRE(eventually([&] { return gate.marks() == 1; }));
  gate.open();
  session.drain(deadline).value();
  // Failures that nobody can read are counted; others are not.
  const Gate until_dropped;
  for (int i = 0; i < 3; ++i) {
    (void)session.submit({.name = "lost"}, fail_when_free, until_dropped.path());
  }
  const auto read = session.submit(fail_when_free, until_dropped.path());
  until_dropped.open();
  session.drain(deadline).value();
  REQUIRE(session.unread_failures() == 3);
  REQUIRE(failure_of(read).code() == Code::conflict);
}

}  // namespace

int main(int argc, char** argv) try {
  using Check = std::function<void(const troupe::Session&)>;
  const std::map<std::string, Check> checks{{"retries", check_retries},
                                            {"call_retries", check_call_retries},
                                            {"time_limits", check_time_limits},
                                            {"force", check_force},
                                            {"children", check_children},
                                            {"spared_children", check_spared_children},
                                            {"coroutine_told", check_coroutine_told},
                                            {"several", check_several},
                                            {"streams", check_streams},
                                            {"stream_failures", check_stream_failures},
                                            {"actor_stream", check_actor_stream},
                                            {"flooded_class", check_flooded_class},
                                            {"priorities", check_priorities},
                                            {"dropped", check_dropped}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: task_checks NAME\n";
    return 2;
  }
  const auto session = troupe::connect();
  if (!session) {
    std::cerr << session.error().to_string() << "\n";
    return 1;
  }
  found->second(*session);
  std::cout << "ok\n";
  return 0;
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
