// A driver that checks what is told of why something waits, in a real cluster of one worker with
// two cpus: `why NAME` exits 0 if NAME holds.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

using namespace std::chrono_literals;
using troupe::ActorRef;
using troupe::Code;
using troupe::Coroutine;
using troupe::Explanation;
using troupe::ObjectRef;

namespace {

void wait_while_exists(const std::string& path) {
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 2);
}

void leave_mark(const std::string& path) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (file < 0) return;
  const ssize_t written = ::write(file, "x", 1);
  ::close(file);
  if (written != 1) throw std::runtime_error("cannot mark");
}

}  // namespace

int64_t hold(const std::string& path) {
  leave_mark(path);
  wait_while_exists(path);
  return 1;
}
TROUPE_TASK(hold);
int64_t successor(int64_t n) {
  return n + 1;
}
TROUPE_TASK(successor);
int64_t fails_first(const std::string& path) {
  if (std::filesystem::exists(path)) throw troupe::error(Code::unavailable, "not yet");
  return 1;
}
TROUPE_TASK(fails_first);

// Its methods wait for others, each holding its actor's turn.
class Desk {
 public:
  Desk() = default;
  int64_t hold(const std::string& path) { return ::hold(path); }
  int64_t answer() { return 7; }
  // Waits until all who are to meet here have begun, so that none finds the other one idle.
  int64_t ask(const std::string& gate, ActorRef<Desk> other) {
    leave_mark(gate);
    wait_while_exists(gate);
    return other.call<&Desk::answer>().get().value();
  }
  // The same through a task.
  int64_t ask_by_task(ActorRef<Desk> other);
  int64_t wait_for_any(const std::string& gate, ActorRef<Desk> other) {
    leave_mark(gate);
    wait_while_exists(gate);
    const auto session = troupe::connect().value();
    const std::vector both{other.call<&Desk::answer>(), other.call<&Desk::answer>()};
    return static_cast<int64_t>(session.wait(both, {.count = 1}).value().ready.size());
  }
  int64_t ask_for(const std::string& gate, ActorRef<Desk> other, int64_t limit_ms) {
    leave_mark(gate);
    wait_while_exists(gate);
    const auto answer = other.call<&Desk::answer>().get(std::chrono::milliseconds(limit_ms));
    if (!answer) throw answer.error();
    return *answer;
  }
  std::string explain(const std::string& path) {
    const auto session = troupe::connect().value();
    const auto ref = session.submit(::hold, path);
    eventually([&] { return session.explain(ref).value().steps.back().state == "running"; });
    return session.explain(ref).value().text;
  }
};
TROUPE_ACTOR(Desk(), hold, answer, ask, ask_by_task, wait_for_any, ask_for, explain);

int64_t relay(ActorRef<Desk> desk) {
  return desk.call<&Desk::answer>().get().value();
}
TROUPE_TASK(relay);

int64_t Desk::ask_by_task(ActorRef<Desk> other) {
  const auto session = troupe::connect().value();
  return session.submit(relay, other).get().value();
}

// It waits for an item of a stream that begins once the gate is open.
troupe::Generator<int64_t> items_behind(std::string path) {
  wait_while_exists(path);
  co_yield 7;
}
TROUPE_TASK(items_behind);
int64_t take_item(const std::string& path) {
  auto items = troupe::connect().value().stream({}, items_behind, path);
  return items.next(45s).value().value();
}
TROUPE_TASK(take_item);
// It waits for room in a handle whose one place is taken until the gate is open.
int64_t take_turns(const std::string& path, ActorRef<Desk> desk) {
  const auto limited = desk.limited(1);
  const auto held = limited.call<&Desk::hold>(path);
  return limited.within(45s).call<&Desk::answer>().get().value();
}
TROUPE_TASK(take_turns);

// The same in coroutines, during whose waits other calls of their actor run.
class Booth {
 public:
  Booth() = default;
  Coroutine<int64_t> answer(std::string gate) {
    const auto session = troupe::connect().value();
    const auto held = session.submit(::hold, gate);
    co_return (co_await held).value();
  }
  Coroutine<int64_t> relay(ActorRef<Booth> other, std::string gate) {
    const auto answered = other.call<&Booth::answer>(gate);
    co_return (co_await answered).value();
  }
  Coroutine<int64_t> ask(ActorRef<Booth> other, ActorRef<Booth> self, std::string gate) {
    const auto answered = other.call<&Booth::relay>(self, gate);
    co_return (co_await answered).value();
  }
};
TROUPE_ACTOR(Booth(), answer, relay, ask);

// From its second start on it waits for the gate.
class Slow {
 public:
  explicit Slow(std::string path) {
    if (troupe::this_actor()->incarnation > 1) wait_while_exists(path);
  }
  int64_t answer() { return 7; }
  void die() { ::raise(SIGKILL); }
};
TROUPE_ACTOR(Slow(std::string), answer, die);

namespace {

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

template <class T>
std::string text_of(const ObjectRef<T>& ref) {
  return troupe::explain(ref).value().text;
}

// Its text once it has this part; the last one, if it never does.
template <class T>
std::string text_with(const ObjectRef<T>& ref, const std::string& part) {
  std::string text;
  eventually([&] { return has(text = text_of(ref), part); });
  return text;
}

#define REQUIRE_PART(text, part)                                                 \
  do {                                                                           \
    const std::string shown = (text);                                            \
    if (!has(shown, part)) {                                                     \
      std::cerr << __LINE__ << ": no '" << (part) << "' in:\n" << shown << "\n"; \
      std::exit(1);                                                              \
    }                                                                            \
  } while (false)

void check_resources(const troupe::Session& session) {
  const Gate gate;
  const std::vector held{session.submit(hold, gate.path()), session.submit(hold, gate.path())};
  REQUIRE(eventually([&] { return gate.marks() == 2; }));
  const auto waits = session.submit({.resources = {.cpu = 2}}, successor, 1);
  const std::string text = text_with(waits, "short of cpu");
  REQUIRE_PART(text, "task successor waits for a slot with cpu 2");
  REQUIRE_PART(text, "short of cpu on 1 of them (needs 2, at most 0 free)");
  const auto steps = session.explain(waits).value().steps;
  REQUIRE(steps.size() == 2 && steps[1].kind == "lease" && steps[1].depth == 1);
  const auto never = session.submit({.resources = {.cpu = 64}}, successor, 1);
  REQUIRE_PART(text_with(never, "fits no node"), "short of cpu on 1 of them (needs 64");
  session.cancel(never).value();
  gate.open();
  REQUIRE(waits.get(deadline).value() == 2);
}

void check_dependency(const troupe::Session& session) {
  const Gate gate;
  const auto first = session.submit(hold, gate.path());
  const auto second = session.submit(successor, first);
  const std::string text = text_with(second, "its code runs");
  REQUIRE_PART(text, "call task successor");
  REQUIRE_PART(text, "1 of its arguments are refs");
  REQUIRE_PART(text, "call task hold");
  const auto steps = session.explain(second).value().steps;
  REQUIRE(steps.size() == 4 && steps[3].state == "running" && steps[3].since > 0s);
  gate.open();
  REQUIRE(second.get(deadline).value() == 2);
  REQUIRE_PART(text_of(second), ": ready");
}

void check_mailbox(const troupe::Session& session) {
  const Gate gate;
  const auto desk = session.create<Desk>({.name = "busy-desk"}).value();
  const auto held = desk.call<&Desk::hold>(gate.path());
  const auto next = desk.call<&Desk::answer>();
  const auto last = desk.call<&Desk::answer>();
  const std::string text = text_with(last, "its code runs");
  REQUIRE_PART(text, "call Desk.answer of busy-desk");
  REQUIRE_PART(text, "queued: number 2 in the mailbox, behind Desk.hold of busy-desk");
  REQUIRE(troupe::explain(last).value().deadlock.empty());
  gate.open();
  REQUIRE(last.get(deadline).value() == 7);
}

void check_restart(const troupe::Session& session) {
  const Gate gate;
  const auto slow = session.create<Slow>({.name = "slow", .max_restarts = 1}, gate.path()).value();
  slow.wait_alive(deadline).value();
  REQUIRE(!slow.call<&Slow::die>().get(deadline));
  const auto answer = slow.call<&Slow::answer>();
  const std::string text = text_with(answer, "started 2 times");
  REQUIRE_PART(text, "answer waits for its actor");
  REQUIRE_PART(text, "actor slow (Slow)");
  gate.open();
  REQUIRE(answer.get(deadline).value() == 7);
  slow.kill().value();
  // Its process may outlive the word of its death by a moment.
  ObjectRef<int64_t> refused;
  REQUIRE(eventually([&] {
    refused = slow.call<&Slow::answer>();
    return !refused.get(deadline);
  }));
  REQUIRE_PART(text_of(refused), ": failed: ");
}

void check_placement(const troupe::Session& session) {
  const auto desk = session.create<Desk>({.resources = {.cpu = 64}, .name = "giant"}).value();
  const auto answer = desk.call<&Desk::answer>();
  const std::string text = text_with(answer, "fits no node");
  REQUIRE_PART(text, "actor giant (Desk)");
  REQUIRE_PART(text, "pending");
  desk.kill().value();
}

void check_back_off(const troupe::Session& session) {
  const Gate gate;
  const auto ref = session.submit(
      {.retries = 1, .retry_on = {Code::unavailable}, .retry_delay = 5s}, fails_first, gate.path());
  REQUIRE_PART(text_with(ref, "backing off"), "task fails_first failed; its retry 1 begins in");
  gate.open();
  REQUIRE(ref.get(deadline).value() == 1);
}

void check_deadlines(const troupe::Session& session) {
  const Gate gate;
  const auto desk = session.create<Desk>({}).value();
  const auto held = desk.call<&Desk::hold>(gate.path());
  const auto call = desk.call<&Desk::answer>({.timeout = 40s});
  const auto limited = session.submit({.time_limit = 50s}, hold, gate.path());
  const auto running = [&] { return session.explain(limited).value().steps.back().deadline_in; };
  REQUIRE(eventually([&] { return running() > 0s; }));
  REQUIRE(running() <= 50s);
  const auto steps = session.explain(call).value().steps;
  REQUIRE(steps[0].deadline_in > 0s && steps[0].deadline_in <= 40s);
  REQUIRE_PART(text_of(call), ", deadline in ");
  gate.open();
  REQUIRE(call.get(deadline).value() == 7);
}

// What is told of `ref`'s call has `part`, and a deadline within 45 s.
template <class T>
void require_deadline(const ObjectRef<T>& ref, const std::string& part) {
  REQUIRE_PART(text_with(ref, part), ", deadline in ");
  for (const auto& step : troupe::explain(ref).value().steps) {
    if (!has(step.why, part)) continue;
    REQUIRE(step.deadline_in > 0s && step.deadline_in <= 45s);
    return;
  }
  REQUIRE_PART(text_of(ref), part);
}

void check_client_deadlines(const troupe::Session& session) {
  const Gate gate;
  const auto item = session.submit(take_item, gate.path());
  require_deadline(item, "its next waits for the next item of a stream");
  const auto desk = session.create<Desk>({}).value();
  const auto turn = session.submit(take_turns, gate.path(), desk);
  require_deadline(turn, "its wait for room in a limited handle goes on");
  gate.open();
  REQUIRE(item.get(deadline).value() == 7);
  REQUIRE(turn.get(deadline).value() == 7);
}

// A process that stands still is named; what it runs goes on once it may.
void check_silent_process(const troupe::Session& session) {
  const Gate gate;
  const auto desk = session.create<Desk>({.name = "still-desk"}).value();
  const auto held = desk.call<&Desk::hold>(gate.path());
  REQUIRE(eventually([&] { return gate.marks() == 1; }));
  const auto pid = static_cast<pid_t>(desk.status().value().pid);
  REQUIRE(::kill(pid, SIGSTOP) == 0);
  const std::string text = text_of(held);
  REQUIRE(::kill(pid, SIGCONT) == 0);
  REQUIRE_PART(text, "does not answer: ");
  REQUIRE_PART(text, "it hosts actor still-desk (Desk)");
  REQUIRE_PART(text, "on node worker-0, which is alive");
  gate.open();
  REQUIRE(held.get(deadline).value() == 1);
}

// Exactly one of them fails, and says of what; then both serve again.
template <class T>
void require_one_deadlock(const std::vector<ObjectRef<T>>& refs) {
  size_t failed = 0;
  for (const auto& ref : refs) {
    const auto outcome = ref.get(deadline);
    if (outcome) continue;
    ++failed;
    REQUIRE(outcome.error().code() == Code::conflict);
    REQUIRE_PART(outcome.error().message(), "deadlock: ");
    REQUIRE_PART(outcome.error().message(), ", which ");
  }
  REQUIRE(failed == 1);
}

void check_deadlock(const troupe::Session& session) {
  const Gate gate;
  const auto left = session.create<Desk>({.name = "left"}).value();
  const auto right = session.create<Desk>({.name = "right"}).value();
  const auto began = std::chrono::steady_clock::now();
  const std::vector both{left.call<&Desk::ask>(gate.path(), right),
                         right.call<&Desk::ask>(gate.path(), left)};
  REQUIRE(eventually([&] { return gate.marks() == 2; }));
  gate.open();
  require_one_deadlock(both);
  REQUIRE(std::chrono::steady_clock::now() - began < 30s);
  REQUIRE(left.call<&Desk::answer>().get(deadline).value() == 7);
  REQUIRE(right.call<&Desk::answer>().get(deadline).value() == 7);
}

void check_deadlock_of_many(const troupe::Session& session) {
  const Gate gate;
  const int64_t count = 5;
  const auto desks = session.create_many<Desk>({.process = troupe::ActorProcess::shared}, count);
  std::vector<ObjectRef<int64_t>> asked;
  for (size_t i = 0; i < count; ++i) {
    asked.push_back((*desks)[i].call<&Desk::ask>(gate.path(), (*desks)[(i + 1) % count]));
  }
  REQUIRE(eventually([&] { return gate.marks() == count; }));
  gate.open();
  require_one_deadlock(asked);
}

void check_deadlock_with_itself(const troupe::Session& session) {
  const Gate gate;
  gate.open();
  const auto desk = session.create<Desk>({.name = "alone"}).value();
  const auto asked = desk.call<&Desk::ask>(gate.path(), desk).get(deadline);
  REQUIRE(!asked && asked.error().code() == Code::conflict);
  REQUIRE_PART(asked.error().message(),
               "deadlock: Desk.ask of alone waits for Desk.answer of alone, which is queued behind "
               "Desk.ask of alone");
  const auto waited = desk.call<&Desk::wait_for_any>(gate.path(), desk).get(deadline);
  REQUIRE(!waited && waited.error().code() == Code::conflict);
  const auto by_task = desk.call<&Desk::ask_by_task>(desk).get(deadline);
  REQUIRE(!by_task && by_task.error().code() == Code::conflict);
  REQUIRE_PART(by_task.error().message(), "task relay");
  REQUIRE(desk.call<&Desk::answer>().get(deadline).value() == 7);
}

void check_deadlock_of_coroutines(const troupe::Session& session) {
  const Gate gate;
  gate.open();
  // One unfinished call at a time each: so they hold their turns as other methods do.
  const auto left = session.create<Booth>({.name = "l", .max_concurrency = 1}).value();
  const auto asked = left.call<&Booth::relay>(left, gate.path()).get(deadline);
  REQUIRE(!asked && asked.error().code() == Code::conflict);
  REQUIRE_PART(asked.error().message(), "Booth.relay of l waits for Booth.answer of l");
  REQUIRE(left.call<&Booth::answer>(gate.path()).get(deadline).value() == 1);
}

// They wait for each other, and go on all the same.
void check_no_deadlock(const troupe::Session& session) {
  const Gate gate;
  const auto left = session.create<Booth>({}).value();
  const auto right = session.create<Booth>({}).value();
  const auto coroutines = left.call<&Booth::ask>(right, left, gate.path());
  const auto threaded = session.create<Desk>({.max_concurrency = 2}).value();
  const auto own = threaded.call<&Desk::hold>(gate.path());
  const auto threads = threaded.call<&Desk::hold>(gate.path());
  const auto queued = threaded.call<&Desk::answer>();
  REQUIRE(eventually([&] { return gate.marks() == 3; }));
  REQUIRE_PART(text_with(queued, "2 of at most 2 calls at once have begun"), "its code runs");
  // A wait that ends by itself is left to that.
  const Gate other_gate;
  const auto first = session.create<Desk>({}).value();
  const auto second = session.create<Desk>({}).value();
  const auto limited = first.call<&Desk::ask_for>(other_gate.path(), second, 4000);
  const auto waits = second.call<&Desk::ask>(other_gate.path(), first);
  REQUIRE(eventually([&] { return other_gate.marks() == 2; }));
  other_gate.open();
  const auto timed_out = limited.get(deadline);
  REQUIRE(!timed_out && timed_out.error().code() == Code::deadline_exceeded);
  REQUIRE(waits.get(deadline).value() == 7);
  // By now each wait that takes long was looked at.
  REQUIRE(!session.wait(std::vector{coroutines}, {.timeout = 0s}).value().ready.size());
  gate.open();
  REQUIRE(coroutines.get(deadline).value() == 1);
  REQUIRE(queued.get(deadline).value() == 7);
}

void check_inside(const troupe::Session& session) {
  const Gate gate;
  const auto desk = session.create<Desk>({}).value();
  const auto told = desk.call<&Desk::explain>(gate.path());
  REQUIRE_PART(told.get(deadline).value(), "call task hold");
  gate.open();
}

// Waits until the gate opens, for a call of an actor that the outside knows by its name. `far`: it
// lives where that resource is.
void check_blocked(const troupe::Session& session, const std::string& path, bool far) {
  troupe::ActorOptions options{.name = "asked"};
  if (far) options.resources.custom = {{"far", 1}};
  const auto desk = session.create<Desk>(options).value();
  const auto held = desk.call<&Desk::hold>(path);
  const auto behind = desk.call<&Desk::answer>();
  REQUIRE(behind.get(deadline).value() == 7);
}

void check_many_threads(const troupe::Session& session) {
  const Gate gate;
  const auto desk = session.create<Desk>({.name = "popular"}).value();
  const auto held = desk.call<&Desk::hold>(gate.path());
  const auto last = desk.call<&Desk::answer>();
  REQUIRE_PART(text_with(last, "behind Desk.hold of popular"), "its code runs");
  std::atomic<int> told = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 20; ++n) {
        if (has(text_of(last), "behind Desk.hold of popular")) ++told;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  REQUIRE(told == 160);
  gate.open();
}

}  // namespace

int main(int argc, char** argv) try {
  using Check = std::function<void(const troupe::Session&)>;
  const std::map<std::string, Check> checks{
      {"resources", check_resources},
      {"dependency", check_dependency},
      {"mailbox", check_mailbox},
      {"restart", check_restart},
      {"placement", check_placement},
      {"back_off", check_back_off},
      {"deadlines", check_deadlines},
      {"client_deadlines", check_client_deadlines},
      {"silent_process", check_silent_process},
      {"deadlock", check_deadlock},
      {"deadlock_of_many", check_deadlock_of_many},
      {"deadlock_with_itself", check_deadlock_with_itself},
      {"deadlock_of_coroutines", check_deadlock_of_coroutines},
      {"no_deadlock", check_no_deadlock},
      {"inside", check_inside},
      {"many_threads", check_many_threads},
      {"blocked", [&](const auto& one) { check_blocked(one, argc > 2 ? argv[2] : "", false); }},
      {"blocked_far", [&](const auto& one) { check_blocked(one, argc > 2 ? argv[2] : "", true); }}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: why NAME [FILE]\n";
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
