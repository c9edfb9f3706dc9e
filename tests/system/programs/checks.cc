// A driver that checks the SDK from inside a real cluster: `checks NAME` exits 0 if NAME holds.
#include <poll.h>
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <spawn.h>
#include <sys/wait.h>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using troupe::Code;
using troupe::ObjectRef;
using Numbers = std::vector<int64_t>;

struct Point {
  double x = 0;
  double y = 0;
  std::string label;
  std::vector<int> tags;
};

#define REQUIRE(condition)                                     \
  do {                                                         \
    if (!(condition)) {                                        \
      std::cerr << __LINE__ << ": not true: " #condition "\n"; \
      std::exit(1);                                            \
    }                                                          \
  } while (false)

}  // namespace

int64_t add(int64_t a, int64_t b) {
  return a + b;
}
TROUPE_TASK(add);
Point mirror(Point p) {
  return {-p.x, -p.y, p.label + "'", p.tags};
}
TROUPE_TASK(mirror);
void fail_with_message(const std::string& text) {
  throw std::runtime_error(text);
}
TROUPE_TASK(fail_with_message);
troupe::Result<int> odd_only(int n) {
  if (n % 2 == 0) return troupe::error(Code::conflict, "even");
  return n;
}
TROUPE_TASK(odd_only);
Numbers make_numbers(int64_t count) {
  Numbers values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}
TROUPE_TASK(make_numbers);
int64_t sum(const Numbers& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}
TROUPE_TASK(sum);
int64_t sum_refs(const std::vector<ObjectRef<int64_t>>& refs) {
  int64_t total = 0;
  for (const auto& ref : refs) total += ref.get().value();
  return total;
}
TROUPE_TASK(sum_refs);
// Counts its leaves. Each level waits in another way.
int64_t fan_out(int64_t depth);
troupe::Coroutine<int64_t> await_two(troupe::Session session, int64_t depth) {
  const auto left = session.submit(fan_out, depth);
  const auto right = session.submit(fan_out, depth);
  const int64_t first = (co_await left).value();
  const int64_t second = (co_await right).value();
  co_return first + second;
}
int64_t fan_out(int64_t depth) {
  if (depth == 0) return 1;
  const auto session = troupe::connect().value();
  if (depth == 1) return await_two(session, 0).get();
  const std::vector<ObjectRef<int64_t>> refs{session.submit(fan_out, depth - 1),
                                             session.submit(fan_out, depth - 1)};
  if (depth == 2) session.wait(refs, {.count = 2}).value();
  return refs[0].get().value() + refs[1].get().value();
}
TROUPE_TASK(fan_out);
std::vector<ObjectRef<int64_t>> give_refs(int64_t count) {
  const auto session = troupe::connect().value();
  std::vector<ObjectRef<int64_t>> refs;
  for (int64_t i = 0; i < count; ++i) refs.push_back(session.put(i).value());
  return refs;
}
TROUPE_TASK(give_refs);
void wait_for_ever() {
  for (;;) ::pause();
}
TROUPE_TASK(wait_for_ever);
int die_by_signal() {
  ::kill(::getpid(), SIGKILL);
  return 0;
}
TROUPE_TASK(die_by_signal);
void run_while_exists(const std::string& path) {
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 5);
}
TROUPE_TASK(run_while_exists);
// What `program name` prints.
std::string run_program(const std::string& program, const std::string& name) {
  std::string printed;
  FILE* const output = ::popen((program + " " + name).c_str(), "r");
  char buffer[256];
  while (std::fgets(buffer, sizeof buffer, output) != nullptr) printed += buffer;
  ::pclose(output);
  return printed;
}
TROUPE_TASK(run_program);
int process_id() {
  return ::getpid();
}
TROUPE_TASK(process_id);

namespace twins {
namespace left {
int which() {
  return 1;
}
TROUPE_TASK(which);
}  // namespace left
namespace right {
int which() {
  return 2;
}
TROUPE_TASK(which);
int other() {
  return 3;
}
}  // namespace right
namespace left {
int other() {
  return 4;
}
}  // namespace left
}  // namespace twins
TROUPE_TASK(twins::left::other);
TROUPE_TASK(twins::right::other);

class Ledger {
 public:
  Ledger(std::string owner, int64_t start) : owner_(std::move(owner)), balance_(start) {}
  int64_t deposit(int64_t amount) {
    log_.push_back(amount);
    return balance_ += amount;
  }
  std::string owner() const { return owner_; }
  Numbers log() const { return log_; }
  void crash() { ::kill(::getpid(), SIGKILL); }
  int64_t read_ref(const ObjectRef<int64_t>& ref) {
    kept_ = ref;  // Borrows it beyond this call.
    return kept_.get().value();
  }
  int64_t read_kept() const { return kept_.get().value(); }

 private:
  std::string owner_;
  int64_t balance_;
  Numbers log_;
  ObjectRef<int64_t> kept_;
};
using MakeLedger = Ledger(std::string, int64_t);
TROUPE_ACTOR(MakeLedger, deposit, owner, log, crash, read_ref, read_kept);

class Archive {
 public:
  Archive(int64_t first, const Numbers& numbers, const std::vector<ObjectRef<int64_t>>& refs)
      : total_(first + sum(numbers) + sum_refs(refs)) {}
  int64_t total() const { return total_; }
  void crash() { ::kill(::getpid(), SIGKILL); }

 private:
  int64_t total_;
};
using MakeArchive = Archive(int64_t, Numbers, std::vector<ObjectRef<int64_t>>);
TROUPE_ACTOR(MakeArchive, total, crash);

// Answers many callers, of whom each counts.
class Tally {
 public:
  // Whether this caller's calls have come in order so far.
  bool count(int64_t caller, int64_t number) { return next_[caller]++ == number; }
  Numbers numbers(int64_t count) const { return make_numbers(count); }
  std::vector<ObjectRef<int64_t>> refs(int64_t count) const { return give_refs(count); }
  // Says in a file that it runs, and waits until there is no file any more.
  void hold(const std::string& path) const {
    std::fclose(std::fopen(path.c_str(), "w"));
    run_while_exists(path);
  }

 private:
  std::map<int64_t, int64_t> next_;
};
using MakeTally = Tally();
TROUPE_ACTOR(MakeTally, count, numbers, refs, hold);

namespace {

// A path where nothing is.
std::string free_path() {
  char path[] = "/tmp/troupe-hold-XXXXXX";
  ::close(::mkstemp(path));
  ::unlink(path);
  return path;
}

void wait_for_file(const std::string& path) {
  while (!std::filesystem::exists(path)) ::poll(nullptr, 0, 5);
}

void check_tasks(const troupe::Session& session) {
  REQUIRE(session.submit(add, 2, 3).get().value() == 5);
  const Point p = session.submit(mirror, Point{1, 2, "p", {1, 2, 3}}).get().value();
  REQUIRE(p.x == -1 && p.label == "p'" && p.tags.size() == 3);
  // Refs as arguments: their values arrive.
  auto a = session.submit(add, 1, 1);
  auto b = session.submit(add, a, session.put(int64_t{40}).value());
  REQUIRE(b.get().value() == 42);
  std::vector<ObjectRef<int64_t>> many;
  for (int64_t i = 0; i < 500; ++i) many.push_back(session.submit(add, i, i));
  const auto values = session.get(many).value();
  for (int64_t i = 0; i < 500; ++i) REQUIRE(values[static_cast<size_t>(i)] == 2 * i);
  REQUIRE(session.submit(sum_refs, many).get().value() == 500 * 499);
}

void check_errors(const troupe::Session& session) {
  const auto thrown = session.submit(fail_with_message, "what a pity").get();
  REQUIRE(!thrown && thrown.error().code() == Code::internal);
  REQUIRE(thrown.error().message().find("what a pity") != std::string::npos);
  REQUIRE(!thrown.error().where().empty());
  REQUIRE(session.submit(odd_only, 3).get().value() == 3);
  REQUIRE(session.submit(odd_only, 4).get().error().code() == Code::conflict);
  // Of two tasks with one name neither is run for the other.
  const auto twin = session.submit(twins::left::which).get();
  REQUIRE(twin.error().code() == Code::invalid);
  REQUIRE(twin.error().message().find("which") != std::string::npos);
  REQUIRE(session.submit(twins::right::which).get().error().code() == Code::invalid);
  REQUIRE(session.submit(twins::left::other).get().value() == 4);
  REQUIRE(session.submit(twins::right::other).get().value() == 3);
  // An error flows through dependent tasks.
  auto failed = session.submit(odd_only, 4);
  const auto late = session.submit(wait_for_ever).get(std::chrono::milliseconds(200));
  REQUIRE(late.error().code() == Code::deadline_exceeded);
  REQUIRE(failed.get().error().code() == Code::conflict);
}

void check_objects(const troupe::Session& session) {
  const Numbers big = make_numbers(1'000'000);  // 8 MB: through the store.
  auto ref = session.put(big).value();
  REQUIRE(ref.get().value() == big);
  // Both nodes read it: one of them pulls it over.
  for (int i = 0; i < 4; ++i) REQUIRE(session.submit(sum, ref).get().value() == sum(big));
  // A large result of a task, read by another task and by the driver.
  auto made = session.submit(make_numbers, 500'000);
  REQUIRE(session.submit(sum, made).get().value() == 499'999ll * 500'000 / 2);
  REQUIRE(made.get().value().size() == 500'000);
  // Refs inside a result outlive the task that made them, while its process lives.
  const auto refs = session.submit(give_refs, 5).get().value();
  for (size_t i = 0; i < refs.size(); ++i)
    REQUIRE(refs[i].get().value() == static_cast<int64_t>(i));
}

void check_wait_and_cancel(const troupe::Session& session) {
  std::vector<ObjectRef<void>> stuck{session.submit(wait_for_ever)};
  auto none = session.wait(stuck, {.count = 1, .timeout = std::chrono::milliseconds(100)}).value();
  REQUIRE(none.ready.empty() && none.pending.size() == 1);
  session.cancel(stuck[0]).value();
  REQUIRE(stuck[0].get().error().code() == Code::cancelled);
  std::vector<ObjectRef<int64_t>> refs;
  for (int i = 0; i < 10; ++i) refs.push_back(session.submit(add, i, 1));
  const auto all = session.wait(refs, {.count = 10}).value();
  REQUIRE(all.ready.size() == 10 && all.pending.empty());
}

troupe::Coroutine<int64_t> chain(troupe::Session session) {
  int64_t total = 0;
  for (int64_t i = 0; i < 5; ++i) {
    const auto ref = session.submit(add, total, i);
    total = (co_await ref).value();
  }
  co_return total;
}

troupe::Coroutine<Code> await_empty_refs() {
  const ObjectRef<int64_t> number;
  const ObjectRef<void> nothing;
  const auto first = co_await number;
  const auto second = co_await nothing;
  co_return first || second.error().code() != first.error().code() ? Code::ok
                                                                   : first.error().code();
}

void check_coroutine(const troupe::Session& session) {
  REQUIRE(chain(session).get() == 10);
  REQUIRE(await_empty_refs().get() == Code::invalid);
}

void check_nested(const troupe::Session& session) {
  REQUIRE(session.submit(fan_out, 3).get(std::chrono::seconds(60)).value() == 8);
}

// On one cpu: the more urgent task starts first, and waits for what the other one gives.
void check_arguments_first(const troupe::Session& session) {
  char path[] = "/tmp/troupe-hold-XXXXXX";
  ::close(::mkstemp(path));
  const auto first = session.submit(run_while_exists, path);
  const auto numbers = session.submit(troupe::TaskOptions{.priority = -1}, make_numbers, 4);
  const std::vector total{session.submit(troupe::TaskOptions{.priority = 1}, sum, numbers)};
  // Both wait at the head for the cpu by then, and if not, this shows nothing but breaks nothing.
  const auto early = session.wait(total, {.timeout = std::chrono::milliseconds(300)});
  REQUIRE(early.value().ready.empty());
  ::unlink(path);
  REQUIRE(total[0].get(std::chrono::seconds(60)).value() == 6);
}

// A program that a task starts ends its own job, not that of the task.
void check_subprogram(const troupe::Session& session) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string printed = session.submit(run_program, self, "job").get().value();
  REQUIRE(printed.ends_with("\nok\n"));
  REQUIRE(!printed.starts_with(session.job().to_string()));
  REQUIRE(session.submit(add, 1, 1).get().value() == 2);
}

void check_job(const troupe::Session& session) {
  REQUIRE(session.submit(add, 1, 1).get().value() == 2);
  std::cout << session.job().to_string() << "\n";
}

void check_constructor_refs(const troupe::Session& session) {
  const Numbers big = make_numbers(300'000);  // 2.4 MB: more than a message may have.
  const auto made = [&] {
    // The head answers before the process starts: these refs are gone by then.
    return session
        .create<Archive>({.max_restarts = 1}, session.put(int64_t{7}).value(), big,
                         std::vector{session.put(int64_t{8}).value()})
        .value();
  };
  const auto archive = made();
  REQUIRE(archive.call<&Archive::total>().get().value() == 15 + sum(big));
  REQUIRE(archive.call<&Archive::crash>().get().error().code() == Code::outcome_unknown);
  REQUIRE(archive.call<&Archive::total>().get().value() == 15 + sum(big));
}

void check_actor(const troupe::Session& session) {
  const auto ledger = session.create<Ledger>({.name = "ledger"}, "ann", 100).value();
  std::vector<ObjectRef<int64_t>> refs;
  for (int64_t i = 1; i <= 200; ++i) refs.push_back(ledger.call<&Ledger::deposit>(i));
  REQUIRE(refs.back().get().value() == 100 + 200 * 201 / 2);
  const Numbers log = ledger.call<&Ledger::log>().get().value();
  for (size_t i = 0; i < log.size(); ++i) REQUIRE(log[i] == static_cast<int64_t>(i) + 1);
  REQUIRE(session.find<Ledger>("ledger").value().call<&Ledger::owner>().get().value() == "ann");
  REQUIRE(session.create<Ledger>({.name = "ledger"}, "bob", 0).error().code() == Code::conflict);
  const auto same =
      session.create<Ledger>({.name = "ledger", .get_if_exists = true}, "bob", 0).value();
  REQUIRE(same.id() == ledger.id());
  REQUIRE(session.find<Ledger>("nobody").error().code() == Code::not_found);
  // A ref that the actor keeps stays alive after the driver dropped it.
  {
    auto ref = session.put(int64_t{77}).value();
    REQUIRE(ledger.call<&Ledger::read_ref>(ref).get().value() == 77);
  }
  REQUIRE(ledger.call<&Ledger::read_kept>().get().value() == 77);
  REQUIRE(ledger.kill());
  // Calls that were under way may still be answered; soon none is.
  while (ledger.call<&Ledger::owner>().get()) {
  }
}

void check_restart(const troupe::Session& session) {
  const auto ledger = session.create<Ledger>({.max_restarts = 1}, "ann", 100).value();
  REQUIRE(ledger.call<&Ledger::deposit>(1).get().value() == 101);
  const auto unknown = ledger.call<&Ledger::crash>().get();
  REQUIRE(unknown.error().code() == Code::outcome_unknown);
  // The next incarnation starts from the constructor.
  REQUIRE(ledger.call<&Ledger::deposit>(5).get().value() == 105);
  REQUIRE(ledger.status().value().incarnation == 2);
  REQUIRE(!ledger.call<&Ledger::crash>().get());
  const auto dead = ledger.call<&Ledger::deposit>(1).get();
  REQUIRE(dead.error().code() == Code::unavailable);
}

void check_many_callers(const troupe::Session& session) {
  const auto tally = session.create<Tally>({}).value();
  constexpr int64_t callers = 8;
  constexpr int64_t calls = 10'000;
  std::atomic<int64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (int64_t caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&, caller] {
      std::vector<ObjectRef<bool>> refs;  // All under way at once.
      for (int64_t i = 0; i < calls; ++i) refs.push_back(tally.call<&Tally::count>(caller, i));
      for (const auto& ref : refs) {
        const auto in_order = ref.get();
        if (!in_order || !*in_order) ++wrong;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  REQUIRE(wrong == 0);
}

void check_large_results(const troupe::Session& session) {
  const auto tally = session.create<Tally>({}).value();
  std::vector<ObjectRef<Numbers>> refs;
  const std::vector<int64_t> counts{0, 1, 8'191, 8'192, 8'193, 100'000, 10};
  for (const int64_t count : counts) refs.push_back(tally.call<&Tally::numbers>(count));
  for (size_t i = 0; i < refs.size(); ++i) {
    REQUIRE(refs[i].get().value() == make_numbers(counts[i]));
  }
}

void check_refs_in_order(const troupe::Session& session) {
  const auto ledger = session.create<Ledger>({}, "ann", 0).value();
  const std::string path = free_path();
  std::fclose(std::fopen(path.c_str(), "w"));
  const auto slow = session.submit(run_while_exists, path);
  const auto other = session.create<Tally>({}).value();
  Numbers expected;
  ObjectRef<int64_t> last;
  for (int64_t i = 0; i < 300; ++i) {
    expected.push_back(i);
    switch (i % 10) {
      case 3:  // Of this process, ready.
        last = ledger.call<&Ledger::deposit>(session.put(i).value());
        break;
      case 6:  // Not ready yet.
        last = ledger.call<&Ledger::deposit>(session.submit(add, i, 0));
        break;
      case 9:  // Of another process.
        last = ledger.call<&Ledger::deposit>(
            other.call<&Tally::refs>(i + 1).get().value()[static_cast<size_t>(i)]);
        break;
      default:
        last = ledger.call<&Ledger::deposit>(i);
    }
  }
  ::unlink(path.c_str());
  REQUIRE(last.get().value() == 299 * 300 / 2);
  REQUIRE(ledger.call<&Ledger::log>().get().value() == expected);
  REQUIRE(slow.get());
}

void check_nested_refs(const troupe::Session& session) {
  const auto tally = session.create<Tally>({}).value();
  for (int round = 0; round < 20; ++round) {
    std::vector<ObjectRef<int64_t>> refs = tally.call<&Tally::refs>(20).get().value();
    // The result itself is gone by now; what it held is not.
    for (int64_t i = 0; i < 20; ++i) REQUIRE(refs[static_cast<size_t>(i)].get().value() == i);
    REQUIRE(session.submit(sum_refs, refs).get().value() == 190);
  }
}

// Threads wait, and thousands of calls are under way, when the callee dies.
void check_callee_dies(const troupe::Session& session) {
  const auto tally = session.create<Tally>({}).value();
  const std::string path = free_path();
  const auto held = tally.call<&Tally::hold>(path);
  wait_for_file(path);
  std::vector<ObjectRef<bool>> refs;
  for (int64_t i = 0; i < 2000; ++i) refs.push_back(tally.call<&Tally::count>(0, i));
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < refs.size(); i += 4) {
        // None of them had begun. Through a ring that is known; through TLS it is not.
        const auto outcome = refs[i].get();
        const Code code = outcome ? Code::ok : outcome.error().code();
        if (code != Code::unavailable && code != Code::outcome_unknown) {
          if (++wrong == 1) std::cerr << (outcome ? "it ran" : outcome.error().message()) << '\n';
        }
      }
    });
  }
  ::kill(static_cast<pid_t>(tally.status().value().pid), SIGKILL);
  for (auto& thread : threads) thread.join();
  REQUIRE(held.get().error().code() == Code::outcome_unknown);
  REQUIRE(wrong == 0);
  ::unlink(path.c_str());
  REQUIRE(tally.call<&Tally::count>(0, 0).get().error().code() == Code::unavailable);
}

// Threads go on calling, with much under way, while the callee dies: each call ends.
void check_calls_meet_death(const troupe::Session& session) {
  for (int round = 0; round < 10; ++round) {
    const auto tally = session.create<Tally>({}).value();
    REQUIRE(tally.call<&Tally::count>(0, 0).get().value());
    const auto pid = static_cast<pid_t>(tally.status().value().pid);
    std::atomic<int> made = 0;
    std::atomic<bool> killed = false;
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (int64_t caller = 1; caller <= 3; ++caller) {
      threads.emplace_back([&, caller] {
        std::vector<ObjectRef<bool>> refs;
        for (int64_t after = 0; after < 2000; after += killed ? 1 : 0) {
          refs.push_back(tally.call<&Tally::count>(caller, static_cast<int64_t>(refs.size())));
          ++made;
        }
        for (const auto& ref : refs) {
          const auto answer = ref.get(std::chrono::seconds(30));
          const Code code = answer ? Code::ok : answer.error().code();
          if (answer ? !*answer : code != Code::outcome_unknown && code != Code::unavailable)
            ++wrong;
        }
      });
    }
    while (made < 6000) std::this_thread::yield();
    ::kill(pid, SIGKILL);
    killed = true;
    for (auto& thread : threads) thread.join();
    REQUIRE(wrong == 0);
  }
}

// What `caller_dies` starts, and kills: it calls what does not return, and much besides.
void check_call_and_hang(const troupe::Session& session) {
  const auto tally = session.find<Tally>("patient").value();
  std::vector<ObjectRef<bool>> refs;
  for (int64_t i = 0; i < 500; ++i) refs.push_back(tally.call<&Tally::count>(1, i));
  const auto held = tally.call<&Tally::hold>(std::getenv("TROUPE_CHECK_PATH"));
  for (int64_t i = 500; i < 1000; ++i) refs.push_back(tally.call<&Tally::count>(1, i));
  (void)held.get();
}

void check_caller_dies(const troupe::Session& session) {
  const auto tally = session.create<Tally>({.name = "patient"}).value();
  const std::string path = free_path();
  ::setenv("TROUPE_CHECK_PATH", path.c_str(), 1);
  std::string self = std::filesystem::read_symlink("/proc/self/exe");
  std::string name = "call_and_hang";
  char* const arguments[] = {self.data(), name.data(), nullptr};
  pid_t child = 0;
  REQUIRE(::posix_spawn(&child, self.c_str(), nullptr, nullptr, arguments, environ) == 0);
  wait_for_file(path);
  ::kill(child, SIGKILL);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  ::unlink(path.c_str());
  // What it had called is over or was dropped; the actor goes on for others.
  REQUIRE(tally.call<&Tally::count>(2, 0).get().value());
}

// A second session of the program ends while calls and tasks are under way.
void check_close_in_flight(const troupe::Session&) {
  const std::string path = free_path();
  for (int round = 0; round < 3; ++round) {
    const auto second = troupe::connect().value();
    const auto tally = second.create<Tally>({}).value();
    const auto held = tally.call<&Tally::hold>(path);
    wait_for_file(path);
    for (int64_t i = 0; i < 3000; ++i) (void)tally.call<&Tally::count>(0, i);
    for (int i = 0; i < 10; ++i) (void)second.submit(wait_for_ever);
  }
  ::unlink(path.c_str());
}

void check_task_death(const troupe::Session& session) {
  const auto lost = session.submit(die_by_signal).get();
  REQUIRE(lost.error().code() == Code::outcome_unknown);
  REQUIRE(session.submit(add, 1, 1).get().value() == 2);
}

void check_detached(const troupe::Session& session) {
  const auto ledger =
      session
          .create<Ledger>({.name = "for-ever", .get_if_exists = true, .detached = true}, "ann", 0)
          .value();
  std::cout << ledger.call<&Ledger::deposit>(1).get().value() << "\n";
}

// Creates a named restartable actor and prints its pid-like marker; used by tests that kill things.
void check_hold(const troupe::Session& session) {
  const auto ledger =
      session.create<Ledger>({.name = "held", .max_restarts = -1}, "ann", 0).value();
  REQUIRE(ledger.call<&Ledger::deposit>(1).get().value() == 1);
  std::cout << "ready" << std::endl;
  std::string line;
  while (std::getline(std::cin, line)) {
  }
  for (;;) ::pause();
}

}  // namespace

int main(int argc, char** argv) try {
  const std::map<std::string, std::function<void(const troupe::Session&)>> checks{
      {"tasks", check_tasks},
      {"errors", check_errors},
      {"objects", check_objects},
      {"wait_and_cancel", check_wait_and_cancel},
      {"coroutine", check_coroutine},
      {"nested", check_nested},
      {"arguments_first", check_arguments_first},
      {"subprogram", check_subprogram},
      {"job", check_job},
      {"constructor_refs", check_constructor_refs},
      {"actor", check_actor},
      {"restart", check_restart},
      {"many_callers", check_many_callers},
      {"large_results", check_large_results},
      {"refs_in_order", check_refs_in_order},
      {"nested_refs", check_nested_refs},
      {"callee_dies", check_callee_dies},
      {"calls_meet_death", check_calls_meet_death},
      {"caller_dies", check_caller_dies},
      {"call_and_hang", check_call_and_hang},
      {"close_in_flight", check_close_in_flight},
      {"task_death", check_task_death},
      {"detached", check_detached},
      {"hold", check_hold}};
  const auto found = argc == 2 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: checks NAME\n";
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
