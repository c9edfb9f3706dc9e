// A driver that checks streams whose items hold refs, inside a real cluster: `item_refs NAME NODE`
// exits 0 if NAME holds of producers on the node with the label n=NODE.
#include <fcntl.h>
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "check.h"

using troupe::ActorRef;
using troupe::Generator;
using troupe::ObjectRef;
using troupe::Session;
using troupe::TaskOptions;

// Files in which each object that is made, each that is freed, and each generator that has ended
// leaves a mark.
struct Paths {
  std::string made;
  std::string freed;
  std::string ended;
};
using Text = ObjectRef<std::string>;
struct Parcel {
  std::string label;
  std::vector<Text> texts;
};

namespace {

void leave_mark(const std::string& path) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (::write(file, "x", 1) != 1) std::cerr << "cannot mark " << path << "\n";
  ::close(file);
}

struct AtEnd {
  std::string path;
  ~AtEnd() { leave_mark(path); }
};

std::string text_of(int64_t i, int64_t bytes) {
  return std::string(static_cast<size_t>(bytes), static_cast<char>('a' + i % 26));
}

Text make_text(const Session& session, const Paths& paths, int64_t i, int64_t bytes) {
  const Text text = session.put(text_of(i, bytes)).value();
  text.on_out_of_scope([freed = paths.freed] { leave_mark(freed); }).value();
  leave_mark(paths.made);
  return text;
}

}  // namespace

// It keeps none of its objects.
Generator<Parcel> parcels(Paths paths, int64_t items, int64_t bytes) {
  const AtEnd at_end{paths.ended};
  const Session session = troupe::connect().value();
  for (int64_t i = 0; i < items; ++i) {
    Parcel parcel;
    parcel.label = std::to_string(i);
    parcel.texts.push_back(make_text(session, paths, i, bytes));
    co_yield parcel;
  }
}
TROUPE_TASK(parcels);
Generator<Text> pass_on(std::vector<Text> texts) {
  while (!texts.empty()) {
    const Text last = texts.back();
    texts.pop_back();
    co_yield last;
  }
}
TROUPE_TASK(pass_on);
int64_t bytes_in(const std::vector<Text>& texts) {
  int64_t bytes = 0;
  for (const Text& text : texts) {
    bytes += static_cast<int64_t>(text.get(deadline).value().size());
  }
  return bytes;
}
TROUPE_TASK(bytes_in);

class Depot {
 public:
  Generator<Parcel> parcels(Paths paths, int64_t items, int64_t bytes) {
    return ::parcels(std::move(paths), items, bytes);
  }
  Generator<Text> pass_on(std::vector<Text> texts) { return ::pass_on(std::move(texts)); }
  Text make(const Paths& paths, int64_t i) {
    return make_text(troupe::connect().value(), paths, i, 10);
  }
  Generator<ActorRef<Depot>> others() {
    const ActorRef<Depot> other = troupe::connect().value().create<Depot>({}).value();
    co_yield other;
  }
};
TROUPE_ACTOR(Depot(), parcels, pass_on, make, others);

// Ends without a word in the midst of a stream.
void take_and_die(const ActorRef<Depot>& depot, const Paths& paths, const std::string& sent) {
  auto stream = depot.stream<&Depot::parcels>({.generator_items_max = 20}, paths, 1'000'000, 10);
  const auto taken = stream.next(deadline).value();
  while (std::filesystem::file_size(paths.made) < 20) ::poll(nullptr, 0, 1);
  leave_mark(sent);
  ::raise(SIGKILL);
}
TROUPE_TASK(take_and_die);

namespace {

std::string producers_node;

TaskOptions there() {
  return {.placement = {.labels = {troupe::label::equals("n", producers_node)}}};
}
ActorRef<Depot> depot_there(const Session& session) {
  return session.create<Depot>({.placement = there().placement}).value();
}

class Watched {
 public:
  Paths paths() const { return {made_.path(), freed_.path(), ended_.path()}; }
  int64_t freed() const { return freed_.marks(); }
  int64_t made() const { return made_.marks(); }
  bool has_ended() const { return ended_.marks() > 0; }
  bool all_go() const {
    return eventually([&] { return has_ended() && made() > 0 && freed() == made(); });
  }

 private:
  Gate made_, freed_, ended_;
};

// A stream of a task, or of an actor's method.
using OfActor = std::optional<ActorRef<Depot>>;
troupe::Stream<Parcel> stream_of(const Session& session, const OfActor& of, uint32_t unread,
                                 const Paths& paths, int64_t items, int64_t bytes = 10) {
  if (of) return of->stream<&Depot::parcels>({.generator_items_max = unread}, paths, items, bytes);
  TaskOptions options = there();
  options.generator_items_max = unread;
  return session.stream(options, parcels, paths, items, bytes);
}

template <class T>
std::vector<T> read_all(troupe::Stream<T>& stream) {
  std::vector<T> items;
  while (auto item = stream.next(deadline).value()) items.push_back(std::move(*item));
  return items;
}

// With tasks, then with an actor.
void for_both(const Session& session, const std::function<void(const OfActor&)>& check) {
  check(std::nullopt);
  const auto depot = depot_there(session);
  check(depot);
  (void)depot.kill();
}

// The producer has ended, and had let go of each when it made the next.
void check_read(const Session& session) {
  for_both(session, [&](const OfActor& depot) {
    for (const int64_t bytes : {10, 200'000}) {  // In the owner's memory, and in the store.
      const Watched watched;
      auto stream = stream_of(session, depot, 64, watched.paths(), 100, bytes);
      std::vector<Parcel> all = read_all(stream);
      REQUIRE(all.size() == 100 && watched.has_ended());
      std::vector<Text> texts;
      for (int64_t i = 0; i < 100; ++i) {
        const Parcel& parcel = all[static_cast<size_t>(i)];
        REQUIRE(parcel.label == std::to_string(i) && parcel.texts.size() == 1);
        REQUIRE(parcel.texts[0].get(deadline).value() == text_of(i, bytes));
        texts.push_back(parcel.texts[0]);
      }
      REQUIRE(session.submit(bytes_in, texts).get(deadline).value() == 100 * bytes);
      REQUIRE(watched.freed() == 0);
      all.clear();
      texts.clear();
      REQUIRE(watched.all_go());
    }
  });
}

// What was read goes with the reader's refs while the stream goes on.
void check_read_and_dropped(const Session& session) {
  for_both(session, [&](const OfActor& depot) {
    const Watched watched;
    auto stream = stream_of(session, depot, 4, watched.paths(), 100);
    for (int i = 0; i < 50; ++i) REQUIRE(stream.next(deadline).value());
    REQUIRE(eventually([&] { return watched.freed() == 50; }));
    REQUIRE(!watched.has_ended());
    const auto rest = read_all(stream);
    REQUIRE(rest.size() == 50 && rest[0].texts[0].get(deadline));
  });
}

troupe::Coroutine<int64_t> lengths(troupe::Stream<Parcel> stream) {
  int64_t bytes = 0;
  while (const auto parcel = (co_await stream).value()) {
    bytes += static_cast<int64_t>((co_await parcel->texts[0]).value().size());
  }
  co_return bytes;
}

void check_awaited(const Session& session) {
  for_both(session, [&](const OfActor& depot) {
    const Watched watched;
    REQUIRE(lengths(stream_of(session, depot, 4, watched.paths(), 100)).get() == 1000);
    REQUIRE(watched.all_go());
  });
}

void check_unread(const Session& session) {
  for_both(session, [&](const OfActor& depot) {
    // All have come, and the producer has ended.
    const Watched here;
    auto stream = stream_of(session, depot, 1000, here.paths(), 100);
    REQUIRE(stream.call().get(deadline) && here.made() == 100 && here.freed() == 0);
    for (int i = 0; i < 10; ++i) REQUIRE(stream.next(deadline).value());
    stream = {};
    REQUIRE(here.all_go());
    // Some are on their way, or wait for room.
    for (const uint32_t unread : {1u, 30u, 1000u}) {
      const Watched on_their_way;
      stream = stream_of(session, depot, unread, on_their_way.paths(), 1'000'000);
      REQUIRE(stream.next(deadline).value());
      stream = {};
      REQUIRE(on_their_way.all_go());
    }
    // Cancelled: what had come can be read, and goes then.
    const Watched cancelled;
    stream = stream_of(session, depot, 30, cancelled.paths(), 1'000'000);
    const auto kept = stream.next(deadline).value();
    session.cancel(stream.call()).value();
    while (stream.next(deadline)) continue;
    REQUIRE(kept->texts[0].get(deadline).value() == text_of(0, 10));
    REQUIRE(eventually(
        [&] { return cancelled.has_ended() && cancelled.freed() == cancelled.made() - 1; }));
  });
}

// Objects of the reader itself, and of a third process.
void check_passed_on(const Session& session) {
  const auto owner = session.create<Depot>({}).value();
  for_both(session, [&](const OfActor& depot) {
    const Watched watched;
    for (const bool is_ours : {true, false}) {
      for (const bool is_read : {true, false}) {
        const int64_t before = watched.made();
        std::vector<Text> texts;
        for (int64_t i = 0; i < 20; ++i) {
          texts.push_back(is_ours ? make_text(session, watched.paths(), i, 10)
                                  : owner.call<&Depot::make>(watched.paths(), i).get().value());
        }
        auto stream = depot ? depot->stream<&Depot::pass_on>({}, texts)
                            : session.stream(there(), pass_on, texts);
        texts.clear();
        REQUIRE(stream.call().get(deadline));  // So nobody keeps the arguments.
        REQUIRE(watched.freed() == before);
        if (is_read) {
          const auto all = read_all(stream);
          REQUIRE(all.size() == 20);
          for (int64_t i = 0; i < 20; ++i) {
            REQUIRE(all[static_cast<size_t>(19 - i)].get(deadline).value() == text_of(i, 10));
          }
          REQUIRE(watched.freed() == before);
        }
        stream = {};
        REQUIRE(eventually([&] { return watched.freed() == before + 20; }));
      }
    }
  });
  (void)owner.kill();
}

void check_producer_dies(const Session& session) {
  const auto depot = depot_there(session);
  const Watched ours;
  std::vector<Text> texts;
  for (int64_t i = 0; i < 20; ++i) texts.push_back(make_text(session, ours.paths(), i, 10));
  auto passed = depot.stream<&Depot::pass_on>({}, texts);
  texts.clear();
  REQUIRE(passed.call().get(deadline));
  std::vector<Text> kept;
  for (int i = 0; i < 5; ++i) kept.push_back(*passed.next(deadline).value());
  const Watched theirs;
  auto made = depot.stream<&Depot::parcels>({}, theirs.paths(), 20, 10);
  const auto parcel = made.next(deadline).value();
  REQUIRE(made.call().get(deadline));
  ::kill(static_cast<pid_t>(depot.status().value().pid), SIGKILL);
  // Of what nobody has read it alone held refs.
  REQUIRE(eventually([&] { return ours.freed() == 15; }));
  for (int64_t i = 0; i < 5; ++i) {
    REQUIRE(kept[static_cast<size_t>(i)].get(deadline).value() == text_of(19 - i, 10));
  }
  while (auto lost = passed.next(deadline).value()) {
    REQUIRE(lost->get(deadline).error().code() == troupe::Code::not_found);
  }
  REQUIRE(parcel->texts[0].get(deadline).error().code() == troupe::Code::data_loss);
  while (auto lost = made.next(deadline).value()) {
    REQUIRE(lost->texts[0].get(deadline).error().code() == troupe::Code::data_loss);
  }
  kept.clear();
  REQUIRE(eventually([&] { return ours.freed() == 20; }));
}

void check_caller_dies(const Session& session) {
  const auto depot = depot_there(session);
  const Watched watched;
  const Gate sent;
  const TaskOptions here{.placement = {.labels = {troupe::label::equals("n", "0")}}};
  const auto taker = session.submit(here, take_and_die, depot, watched.paths(), sent.path());
  REQUIRE(taker.get(deadline).error().code() == troupe::Code::outcome_unknown);
  REQUIRE(sent.marks() == 1);
  REQUIRE(watched.all_go());
  (void)depot.kill();
}

void check_actors(const Session& session) {
  const auto depot = depot_there(session);
  auto stream = depot.stream<&Depot::others>({});
  const auto other = stream.next(deadline).value();
  const Watched watched;
  const Text text = other->call<&Depot::make>(watched.paths(), 3).get(deadline).value();
  REQUIRE(text.get(deadline).value() == text_of(3, 10));
  (void)other->kill();
  (void)depot.kill();
}

}  // namespace

int main(int argc, char** argv) try {
  using Check = std::function<void(const Session&)>;
  const std::map<std::string, Check> checks{{"read", check_read},
                                            {"read_and_dropped", check_read_and_dropped},
                                            {"awaited", check_awaited},
                                            {"unread", check_unread},
                                            {"passed_on", check_passed_on},
                                            {"producer_dies", check_producer_dies},
                                            {"caller_dies", check_caller_dies},
                                            {"actors", check_actors}};
  const auto found = argc > 2 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: item_refs NAME NODE\n";
    return 2;
  }
  producers_node = argv[2];
  const Session session = troupe::connect().value();
  found->second(session);
  std::cout << "ok\n";
  return 0;
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
