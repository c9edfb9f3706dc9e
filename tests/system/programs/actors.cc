// A driver that checks light actors, batches of them, concurrency groups, mailboxes and ends inside
// a real cluster: `actors NAME` exits 0 if NAME holds.
#include <poll.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "check.h"

namespace {

using namespace std::chrono_literals;
using troupe::ActorProcess;
using troupe::ActorRef;
using troupe::Code;
using troupe::Coroutine;
using troupe::ObjectRef;

// For what must not happen: if it happens later, a check shows nothing but breaks nothing.
constexpr auto moment = 300ms;

void mark(const std::string& path) {
  std::ofstream{path, std::ios::app} << '.' << std::flush;
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
template <class T>
bool fails(const troupe::Result<T>& result, Code code, const std::string& text) {
  if (result) return false;
  const bool as_said =
      result.error().code() == code && result.error().message().find(text) != std::string::npos;
  if (!as_said) std::cerr << "another error: " << result.error().to_string() << "\n";
  return as_said;
}

}  // namespace

class Cell {
 public:
  explicit Cell(int value) : value_(value) {
    if (value == 13) throw troupe::error(Code::invalid, "13 is no value");
  }
  int add(int n) { return value_ += n; }
  int pid() { return ::getpid(); }
  int incarnation() { return static_cast<int>(troupe::this_actor().value().incarnation); }
  void hold(std::string path) { wait_while_exists(path); }
  void abort_process() { std::abort(); }
  // Blocks until the next one has answered.
  int depth(std::vector<ActorRef<Cell>> rest);
  int pass(int value) { return value; }

 private:
  int value_;
};
TROUPE_ACTOR(Cell(int), add, pid, incarnation, hold, abort_process, depth, pass);

int Cell::depth(std::vector<ActorRef<Cell>> rest) {
  if (rest.empty()) return 0;
  const ActorRef<Cell> next = rest.back();
  rest.pop_back();
  return 1 + next.call<&Cell::depth>(rest).get(deadline).value();
}

class Grouped {
 public:
  Grouped() = default;
  void hold(std::string path) { wait_while_exists(path); }
  // Returns once `count` of them are inside.
  int meet(int count) {
    ++inside_;
    const auto end = std::chrono::steady_clock::now() + deadline;
    while (inside_ < count && std::chrono::steady_clock::now() < end) ::poll(nullptr, 0, 1);
    return inside_;
  }
  int most() {
    const int now = ++present_;
    int seen = most_;
    while (seen < now && !most_.compare_exchange_weak(seen, now)) {
    }
    ::poll(nullptr, 0, 5);
    --present_;
    return most_;
  }

 private:
  std::atomic<int> inside_ = 0;
  std::atomic<int> present_ = 0;
  std::atomic<int> most_ = 0;
};
TROUPE_ACTOR(Grouped(), hold, meet, most);
TROUPE_CONCURRENCY_GROUP(Grouped, "io", 3, meet, most);

class Waiting {
 public:
  Waiting() = default;
  Coroutine<int> after(ObjectRef<int> ref) { co_return (co_await ref).value() + 1; }
  Coroutine<int> at_once(int n) { co_return n; }
  Coroutine<int> limited(ObjectRef<int> ref) { co_return (co_await ref).value(); }
};
TROUPE_ACTOR(Waiting(), after, at_once, limited);
TROUPE_CONCURRENCY_GROUP(Waiting, "few", 2, limited);

class Leaving {
 public:
  Leaving(std::string path, bool hangs) : path_(std::move(path)), hangs_(hangs) {}
  ~Leaving() { mark(path_); }
  int ready() { return 1; }
  void on_exit() {
    mark(path_);
    while (hangs_) ::poll(nullptr, 0, 10);
  }

 private:
  std::string path_;
  bool hangs_;
};
using MakeLeaving = Leaving(std::string, bool);
TROUPE_ACTOR(MakeLeaving, ready);

int after_gate(std::string path, int value) {
  wait_while_exists(path);
  return value;
}
TROUPE_TASK(after_gate);

namespace {

const troupe::ActorOptions light{.process = ActorProcess::shared};

void check_many(const troupe::Session& session) {
  constexpr int count = 2000;
  const auto cells =
      session.create_each<Cell>(light, count, [](size_t i) { return std::tuple{1000 + int(i)}; })
          .value();
  session.wait_alive(cells, deadline).value();
  std::vector<ObjectRef<int>> sums;
  for (const auto& cell : cells) sums.push_back(cell.call<&Cell::add>(1));
  for (int i = 0; i < count; ++i) REQUIRE(sums[size_t(i)].get(deadline).value() == 1001 + i);
  std::set<int> pids;
  for (const auto& cell : cells) pids.insert(cell.call<&Cell::pid>().get(deadline).value());
  REQUIRE(pids.size() == 1);
  // Calls to one are run in order, those to others beside them.
  sums.clear();
  for (int i = 0; i < 1000; ++i) {
    sums.push_back(cells[7].call<&Cell::add>(1));
    cells[8].call<&Cell::add>(1);
  }
  for (int i = 0; i < 1000; ++i) REQUIRE(sums[size_t(i)].get(deadline).value() == 1009 + i);
  session.kill(cells).value();
  const auto& last = cells.back();
  REQUIRE(eventually([&] { return !last.call<&Cell::add>(1).get(deadline); }));
  REQUIRE(fails(last.call<&Cell::add>(1).get(deadline), Code::unavailable, "killed"));
  // Nobody is left in it, so it ends.
  REQUIRE(eventually(
      [&] { return !std::filesystem::exists("/proc/" + std::to_string(*pids.begin())); }));
}

void check_own_processes(const troupe::Session& session) {
  const auto cells = session.create_many<Cell>({.name = "own"}, 3, 5).value();
  session.wait_alive(cells, deadline).value();
  std::set<int> pids;
  for (const auto& cell : cells) pids.insert(cell.call<&Cell::pid>().get(deadline).value());
  REQUIRE(pids.size() == 3);
  REQUIRE(session.find<Cell>("own-2").value().id() == cells[2].id());
  // All or none: one of the names is taken.
  const auto taken = session.create<Cell>({.name = "row-1"}, 1).value();
  REQUIRE(fails(session.create_many<Cell>({.name = "row"}, 3, 5), Code::conflict, "row-1"));
  REQUIRE(fails(session.find<Cell>("row-0"), Code::not_found, ""));
}

// More methods block at once than there are threads at first: each waits for the next.
void check_blocked(const troupe::Session& session) {
  const auto cells = session.create_many<Cell>(light, 100, 0).value();
  const std::vector rest(cells.begin() + 1, cells.end());
  REQUIRE(cells[0].call<&Cell::depth>(rest).get(deadline).value() == 99);
  session.kill(cells).value();
}

void check_shared_fate(const troupe::Session& session) {
  auto restarts = light;
  restarts.max_restarts = 3;
  const auto lasting = session.create_many<Cell>(restarts, 50, 5).value();
  const auto once = session.create_many<Cell>(light, 50, 5).value();
  session.wait_alive(lasting, deadline).value();
  session.wait_alive(once, deadline).value();
  REQUIRE(lasting[0].call<&Cell::pid>().get(deadline).value() ==
          once[0].call<&Cell::pid>().get(deadline).value());
  REQUIRE(lasting[1].call<&Cell::incarnation>().get(deadline).value() == 1);
  (void)once[9].call<&Cell::abort_process>().get(deadline);
  for (const auto& cell : once) {
    REQUIRE(fails(cell.call<&Cell::pid>().get(deadline), Code::unavailable, "signal 6"));
  }
  for (const auto& cell : lasting) {
    REQUIRE(eventually([&] {
      const auto now =
          cell.call<&Cell::incarnation>(troupe::CallOptions{.retries = 5}).get(deadline);
      return now && *now == 2;
    }));
  }
  session.kill(lasting).value();
}

// One that does not return takes its process with it; the others come back.
void check_stuck(const troupe::Session& session) {
  const Gate gate;
  auto options = light;
  options.exit_grace = 100ms;
  options.max_restarts = 1;
  const auto cells = session.create_many<Cell>(options, 2, 5).value();
  const int pid = cells[1].call<&Cell::pid>().get(deadline).value();
  const auto held = cells[0].call<&Cell::hold>(gate.path());
  REQUIRE(!is_ready(session, held, moment));
  cells[0].kill().value();
  REQUIRE(!held.get(deadline));
  REQUIRE(eventually([&] {
    const auto now = cells[1].call<&Cell::pid>(troupe::CallOptions{.retries = 5}).get(deadline);
    return now && *now != pid;
  }));
  cells[1].kill().value();
}

void check_bad_constructors(const troupe::Session& session) {
  const auto cells =
      session.create_each<Cell>(light, 20, [](size_t i) { return std::tuple{int(i)}; }).value();
  REQUIRE(fails(session.wait_alive(cells, deadline), Code::unavailable, "13 is no value"));
  REQUIRE(cells[12].call<&Cell::add>(0).get(deadline).value() == 12);
  REQUIRE(fails(cells[13].call<&Cell::add>(0).get(deadline), Code::unavailable, "13 is no value"));
  session.kill(cells).value();
  auto gpu = light;
  gpu.resources.gpu = 1;
  REQUIRE(fails(session.create<Cell>(gpu, 1), Code::invalid, "a process of its own"));
}

void check_groups(const troupe::Session& session) {
  const Gate gate;
  for (const ActorProcess process : {ActorProcess::own, ActorProcess::shared}) {
    const auto actor = session.create<Grouped>({.process = process}).value();
    const auto held = actor.call<&Grouped::hold>(gate.path());
    std::vector<ObjectRef<int>> met;
    for (int i = 0; i < 3; ++i) met.push_back(actor.call<&Grouped::meet>(3));
    for (const auto& one : met) REQUIRE(one.get(deadline).value() == 3);
    std::vector<ObjectRef<int>> most;
    for (int i = 0; i < 30; ++i) most.push_back(actor.call<&Grouped::most>());
    for (const auto& one : most) REQUIRE(one.get(deadline).value() <= 3);
    REQUIRE(!is_ready(session, held, 0s));
    actor.kill().value();
  }
  const auto narrow = session.create<Grouped>({.concurrency_groups = {{"io", 1}}}).value();
  std::vector<ObjectRef<int>> most;
  for (int i = 0; i < 10; ++i) most.push_back(narrow.call<&Grouped::most>());
  for (const auto& one : most) REQUIRE(one.get(deadline).value() == 1);
  const auto wrong = session.create<Grouped>({.concurrency_groups = {{"oi", 1}}}).value();
  REQUIRE(fails(wrong.wait_alive(deadline), Code::unavailable, "no concurrency group \"oi\""));
}

void check_coroutine_groups(const troupe::Session& session) {
  const Gate gate;
  const auto slow = session.submit(after_gate, gate.path(), 7);
  const auto actor = session.create<Waiting>(light).value();
  std::vector<ObjectRef<int>> limited;
  for (int i = 0; i < 5; ++i) limited.push_back(actor.call<&Waiting::limited>(slow));
  const auto beside = actor.call<&Waiting::after>(slow);
  REQUIRE(actor.call<&Waiting::at_once>(3).get(deadline).value() == 3);
  gate.open();
  for (const auto& one : limited) REQUIRE(one.get(deadline).value() == 7);
  REQUIRE(beside.get(deadline).value() == 8);
  actor.kill().value();
}

// A light actor with a suspended call is killed; what it awaited arrives later, for nobody.
void check_suspended(const troupe::Session& session) {
  const Gate gate;
  const auto slow = session.submit(after_gate, gate.path(), 7);
  const auto actors = session.create_many<Waiting>(light, 20).value();
  std::vector<ObjectRef<int>> suspended;
  for (const auto& actor : actors) suspended.push_back(actor.call<&Waiting::after>(slow));
  for (const auto& actor : actors) {
    REQUIRE(actor.call<&Waiting::at_once>(3).get(deadline).value() == 3);
  }
  for (size_t i = 0; i < 19; ++i) actors[i].kill().value();
  for (size_t i = 0; i < 19; ++i) REQUIRE(!suspended[i].get(deadline));
  gate.open();
  REQUIRE(suspended[19].get(deadline).value() == 8);
  for (int i = 0; i < 100; ++i) {
    REQUIRE(actors[19].call<&Waiting::at_once>(i).get(deadline).value() == i);
  }
  actors[19].kill().value();
}

void check_order(const troupe::Session& session) {
  for (const bool out_of_order : {false, true}) {
    const Gate gate;
    const auto slow = session.submit(after_gate, gate.path(), 7);
    const auto actor = session.create<Cell>({.out_of_order = out_of_order}, 0).value();
    const auto first = actor.call<&Cell::pass>(slow);
    const auto second = actor.call<&Cell::pass>(2);
    REQUIRE(is_ready(session, second, out_of_order ? deadline : moment) == out_of_order);
    gate.open();
    REQUIRE(first.get(deadline).value() == 7);
    REQUIRE(second.get(deadline).value() == 2);
  }
}

void check_full_mailbox(const troupe::Session& session) {
  const Gate gate;
  const auto actor = session.create<Cell>({.mailbox_calls_max = 10}, 0).value();
  const auto held = actor.call<&Cell::hold>(gate.path());
  REQUIRE(!is_ready(session, held, moment));
  std::vector<ObjectRef<int>> calls;
  for (int i = 0; i < 20; ++i) calls.push_back(actor.call<&Cell::pass>(i));
  for (int i = 10; i < 20; ++i) {
    REQUIRE(fails(calls[size_t(i)].get(deadline), Code::exhausted, "10 calls wait"));
  }
  gate.open();
  for (int i = 0; i < 10; ++i) REQUIRE(calls[size_t(i)].get(deadline).value() == i);
}

void check_exit(const troupe::Session& session) {
  for (const ActorProcess process : {ActorProcess::own, ActorProcess::shared}) {
    const Gate gate;
    const auto actor = session.create<Leaving>({.process = process}, gate.path(), false).value();
    REQUIRE(actor.call<&Leaving::ready>().get(deadline).value() == 1);
    REQUIRE(gate.marks() == 0);
    actor.kill().value();
    REQUIRE(eventually([&] { return gate.marks() == 2; }));
  }
  // One that hangs is killed: its destructor never runs, and its name is free again.
  for (const ActorProcess process : {ActorProcess::own, ActorProcess::shared}) {
    const Gate gate;
    const auto actor =
        session.create<Leaving>({.process = process, .exit_grace = 100ms}, gate.path(), true)
            .value();
    REQUIRE(actor.call<&Leaving::ready>().get(deadline).value() == 1);
    const int pid = static_cast<int>(actor.status().value().pid);
    actor.kill().value();
    REQUIRE(eventually([&] { return !std::filesystem::exists("/proc/" + std::to_string(pid)); }));
    REQUIRE(gate.marks() == 1);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  using Check = std::function<void(const troupe::Session&)>;
  const std::map<std::string, Check> checks{{"many", check_many},
                                            {"own_processes", check_own_processes},
                                            {"blocked", check_blocked},
                                            {"shared_fate", check_shared_fate},
                                            {"stuck", check_stuck},
                                            {"bad_constructors", check_bad_constructors},
                                            {"groups", check_groups},
                                            {"coroutine_groups", check_coroutine_groups},
                                            {"suspended", check_suspended},
                                            {"order", check_order},
                                            {"full_mailbox", check_full_mailbox},
                                            {"exit", check_exit}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: actors NAME\n";
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
} catch (const std::exception& thrown) {
  std::cerr << thrown.what() << "\n";
  return 1;
}
