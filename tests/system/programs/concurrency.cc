// A driver that checks what runs at once inside a real cluster, and what is sent ahead:
// `concurrency NAME` exits 0 if NAME holds.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"

namespace {

using namespace std::chrono_literals;
using troupe::Code;
using troupe::Coroutine;
using troupe::ObjectRef;

// For what must not happen: if it happens later, a check shows nothing but breaks nothing.
constexpr auto moment = 300ms;

int64_t thread_id() {
  return ::syscall(SYS_gettid);
}

void wait_while_exists(const std::string& path) {
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 2);
}

template <class T>
bool is_ready(const troupe::Session& session, const ObjectRef<T>& ref,
              std::chrono::nanoseconds within) {
  const std::vector one{ref};
  return !session.wait(one, {.timeout = within}).value().ready.empty();
}

}  // namespace

int64_t successor(int64_t n) {
  return n + 1;
}
TROUPE_TASK(successor);
int64_t hold(const std::string& path) {
  wait_while_exists(path);
  return 1;
}
TROUPE_TASK(hold);
// Leaves a byte in the file: one that ran twice shows.
void mark(const std::string& path) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  const ssize_t written = ::write(file, "x", 1);
  ::close(file);
  if (written != 1) throw std::runtime_error("cannot mark");
}
TROUPE_TASK(mark);
void rest_a_millisecond() {
  ::poll(nullptr, 0, 1);
}
TROUPE_TASK(rest_a_millisecond);
int die_by_signal() {
  ::raise(SIGKILL);
  return 0;
}
TROUPE_TASK(die_by_signal);
int64_t ask_a_child(int64_t n) {
  const auto session = troupe::connect().value();
  return session.submit(successor, n).get().value() + 1;
}
TROUPE_TASK(ask_a_child);

// Its coroutine methods await refs that somebody else makes ready.
class Desk {
 public:
  Desk() : home_(thread_id()) {}

  // Gives how many had ended when it began.
  Coroutine<int64_t> pass(ObjectRef<int64_t> gate) {
    const int64_t ended_before = ended_;
    enter();
    const auto passed = co_await gate;
    leave();
    if (!passed) throw passed.error();
    co_return ended_before;
  }
  // Several waits in one call; gives their sum.
  Coroutine<int64_t> chain(int64_t steps) {
    enter();
    const auto session = troupe::connect().value();
    int64_t total = 0;
    for (int64_t i = 0; i < steps; ++i) {
      const auto ref = session.submit(successor, total);
      total = (co_await ref).value();
      look();
    }
    leave();
    co_return total;
  }
  // Calls another method of its own actor, which must run meanwhile.
  Coroutine<int64_t> ask_self(troupe::ActorRef<Desk> self);
  Coroutine<void> open(std::string path) {
    look();
    ::unlink(path.c_str());
    co_return;
  }
  Coroutine<int64_t> fail(ObjectRef<int64_t> gate, bool by_error) {
    const auto passed = co_await gate;
    look();
    if (by_error) throw troupe::error(Code::not_found, "no such page");
    throw std::runtime_error("what a pity " + std::to_string(passed.value()));
  }
  Coroutine<troupe::Result<int64_t>> odd_only(ObjectRef<int64_t> number, bool at_once) {
    if (at_once) co_return troupe::error(Code::conflict, "at once");
    const auto value = co_await number;
    look();
    if (!value) co_return value.error();
    if (*value % 2 == 0) co_return troupe::error(Code::conflict, "even");
    co_return *value;
  }
  Coroutine<void> fail_without_value(ObjectRef<int64_t> gate) {
    const auto passed = co_await gate;
    look();
    throw troupe::error(Code::denied, "not for you");
  }
  // Plain methods of the same class.
  int64_t begun() const { return begun_; }
  int64_t peak() const { return peak_; }
  // Whether all of it ran on the thread that made it.
  bool one_thread() const { return strays_ == 0; }
  void crash() { ::raise(SIGKILL); }

 private:
  void look() {
    if (thread_id() != home_) ++strays_;
  }
  void enter() {
    look();
    ++begun_;
    peak_ = std::max(peak_, begun_ - ended_);
  }
  void leave() {
    look();
    ++ended_;
  }
  const int64_t home_;
  std::atomic<int64_t> strays_ = 0;
  int64_t begun_ = 0;
  int64_t ended_ = 0;
  int64_t peak_ = 0;
};
TROUPE_ACTOR(Desk(), pass, chain, ask_self, open, fail, odd_only, fail_without_value, begun, peak,
             one_thread, crash);
Coroutine<int64_t> Desk::ask_self(troupe::ActorRef<Desk> self) {
  const auto ref = self.call<&Desk::begun>();
  const auto seen = co_await ref;
  look();
  co_return seen.value();
}

// Its methods block.
class Barrier {
 public:
  // Returns once `count` calls are inside; gives the thread.
  int64_t arrive(int64_t count) {
    std::unique_lock lock{mutex_};
    peak_ = std::max(peak_, ++inside_);
    if (++arrived_ % count == 0) {
      ++round_;
      changed_.notify_all();
    } else {
      changed_.wait(lock, [this, round = round_] { return round_ != round; });
    }
    --inside_;
    return thread_id();
  }
  int64_t hold(const std::string& path) {
    const int64_t inside = count_in();
    wait_while_exists(path);
    const std::lock_guard lock{mutex_};
    --inside_;
    return inside;
  }
  int64_t peak() {
    const std::lock_guard lock{mutex_};
    return peak_;
  }

 private:
  int64_t count_in() {
    const std::lock_guard lock{mutex_};
    peak_ = std::max(peak_, ++inside_);
    return inside_;
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t arrived_ = 0;
  int64_t round_ = 0;
  int64_t inside_ = 0;
  int64_t peak_ = 0;
};
TROUPE_ACTOR(Barrier(), arrive, hold, peak);

namespace {

void check_overlap(const troupe::Session& session) {
  const auto desk = session.create<Desk>({}).value();
  // What they await is made ready by a later call of the same actor alone.
  const Gate gate;
  const auto held = session.submit(hold, gate.path());
  std::vector<ObjectRef<int64_t>> passes;
  for (int i = 0; i < 100; ++i) passes.push_back(desk.call<&Desk::pass>(held));
  REQUIRE(desk.call<&Desk::begun>().get(deadline).value() == 100);
  REQUIRE(desk.call<&Desk::open>(gate.path()).get(deadline));
  const auto ended_before = session.get(passes, deadline).value();
  for (const int64_t ended : ended_before) REQUIRE(ended == 0);
  REQUIRE(desk.call<&Desk::peak>().get(deadline).value() == 100);
}

void check_one_thread(const troupe::Session& session) {
  const auto desk = session.create<Desk>({}).value();
  std::vector<ObjectRef<int64_t>> chains;
  for (int i = 0; i < 200; ++i) chains.push_back(desk.call<&Desk::chain>(10));
  for (const auto& chain : chains) REQUIRE(chain.get(deadline).value() == 10);
  REQUIRE(desk.call<&Desk::ask_self>(desk).get(deadline).value() == 200);
  REQUIRE(desk.call<&Desk::one_thread>().get(deadline).value());
}

void check_bounded(const troupe::Session& session) {
  const auto desk = session.create<Desk>({.max_concurrency = 1}).value();
  const Gate gate;
  const auto held = session.submit(hold, gate.path());
  const auto first = desk.call<&Desk::pass>(held);
  const auto second = desk.call<&Desk::pass>(session.put(int64_t{0}).value());
  const auto third = desk.call<&Desk::begun>();
  REQUIRE(!is_ready(session, third, moment));
  gate.open();
  REQUIRE(first.get(deadline).value() == 0);
  REQUIRE(second.get(deadline).value() == 1);  // It began after the first had ended.
  REQUIRE(third.get(deadline).value() == 2);
  REQUIRE(desk.call<&Desk::peak>().get(deadline).value() == 1);

  const auto wider = session.create<Desk>({.max_concurrency = 3}).value();
  std::vector<ObjectRef<int64_t>> chains;
  for (int i = 0; i < 50; ++i) chains.push_back(wider.call<&Desk::chain>(5));
  for (const auto& chain : chains) REQUIRE(chain.get(deadline).value() == 5);
  REQUIRE(wider.call<&Desk::peak>().get(deadline).value() == 3);
}

void check_errors(const troupe::Session& session) {
  const auto desk = session.create<Desk>({}).value();
  const Gate gate;
  const auto held = session.submit(hold, gate.path());
  const auto odd = session.put(int64_t{7}).value();
  const auto even = session.put(int64_t{8}).value();
  const auto thrown = desk.call<&Desk::fail>(held, false);
  const auto error = desk.call<&Desk::fail>(held, true);
  const auto nothing = desk.call<&Desk::fail_without_value>(held);
  const auto at_once = desk.call<&Desk::odd_only>(odd, true).get(deadline);
  REQUIRE(at_once.error().code() == Code::conflict && at_once.error().message() == "at once");
  gate.open();
  const auto first = thrown.get(deadline);
  REQUIRE(first.error().code() == Code::internal);
  REQUIRE(first.error().message().find("what a pity 1") != std::string::npos);
  REQUIRE(!first.error().where().empty());
  const auto second = error.get(deadline);
  REQUIRE(second.error().code() == Code::not_found);
  REQUIRE(second.error().message() == "no such page");
  const auto third = nothing.get(deadline);
  REQUIRE(third.error().code() == Code::denied && third.error().message() == "not for you");
  REQUIRE(desk.call<&Desk::odd_only>(odd, false).get(deadline).value() == 7);
  const auto refused = desk.call<&Desk::odd_only>(even, false).get(deadline);
  REQUIRE(refused.error().code() == Code::conflict && refused.error().message() == "even");
  // What it awaits may fail, too: here a ref of a task that died.
  const auto dead = session.submit(die_by_signal);
  REQUIRE(dead.get(deadline).error().code() == Code::outcome_unknown);
  REQUIRE(desk.call<&Desk::one_thread>().get(deadline).value());
}

void check_killed(const troupe::Session& session) {
  const Gate gate;
  const auto held = session.submit(hold, gate.path());
  const auto suspend = [&](const troupe::ActorRef<Desk>& desk) {
    std::vector<ObjectRef<int64_t>> passes;
    for (int i = 0; i < 50; ++i) passes.push_back(desk.call<&Desk::pass>(held));
    REQUIRE(desk.call<&Desk::begun>().get(deadline).value() == 50);
    return passes;
  };
  const auto all_failed = [&](const std::vector<ObjectRef<int64_t>>& passes) {
    for (const auto& pass : passes) {
      const auto outcome = pass.get(deadline);
      REQUIRE(!outcome);
      const Code code = outcome.error().code();
      REQUIRE(code == Code::outcome_unknown || code == Code::cancelled ||
              code == Code::unavailable);
    }
  };
  // By its own signal; the next incarnation has nothing of it.
  const auto crashed = session.create<Desk>({.max_restarts = 1}).value();
  const auto lost = suspend(crashed);
  REQUIRE(crashed.call<&Desk::crash>().get(deadline).error().code() == Code::outcome_unknown);
  all_failed(lost);
  REQUIRE(crashed.call<&Desk::begun>().get(deadline).value() == 0);
  // By the program.
  const auto killed = session.create<Desk>({}).value();
  const auto ended = suspend(killed);
  REQUIRE(killed.kill());
  all_failed(ended);
  // What they awaited is still there.
  gate.open();
  REQUIRE(held.get(deadline).value() == 1);
}

// Ends with coroutine calls suspended, whose refs live longer than anything here awaits.
void check_left_behind(const troupe::Session& session) {
  static const auto gate = new Gate;
  static std::vector<ObjectRef<int64_t>> kept;
  const auto held = session.submit(hold, gate->path());
  const auto desk = session.create<Desk>({}).value();
  for (int i = 0; i < 20; ++i) desk.call<&Desk::pass>(held);
  for (int i = 0; i < 20; ++i) kept.push_back(desk.call<&Desk::pass>(held));
  REQUIRE(desk.call<&Desk::begun>().get(deadline).value() == 40);
}

void check_threads(const troupe::Session& session) {
  constexpr int64_t count = 8;
  const auto barrier = session.create<Barrier>({.max_concurrency = count}).value();
  std::vector<ObjectRef<int64_t>> calls;
  for (int64_t i = 0; i < 25 * count; ++i) calls.push_back(barrier.call<&Barrier::arrive>(count));
  std::set<int64_t> threads;
  for (const auto& call : calls) threads.insert(call.get(deadline).value());
  REQUIRE(threads.size() == count);
  REQUIRE(barrier.call<&Barrier::peak>().get(deadline).value() == count);
}

void check_one_at_a_time(const troupe::Session& session) {
  const auto barrier = session.create<Barrier>({}).value();
  const Gate gate;
  std::vector<ObjectRef<int64_t>> calls;
  for (int i = 0; i < 5; ++i) calls.push_back(barrier.call<&Barrier::hold>(gate.path()));
  const auto peak = barrier.call<&Barrier::peak>();
  REQUIRE(!is_ready(session, peak, moment));
  gate.open();
  for (const auto& call : calls) REQUIRE(call.get(deadline).value() == 1);
  REQUIRE(peak.get(deadline).value() == 1);
  // Two that wait for each other never end; the kill ends them.
  const auto first = barrier.call<&Barrier::arrive>(2);
  const auto second = barrier.call<&Barrier::arrive>(2);
  REQUIRE(!is_ready(session, second, moment) && !is_ready(session, first, 0s));
  REQUIRE(barrier.kill());
  REQUIRE(!first.get(deadline) && !second.get(deadline));
}

void check_kill_threads(const troupe::Session& session) {
  const auto barrier = session.create<Barrier>({.max_concurrency = 4}).value();
  std::vector<ObjectRef<int64_t>> calls;
  for (int i = 0; i < 3; ++i) calls.push_back(barrier.call<&Barrier::arrive>(100));
  // The fourth thread is free: they are inside by then.
  while (barrier.call<&Barrier::peak>().get(deadline).value() < 3) {
  }
  REQUIRE(barrier.kill());
  for (const auto& call : calls) REQUIRE(!call.get(deadline));
}

void check_long_among_short(const troupe::Session& session) {
  const Gate gate;
  std::vector<ObjectRef<int64_t>> tasks;
  for (int64_t i = 0; i < 10'000; ++i) tasks.push_back(session.submit(successor, i));
  const auto long_one = session.submit(hold, gate.path());
  for (int64_t i = 10'000; i < 11'000; ++i) tasks.push_back(session.submit(successor, i));
  const auto values = session.get(tasks, deadline).value();
  for (size_t i = 0; i < values.size(); ++i) REQUIRE(values[i] == static_cast<int64_t>(i) + 1);
  REQUIRE(!is_ready(session, long_one, 0s));
  gate.open();
  REQUIRE(long_one.get(deadline).value() == 1);
}

void check_death_among_short(const troupe::Session& session) {
  for (int round = 0; round < 5; ++round) {
    const Gate marks;
    std::vector<ObjectRef<void>> tasks;
    for (int i = 0; i < 500; ++i) tasks.push_back(session.submit(mark, marks.path()));
    const auto dying = session.submit(die_by_signal);
    for (int i = 0; i < 500; ++i) tasks.push_back(session.submit(mark, marks.path()));
    REQUIRE(dying.get(deadline).error().code() == Code::outcome_unknown);
    for (const auto& task : tasks) task.get(deadline).value();
    REQUIRE(marks.marks() == 1000);  // Each ran once.
  }
}

void check_nested(const troupe::Session& session) {
  // So that the window of the slot is wide.
  std::vector<ObjectRef<int64_t>> tasks;
  for (int64_t i = 0; i < 2000; ++i) tasks.push_back(session.submit(successor, i));
  for (const auto& task : tasks) REQUIRE(task.get(deadline));
  tasks.clear();
  for (int64_t i = 0; i < 200; ++i) tasks.push_back(session.submit(ask_a_child, i));
  for (int64_t i = 0; i < 200; ++i) {
    REQUIRE(tasks[static_cast<size_t>(i)].get(deadline).value() == i + 2);
  }
}

// Keeps its queue full while the file exists, and says when it has begun.
void check_flood(const troupe::Session& session, const std::string& path) {
  std::deque<ObjectRef<void>> tasks;
  for (size_t done = 0; std::filesystem::exists(path); ++done) {
    while (tasks.size() < 2000) tasks.push_back(session.submit(rest_a_millisecond));
    tasks.front().get(deadline).value();
    tasks.pop_front();
    if (done == 1000) mark(path);
  }
  for (const auto& task : tasks) session.cancel(task).value();
}

void check_one_task(const troupe::Session& session) {
  REQUIRE(session.submit(successor, 1).get(30s).value() == 2);
}

}  // namespace

int main(int argc, char** argv) try {
  using Check = std::function<void(const troupe::Session&)>;
  const std::map<std::string, Check> checks{
      {"overlap", check_overlap},
      {"one_thread", check_one_thread},
      {"bounded", check_bounded},
      {"errors", check_errors},
      {"killed", check_killed},
      {"left_behind", check_left_behind},
      {"threads", check_threads},
      {"one_at_a_time", check_one_at_a_time},
      {"kill_threads", check_kill_threads},
      {"long_among_short", check_long_among_short},
      {"death_among_short", check_death_among_short},
      {"nested", check_nested},
      {"flood", [&](const auto& session) { check_flood(session, argc > 2 ? argv[2] : ""); }},
      {"one_task", check_one_task}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: concurrency NAME [FILE]\n";
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
