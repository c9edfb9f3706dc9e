// A driver that checks what a program does with objects: `objects NAME` exits 0 if NAME holds.
#include <poll.h>
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <future>
#include <iostream>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace {

using namespace std::chrono_literals;
using troupe::Code;
using troupe::ObjectRef;
using Numbers = std::vector<int64_t>;

struct Sample {
  float x = 0;
  float y = 0;
  std::array<uint16_t, 2> tags{};
};

#define REQUIRE(condition)                                     \
  do {                                                         \
    if (!(condition)) {                                        \
      std::cerr << __LINE__ << ": not true: " #condition "\n"; \
      std::exit(1);                                            \
    }                                                          \
  } while (false)

}  // namespace

int64_t one() {
  return 1;
}
TROUPE_TASK(one);
void run_while_exists(const std::string& path) {
  while (std::filesystem::exists(path)) ::poll(nullptr, 0, 5);
}
TROUPE_TASK(run_while_exists);
Numbers make_numbers(int64_t count) {
  Numbers values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}
TROUPE_TASK(make_numbers);
int64_t sum_of_numbers(const Numbers& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), int64_t{0});
}
TROUPE_TASK(sum_of_numbers);
int64_t sum_of_view(const ObjectRef<Numbers>& ref) {
  const auto view = ref.view().value();
  return std::accumulate(view.begin(), view.end(), int64_t{0});
}
TROUPE_TASK(sum_of_view);
int64_t sum_of_all(const std::vector<ObjectRef<Numbers>>& refs) {
  int64_t total = 0;
  for (const Numbers& one : troupe::connect().value().get(refs).value()) {
    total += std::accumulate(one.begin(), one.end(), int64_t{0});
  }
  return total;
}
TROUPE_TASK(sum_of_all);
std::vector<ObjectRef<int64_t>> give_refs(int64_t count) {
  const auto session = troupe::connect().value();
  std::vector<ObjectRef<int64_t>> refs;
  for (int64_t i = 0; i < count; ++i) refs.push_back(session.put(i).value());
  return refs;
}
TROUPE_TASK(give_refs);
// Has room of its own that nobody will write.
void die_while_building() {
  const auto building = troupe::connect().value().create<int64_t>(4'000'000).value();
  building.span()[0] = 1;
  ::kill(::getpid(), SIGKILL);
}
TROUPE_TASK(die_while_building);

// Owns objects that others wait for and read.
class Owner {
 public:
  // Tasks that run while the file exists, and one that does not.
  std::vector<ObjectRef<void>> pending(const std::string& path, int64_t count) {
    const auto session = troupe::connect().value();
    std::vector<ObjectRef<void>> refs;
    for (int64_t i = 0; i < count; ++i) refs.push_back(session.submit(run_while_exists, path));
    return refs;
  }
  ObjectRef<Numbers> large() {
    if (!kept_.is_valid()) kept_ = troupe::connect().value().put(make_numbers(1'000'000)).value();
    return kept_;
  }
  void drop() { kept_ = {}; }

 private:
  ObjectRef<Numbers> kept_;
};
using MakeOwner = Owner();
TROUPE_ACTOR(MakeOwner, pending, large, drop);

namespace {

std::string held_path() {
  char path[] = "/tmp/troupe-hold-XXXXXX";
  ::close(::mkstemp(path));
  return path;
}

// For what others do sooner or later; the test's own limit ends it.
void until(const std::function<bool()>& condition) {
  while (!condition()) ::poll(nullptr, 0, 2);
}

void check_wait(const troupe::Session& session) {
  const std::string path = held_path();
  std::vector<ObjectRef<void>> refs;
  refs.push_back(session.submit(run_while_exists, path));
  refs.push_back(session.submit(run_while_exists, "/no/such/file"));
  refs.push_back(session.submit(run_while_exists, "/no/such/file"));
  // All that can end, and no more than asked for.
  const auto two = session.wait(refs, {.count = 2}).value();
  REQUIRE(two.ready == (std::vector<size_t>{1, 2}) && two.pending == std::vector<size_t>{0});
  const auto one_of = session.wait(refs, {.count = 1}).value();
  REQUIRE(one_of.ready == std::vector<size_t>{1});
  REQUIRE(one_of.pending == (std::vector<size_t>{0, 2}));
  const auto none = session.wait(refs, {.count = 0}).value();
  REQUIRE(none.ready.empty() && none.pending.size() == 3);
  const auto late = session.wait(refs, {.count = 9, .timeout = 200ms}).value();
  REQUIRE(late.ready.size() == 2 && late.pending == std::vector<size_t>{0});
  REQUIRE(session.wait(std::vector<ObjectRef<void>>(1)).error().code() == Code::invalid);
  REQUIRE(session.wait(std::vector<ObjectRef<void>>{}).value().ready.empty());
  // The same ref twice counts twice.
  REQUIRE(session.wait(std::vector{refs[1], refs[1]}, {.count = 2}).value().ready.size() == 2);
  std::atomic<bool> over = false;
  std::thread waits([&] {
    REQUIRE(session.wait(refs, {.count = 3}).value().pending.empty());
    over = true;
  });
  REQUIRE(!over);
  std::filesystem::remove(path);
  waits.join();
  // Many, of which each makes another wait.
  std::vector<ObjectRef<int64_t>> many;
  for (int i = 0; i < 2000; ++i) many.push_back(session.submit(one));
  while (!many.empty()) {
    const auto some = session.wait(many, {.count = 1}).value();
    REQUIRE(some.ready.size() == 1);
    many.erase(many.begin() + static_cast<std::ptrdiff_t>(some.ready[0]));
  }
}

void check_wait_borrowed(const troupe::Session& session) {
  const auto owner = session.create<Owner>({}).value();
  const std::string path = held_path();
  auto refs = owner.call<&Owner::pending>(path, int64_t{1}).get().value();
  const auto at_once = owner.call<&Owner::pending>("/no/such/file", int64_t{3}).get().value();
  refs.insert(refs.end(), at_once.begin(), at_once.end());
  refs.push_back(session.submit(run_while_exists, path));  // And one of its own.
  const auto three = session.wait(refs, {.count = 3}).value();
  REQUIRE(three.ready == (std::vector<size_t>{1, 2, 3}));
  const auto late = session.wait(refs, {.count = 4, .timeout = 200ms}).value();
  REQUIRE(late.pending == (std::vector<size_t>{0, 4}));
  std::atomic<int> called = 0;
  refs[0].on_ready([&] { ++called; });
  std::filesystem::remove(path);
  REQUIRE(session.wait(refs, {.count = 5}).value().pending.empty());
  until([&] { return called == 1; });
  // What a dead owner's objects are is known: reading them says so.
  const std::string second = held_path();
  const auto lost = owner.call<&Owner::pending>(second, int64_t{1}).get().value();
  std::thread waits([&] { REQUIRE(session.wait(lost).value().ready.size() == 1); });
  REQUIRE(owner.kill());
  waits.join();
  REQUIRE(!lost[0].get());
  until([&] { return lost[0].get().error().code() == Code::data_loss; });  // It has ended.
  std::filesystem::remove(second);
}

void check_callbacks(const troupe::Session& session) {
  std::atomic<int> ready = 0;
  const std::string path = held_path();
  {
    const auto ref = session.submit(run_while_exists, path);
    for (int i = 0; i < 10; ++i) {
      // It may block, and read.
      ref.on_ready([&] {
        REQUIRE(session.put(int64_t{1}).value().get().value() == 1);
        ++ready;
      });
    }
  }
  REQUIRE(ready == 0);
  std::filesystem::remove(path);
  until([&] { return ready == 10; });
  session.put(int64_t{1}).value().on_ready([&] { ++ready; });
  until([&] { return ready == 11; });

  // Small and large ones, when the last ref goes; also the last of another process.
  std::atomic<int> freed = 0;
  for (const int64_t count : {1, 1'000'000}) {
    auto ref = session.put(make_numbers(count)).value();
    ref.on_out_of_scope([&] { ++freed; }).value();
    auto copy = ref;
    ref = {};
    REQUIRE(copy.get().value().size() == static_cast<size_t>(count));
    const int before = freed;
    copy = {};
    until([&] { return freed == before + 1; });
  }
  const std::string held = held_path();
  auto shared = session.put(make_numbers(100'000)).value();
  shared.on_out_of_scope([&] { ++freed; }).value();
  const auto busy = session.submit(run_while_exists, held);
  auto sum = session.submit(sum_of_view, shared);
  shared = {};
  REQUIRE(sum.get().value() == 99'999ll * 100'000 / 2);
  std::filesystem::remove(held);
  until([&] { return freed == 3; });
  const auto theirs = session.submit(give_refs, 1).get().value();
  REQUIRE(theirs[0].on_out_of_scope([] {}).error().code() == Code::invalid);
}

void check_many_refs(const troupe::Session& session) {
  constexpr int64_t count = 10'000;
  const auto ref = session.submit(give_refs, count);
  for (int round = 0; round < 3; ++round) {
    auto refs = ref.get().value();
    REQUIRE(refs.size() == count);
    const auto values = session.get(refs).value();
    for (int64_t i = 0; i < count; ++i) REQUIRE(values[static_cast<size_t>(i)] == i);
  }
  // They outlive the object that they came in, and go in another one.
  auto refs = ref.get().value();
  const auto again = session.put(refs).value();
  refs.clear();
  REQUIRE(again.get().value()[4567].get().value() == 4567);
  // Refs of a task's arguments, of several owners.
  std::vector<ObjectRef<Numbers>> arguments;
  for (int64_t i = 0; i < 2000; ++i) {
    arguments.push_back(i % 2 == 0 ? session.put(Numbers{i}).value()
                                   : session.submit(make_numbers, 1));
  }
  arguments.push_back(session.put(make_numbers(100'000)).value());
  REQUIRE(session.submit(sum_of_all, arguments).get().value() ==
          1000ll * 999 + 99'999ll * 100'000 / 2);
  // The first error in their order, though one behind it never comes.
  const std::string path = held_path();
  std::vector<ObjectRef<int64_t>> failing{session.submit(one)};
  failing.push_back(session.submit(one));
  failing.push_back(ref.get().value()[1]);
  session.cancel(failing[1]).value();
  const auto outcome = session.get(failing);
  if (!outcome) std::cerr << outcome.error().to_string() << "\n";
  REQUIRE(outcome || outcome.error().code() == Code::cancelled);
  std::filesystem::remove(path);
}

void check_views(const troupe::Session& session) {
  // Put, made by a task here or elsewhere, and small.
  for (const int64_t count :
       {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{9000}, int64_t{1'000'000}}) {
    const Numbers expected = make_numbers(count);
    for (const auto& ref : {session.put(expected).value(), session.submit(make_numbers, count)}) {
      const auto view = ref.view().value();
      REQUIRE(std::ranges::equal(view, expected));
      REQUIRE(reinterpret_cast<uintptr_t>(view.data()) % 8 == 0);
      REQUIRE(session.submit(sum_of_view, ref).get().value() ==
              std::accumulate(expected.begin(), expected.end(), int64_t{0}));
      REQUIRE(ref.get().value() == expected);
    }
  }
  const std::string text(200'000, 't');
  const auto words = session.put(text).value();
  REQUIRE(words.view().value().text() == text);
  std::vector<Sample> samples(50'000);
  samples[49'999] = {1, 2, {3, 4}};
  const auto points = session.put(samples).value();
  REQUIRE(points.view().value()[49'999].tags[1] == 4);
  REQUIRE(points.get().value()[49'999].y == 2);
  // Not contiguous, yet written in place.
  std::map<std::string, std::vector<std::string>> tree;
  for (int i = 0; i < 5000; ++i) tree[std::to_string(i)] = {"some words of a value", "more"};
  REQUIRE(session.put(tree).value().get().value() == tree);
  // The same memory each time, and not while it is viewed.
  auto ref = session.put(make_numbers(500'000)).value();
  auto view = ref.view().value();
  REQUIRE(ref.view().value().data() == view.data());
  ref = {};
  for (int64_t i = 0; i < 20; ++i) (void)session.put(Numbers(500'000, -i)).value();
  REQUIRE(view[499'999] == 499'999);
  const auto both =
      session.view(std::vector{session.put(Numbers{7}).value(), session.submit(make_numbers, 3)});
  REQUIRE(both.value()[0][0] == 7 && both.value()[1].size() == 3);
  // Bytes of another type.
  const auto other = ObjectRef<std::vector<Sample>>{session.put(Numbers{1, 2, 3}).value().handle()};
  REQUIRE(other.view().error().code() == Code::invalid);
  REQUIRE(ObjectRef<Numbers>{}.view().error().code() == Code::invalid);
}

void check_views_elsewhere(const troupe::Session& session) {
  const auto owner = session.create<Owner>({}).value();
  auto ref = owner.call<&Owner::large>().get().value().get().value();
  auto theirs = owner.call<&Owner::large>().get().value();
  auto view = theirs.view().value();
  REQUIRE(theirs.view().value().data() == view.data());
  const auto pin = theirs.pin().value();
  // Neither the owner nor its ref has to be there for what is viewed.
  theirs = {};
  REQUIRE(owner.call<&Owner::drop>().get());
  REQUIRE(owner.kill());
  REQUIRE(std::ranges::equal(view, ref));
}

void check_building(const troupe::Session& session) {
  for (const int64_t count : {0, 1, 1000, 1'000'000}) {
    auto building = session.create<int64_t>(count).value();
    std::iota(building.span().begin(), building.span().end(), 0);
    const auto* written = building.data();
    const auto ref = building.seal().value();
    REQUIRE(building.span().empty());
    REQUIRE(building.seal().error().code() == Code::invalid);
    REQUIRE(ref.get().value() == make_numbers(count));
    REQUIRE(count == 0 || ref.view().value().data() == written);
    REQUIRE(session.submit(sum_of_view, ref).get().value() == count * (count - 1) / 2);
  }
  REQUIRE(session.create<int64_t>(-1).error().code() == Code::invalid);
  REQUIRE(session.create<int64_t>(SIZE_MAX / 2).error().code() == Code::invalid);
  // Larger than any store here.
  REQUIRE(session.create<int64_t>(size_t{1} << 36).error().code() == Code::invalid);
  // Dropped and freed ones make room: this is more than the store holds.
  for (int i = 0; i < 200; ++i) {
    auto dropped = session.create<int64_t>(1'000'000).value();
    dropped.span()[0] = i;
    if (i % 2 == 0) (void)dropped.seal().value();
  }
  // From several threads.
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&session, t] {
      std::vector<ObjectRef<Numbers>> kept;
      for (int64_t i = 0; i < 500; ++i) {
        auto building = session.create<int64_t>(100 + i).value();
        std::ranges::fill(building.span(), t * 1000 + i);
        kept.push_back(building.seal().value());
        if (i % 3 == 0) kept.erase(kept.begin() + i % static_cast<int64_t>(kept.size()));
      }
      for (const auto& ref : kept) {
        const auto view = ref.view().value();
        REQUIRE(std::ranges::count(view, view[0]) == static_cast<std::ptrdiff_t>(view.size()));
        REQUIRE(view[0] == t * 1000 + static_cast<int64_t>(view.size()) - 100);
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

// On a store of 64 MiB.
void check_full_store(const troupe::Session& session) {
  constexpr int64_t third = 20 << 17;  // 20 MiB.
  std::vector<ObjectRef<Numbers>> kept;
  for (int i = 0; i < 3; ++i) kept.push_back(session.put(make_numbers(third)).value());
  auto blocked = std::async(std::launch::async, [&] { return session.put(make_numbers(third)); });
  REQUIRE(blocked.wait_for(300ms) == std::future_status::timeout);
  // Freed though there is a ref.
  REQUIRE(session.free(std::vector{kept[1]}));
  REQUIRE(blocked.get().value().get().value().size() == third);
  REQUIRE(kept[1].get().error().code() == Code::not_found);
  REQUIRE(kept[2].get().value().back() == third - 1);
  kept.clear();
  // What another process has done with goes to whoever needs it, at once.
  REQUIRE(session.submit(sum_of_view, session.submit(make_numbers, 2 * third)).get());
  REQUIRE(session.put(make_numbers(2 * third)).value().get().value().size() == 2 * third);
  // A process that dies leaves no room taken.
  for (int i = 0; i < 4; ++i) {
    REQUIRE(session.submit(die_while_building).get().error().code() == Code::outcome_unknown);
  }
  REQUIRE(session.put(make_numbers(2 * third)));
}

// On a store of 64 MiB without a disk: what can never fit fails at once, with both sizes, and takes
// no room.
void check_larger_than_the_store(const troupe::Session& session) {
  constexpr int64_t count = 10 << 20;  // 80 MiB.
  constexpr int64_t most = 56 << 17;   // Nearly all of the store.
  const auto explained = [](const troupe::Error& why) {
    std::cout << why.to_string() << "\n";
    const std::string& text = why.message();
    return why.code() == Code::invalid && text.find(" of 8388") != text.npos &&
           text.find("up to 67108864") != text.npos;
  };
  const auto began = std::chrono::steady_clock::now();
  REQUIRE(explained(session.put(make_numbers(count)).error()));
  REQUIRE(explained(session.create<int64_t>(count).error()));
  REQUIRE(explained(session.submit(make_numbers, count).get().error()));
  REQUIRE(explained(session.submit(sum_of_numbers, make_numbers(count)).get().error()));
  REQUIRE(std::chrono::steady_clock::now() - began < 20s);
  for (int i = 0; i < 2; ++i) {
    REQUIRE(session.put(make_numbers(most)).value().get().value().back() == most - 1);
    REQUIRE(session.submit(make_numbers, most).get().value().back() == most - 1);
  }
}

void check_free(const troupe::Session& session) {
  auto large = session.put(make_numbers(1'000'000)).value();
  const auto view = large.view().value();
  const auto small = session.put(make_numbers(3)).value();
  REQUIRE(session.free(std::vector{large, small}));
  for (const auto& ref : {large, small}) {
    const auto gone = ref.get();
    REQUIRE(gone.error().code() == Code::not_found);
    REQUIRE(gone.error().message().find("explicit free") != std::string::npos);
    REQUIRE(session.submit(sum_of_view, ref).get().error().message().find("explicit free") !=
            std::string::npos);
  }
  REQUIRE(view[999'999] == 999'999);
  REQUIRE(session.free(std::vector{large}));  // Again.
  REQUIRE(session.free(std::vector<ObjectRef<Numbers>>(1)).error().code() == Code::invalid);
  // A result to come, and an object of another process.
  const std::string path = held_path();
  const auto pending = session.submit(run_while_exists, path);
  REQUIRE(session.free(std::vector{pending}));
  REQUIRE(pending.get().error().code() == Code::not_found);
  std::filesystem::remove(path);
  const auto owner = session.create<Owner>({}).value();
  const auto theirs = owner.call<&Owner::large>().get().value();
  REQUIRE(session.free(std::vector{theirs}));
  REQUIRE(theirs.get().error().code() == Code::not_found);
  const auto refs = session.submit(give_refs, 1).get().value();
  REQUIRE(owner.kill());
  // Its process ends a little later.
  until([&] { return !session.free(std::vector{theirs}); });
  REQUIRE(session.free(std::vector{theirs}).error().code() == Code::data_loss);
}

// Holds some until its standard input ends, for who lists them from outside.
void check_hold(const troupe::Session& session) {
  const auto large = session.put(make_numbers(1'000'000)).value();
  const auto view = session.submit(make_numbers, 500'000).view().value();
  const auto made = session.submit(make_numbers, 400'000);
  REQUIRE(session.submit(sum_of_view, large).get());
  REQUIRE(made.get());
  const std::string path = held_path();
  const auto pending = session.submit(run_while_exists, path);
  const auto waits = session.submit(sum_of_all, std::vector{large, made});
  REQUIRE(waits.get());
  std::cout << large.id().to_string() << "\n" << made.id().to_string() << std::endl;
  std::string line;
  std::getline(std::cin, line);
  std::filesystem::remove(path);
}

// On a store of 64 MiB: more than it takes, of which one is looked at.
void check_hold_spilled(const troupe::Session& session) {
  constexpr int64_t count = 2 << 17;  // 2 MiB.
  constexpr size_t objects = 40;
  std::vector<ObjectRef<Numbers>> kept;
  for (size_t i = 0; i < objects; ++i) kept.push_back(session.put(make_numbers(count)).value());
  const auto view = kept[0].view().value();
  kept.push_back(session.put(make_numbers(count)).value());
  for (const auto& ref : kept) REQUIRE(ref.view().value()[count - 1] == count - 1);
  REQUIRE(session.submit(sum_of_view, kept[1]).get());
  REQUIRE(view[count - 1] == count - 1);
  std::cout << kept[0].id().to_string() << std::endl;
  std::string line;
  std::getline(std::cin, line);
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, void (*)(const troupe::Session&)> checks{
      {"wait", check_wait},
      {"wait_borrowed", check_wait_borrowed},
      {"callbacks", check_callbacks},
      {"many_refs", check_many_refs},
      {"views", check_views},
      {"views_elsewhere", check_views_elsewhere},
      {"building", check_building},
      {"full_store", check_full_store},
      {"larger_than_the_store", check_larger_than_the_store},
      {"free", check_free},
      {"hold", check_hold},
      {"hold_spilled", check_hold_spilled},
  };
  const auto found = checks.find(argc > 1 ? argv[1] : "");
  if (found == checks.end()) {
    std::cerr << "usage: objects NAME\n";
    return 2;
  }
  found->second(troupe::connect().value());
  return 0;
}
