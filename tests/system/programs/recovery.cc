// recovery FOLDER: a driver that goes on asking for promises, calls and tasks until the file
// FOLDER/stop is there, while somebody kills daemons; then it looks whether everything that it was
// promised is so, and prints how much that was.
// recovery FOLDER drain: has two actors where zone=b, of which one may not restart and ends once
// FOLDER/let_go is there, and tasks everywhere, while somebody drains that node.
#include <poll.h>
#include <troupe/troupe.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

using namespace std::chrono_literals;
using troupe::Code;
using troupe::Session;

class Tally {
 public:
  Tally() {}
  int64_t add() { return ++count_; }
  int64_t count() { return count_; }

 private:
  int64_t count_ = 0;
};
TROUPE_ACTOR(Tally(), add, count);

int64_t twice(int64_t number) {
  return 2 * number;
}
TROUPE_TASK(twice);

namespace {

// Heads that live for a fraction of a second get little done.
constexpr auto patience = 120s;
constexpr size_t kept_max = 200;

// What went wrong; the first few are told.
class Complaints {
 public:
  void add(const std::string& text) {
    const std::lock_guard lock{mutex_};
    if (++count_ <= 10) std::cerr << text << "\n";
  }
  uint64_t count() const { return count_; }

 private:
  std::mutex mutex_;
  std::atomic<uint64_t> count_ = 0;
};

struct Work {
  const Session& session;
  Complaints& complaints;
  std::function<bool()> is_over;
};

// Groups: some stay, the others are removed again.
struct Groups {
  std::vector<troupe::PlacementGroup> kept;
  std::vector<troupe::PlacementGroup> removed;

  void work(const Work& work) {
    for (size_t i = 0; !work.is_over(); ++i) {
      auto group = work.session.create_placement_group({.bundles = {{.cpu = 0.001}}});
      if (!group) {
        work.complaints.add("create a group: " + group.error().to_string());
        continue;
      }
      if (i % 8 == 0 && kept.size() < kept_max) {
        kept.push_back(*group);
        continue;
      }
      if (auto gone = group->remove(); !gone) {
        work.complaints.add("remove a group: " + gone.error().to_string());
      } else {
        removed.push_back(*group);
      }
    }
  }
  void check(Complaints& complaints) const {
    for (const auto& group : kept) {
      if (auto status = group.wait(patience); !status) {
        complaints.add("a group is lost: " + status.error().to_string());
      }
    }
    for (const auto& group : removed) {
      const auto status = group.status();
      if (status || status.error().code() != Code::not_found) {
        complaints.add("a removed group is back: " + group.id().to_string());
      }
    }
  }
};

// Actors with names, which belong to nobody.
struct Actors {
  std::map<std::string, bool> alive;  // False: it was killed.

  static troupe::ActorOptions options(const std::string& name) {
    return {.name = name,
            .get_if_exists = true,
            .detached = true,
            .process = troupe::ActorProcess::shared};
  }
  void work(const Work& work) {
    for (size_t i = 0; !work.is_over(); ++i) {
      const std::string name = "recovery-" + std::to_string(i);
      auto actor = work.session.create<Tally>(options(name));
      if (!actor) {
        work.complaints.add("create an actor: " + actor.error().to_string());
        continue;
      }
      alive[name] = true;
      if (i % 4 == 0 && i / 4 < kept_max) continue;
      if (auto gone = actor->kill(); !gone) {
        work.complaints.add("kill an actor: " + gone.error().to_string());
      } else {
        alive[name] = false;
      }
    }
  }
  void check(const Session& session, Complaints& complaints) const {
    for (const auto& [name, is_alive] : alive) {
      const auto found = session.find<Tally>(name);
      if (is_alive && !found) {
        complaints.add("actor " + name + " is lost: " + found.error().to_string());
      } else if (is_alive) {
        const auto count = found->call<&Tally::count>().get(patience);
        if (!count) complaints.add("actor " + name + " is lost: " + count.error().to_string());
      }
      if (!is_alive && found) complaints.add("killed actor " + name + " is back");
    }
  }
};

// Calls from process to process, of which each counts once.
uint64_t call(const Work& work, const troupe::ActorRef<Tally>& tally) {
  int64_t calls = 0;
  while (!work.is_over()) {
    const auto count = tally.call<&Tally::add>().get(patience);
    if (!count) {
      work.complaints.add("a call failed: " + count.error().to_string());
    } else if (*count != ++calls) {
      work.complaints.add("call " + std::to_string(calls) + " counted " + std::to_string(*count));
      calls = *count;
    }
    ::poll(nullptr, 0, 1);
  }
  return static_cast<uint64_t>(calls);
}

uint64_t submit(const Work& work) {
  uint64_t tasks = 0;
  while (!work.is_over()) {
    const auto number = static_cast<int64_t>(++tasks);
    const auto result =
        work.session.submit({.resources = {.cpu = 0.5}}, twice, number).get(patience);
    if (!result) {
      work.complaints.add("a task failed: " + result.error().to_string());
    } else if (*result != 2 * number) {
      work.complaints.add("a task gave " + std::to_string(*result));
    }
    ::poll(nullptr, 0, 1);
  }
  return tasks;
}

bool wait_for(const std::filesystem::path& file) {
  const auto end = std::chrono::steady_clock::now() + 2 * patience;
  while (!std::filesystem::exists(file)) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::poll(nullptr, 0, 5);
  }
  return true;
}

int drain(const Session& session, const std::filesystem::path& folder) {
  Complaints complaints;
  const Work work{session, complaints, [&] { return std::filesystem::exists(folder / "stop"); }};
  const troupe::Placement there{.labels = {troupe::label::equals("zone", "b").soft()}};
  const auto movable =
      session.create<Tally>({.name = "movable", .max_restarts = -1, .placement = there}).value();
  const auto precious = session.create<Tally>({.name = "precious", .placement = there}).value();
  movable.wait_alive(patience).value();
  precious.wait_alive(patience).value();
  const std::string before = movable.status().value().node;
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back([&] { submit(work); });
  if (!wait_for(folder / "let_go")) return 1;
  if (precious.call<&Tally::add>().get(patience).value() != 1) complaints.add("it has restarted");
  precious.kill().value();
  wait_for(folder / "stop");
  threads.clear();
  movable.call<&Tally::add>().get(patience).value();
  const auto after = movable.status().value();
  if (after.node == before || after.incarnation != 2) complaints.add("it has not moved");
  return complaints.count() == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2 && argc != 3) {
    std::cerr << "usage: recovery FOLDER [drain]\n";
    return 2;
  }
  const auto session = troupe::connect().value();
  if (argc == 3) return drain(session, argv[1]);
  const std::filesystem::path stop = std::filesystem::path(argv[1]) / "stop";
  Complaints complaints;
  const Work work{session, complaints, [&stop] { return std::filesystem::exists(stop); }};
  const auto tally = session.create<Tally>({}).value();
  tally.wait_alive(patience).value();
  Groups groups;
  Actors actors;
  uint64_t calls = 0;
  uint64_t tasks = 0;
  {
    std::vector<std::jthread> threads;
    threads.emplace_back([&] { groups.work(work); });
    threads.emplace_back([&] { actors.work(work); });
    threads.emplace_back([&] { calls = call(work, tally); });
    threads.emplace_back([&] { tasks = submit(work); });
  }
  groups.check(complaints);
  actors.check(session, complaints);
  std::cout << "promises " << groups.kept.size() + 2 * groups.removed.size() + actors.alive.size()
            << " calls " << calls << " tasks " << tasks << "\n";
  return complaints.count() == 0 ? 0 : 1;
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
