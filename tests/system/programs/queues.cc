// A driver that checks queues inside a real cluster: `queues NAME` exits 0 if NAME holds.
#include <signal.h>
#include <troupe/troupe.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace {

using namespace std::chrono_literals;
using troupe::Code;
using troupe::Coroutine;
using troupe::ObjectRef;
using troupe::Queue;

template <class T>
bool fails(const troupe::Result<T>& result, Code code, std::string_view text = {}) {
  if (!result && result.error().code() == code &&
      result.error().message().find(text) != std::string::npos) {
    return true;
  }
  std::cerr << (result ? std::string("it succeeded") : result.error().to_string()) << "\n";
  return false;
}

template <class T>
bool becomes(const Queue<T>& queue, uint64_t getters, uint64_t putters) {
  return eventually([&] {
    const auto status = queue.status().value();
    return status.getters == getters && status.putters == putters;
  });
}

}  // namespace

struct Parcel {
  int64_t number = 0;
  std::string text;
  ObjectRef<std::string> content;
};

int64_t produce(const Queue<int64_t>& queue, int64_t first, int64_t count) {
  for (int64_t i = first; i < first + count; ++i) queue.put(i, deadline).value();
  return count;
}
TROUPE_TASK(produce);
std::vector<int64_t> consume(const Queue<int64_t>& queue) {
  std::vector<int64_t> got;
  while (const auto one = queue.get(deadline).value()) got.push_back(*one);
  return got;
}
TROUPE_TASK(consume);
std::vector<int64_t> consume_many(const Queue<int64_t>& queue) {
  std::vector<int64_t> got;
  for (;;) {
    const auto some = queue.get_many(7, deadline).value();
    if (some.empty()) return got;
    got.insert(got.end(), some.begin(), some.end());
  }
}
TROUPE_TASK(consume_many);
// Puts what it owns: the value's owner is gone once the queue alone holds the ref.
int put_parcels(const Queue<Parcel>& parcels, int count) {
  const auto session = troupe::connect().value();
  for (int i = 0; i < count; ++i) {
    const auto content = session.put(std::string(100'000, static_cast<char>('a' + i))).value();
    parcels.put({i, std::to_string(i), content}).value();
  }
  return count;
}
TROUPE_TASK(put_parcels);

// A process of its own that gets.
class Reader {
 public:
  explicit Reader(Queue<int64_t> queue) : queue_(std::move(queue)) {}
  int64_t get() { return queue_.get(deadline).value().value_or(-1); }
  std::string node() { return troupe::this_actor()->node_name; }

 private:
  Queue<int64_t> queue_;
};
TROUPE_ACTOR(Reader(Queue<int64_t>), get, node);

// Everything in coroutine methods of one thread.
class Pipe {
 public:
  Pipe(Queue<int64_t> from, Queue<int64_t> to) : from_(std::move(from)), to_(std::move(to)) {}
  Coroutine<int64_t> pump() {
    int64_t moved = 0;
    for (;; ++moved) {
      const auto one = co_await from_.get_later();
      if (!one.value()) break;
      const auto put = co_await to_.put_later(**one * 2);
      put.value();
    }
    const auto more = co_await from_.get_many_later(10);
    if (!more.value().empty()) throw troupe::error(Code::internal, "an element after the end");
    co_return moved;
  }
  Coroutine<int64_t> late() {
    const auto one = co_await to_.get_later(20ms);
    const std::vector<int64_t> two{1, 2};
    const auto put = co_await to_.put_many_later(two);
    co_return one ? 0 : static_cast<int64_t>(one.error().code()) * 10 + static_cast<int64_t>(*put);
  }
  int64_t answer() { return 42; }

 private:
  Queue<int64_t> from_;
  Queue<int64_t> to_;
};
using MakePipe = Pipe(Queue<int64_t>, Queue<int64_t>);
TROUPE_ACTOR(MakePipe, pump, late, answer);

namespace {

void check_basics(const troupe::Session& session) {
  const auto queue = Queue<int64_t>::create(session, {.elements_max = 3}).value();
  REQUIRE(queue.empty().value());
  REQUIRE(fails(queue.try_get(), Code::exhausted, "empty"));
  REQUIRE(fails(queue.get(20ms), Code::deadline_exceeded));
  for (int i = 0; i < 3; ++i) queue.put(i).value();
  REQUIRE(queue.size().value() == 3);
  REQUIRE(fails(queue.try_put(9), Code::exhausted, "full"));
  REQUIRE(fails(queue.put(9, 20ms), Code::deadline_exceeded, "3 elements"));
  for (int i = 0; i < 3; ++i) REQUIRE(queue.get().value() == i);
  REQUIRE(fails(queue.get_many(5, 0s), Code::exhausted));
  // In part, where there is not room for all.
  const std::vector<int64_t> many{1, 2, 3, 4, 5};
  REQUIRE(queue.put_many(many, 50ms).value() == 3);
  REQUIRE(fails(queue.put_many(many, 0s), Code::exhausted));
  REQUIRE(queue.put_many({}).value() == 0);
  REQUIRE((queue.get_many(2).value() == std::vector<int64_t>{1, 2}));
  REQUIRE((queue.get_many(100).value() == std::vector<int64_t>{3}));
  // More than fits goes in as it is taken out, and those that wait longest are first.
  std::thread putter{[&] { REQUIRE(queue.put_many(many, deadline).value() == 5); }};
  REQUIRE(becomes(queue, 0, 1));
  std::thread second{[&] { queue.put(6, deadline).value(); }};
  REQUIRE(becomes(queue, 0, 2));
  for (int64_t i = 1; i <= 6; ++i) REQUIRE(queue.get(deadline).value() == i);
  putter.join();
  second.join();
  // A getter that waits is given what is put.
  std::thread getter{[&] { REQUIRE(queue.get(deadline).value() == 7); }};
  REQUIRE(becomes(queue, 1, 0));
  std::thread later{[&] {
    REQUIRE((queue.get_many(2, deadline).value() == std::vector<int64_t>{8, 9}));
  }};
  REQUIRE(becomes(queue, 2, 0));
  REQUIRE(queue.put_many(std::vector<int64_t>{7, 8, 9}).value() == 3);
  getter.join();
  later.join();
  REQUIRE(queue.empty().value());
  // Of any type, without a bound, and large.
  const auto texts = Queue<std::vector<std::string>>::create(session).value();
  const std::vector<std::string> large(3, std::string(300'000, 'x'));
  for (int i = 0; i < 20; ++i) texts.put(large).value();
  REQUIRE(texts.size().value() == 20);
  for (int i = 0; i < 20; ++i) REQUIRE(texts.get().value() == large);
  const Queue<int64_t> none;
  REQUIRE(fails(none.put(1), Code::invalid) && fails(none.get(), Code::invalid));
  REQUIRE(fails(none.size(), Code::invalid) && fails(none.close(), Code::invalid));
  REQUIRE(fails(none.kill(), Code::invalid));
}

void check_closed(const troupe::Session& session) {
  const auto queue = Queue<int64_t>::create(session, {.elements_max = 2}).value();
  queue.put(1).value();
  queue.put(2).value();
  std::thread putter{[&] { REQUIRE(fails(queue.put(3, deadline), Code::conflict, "closed")); }};
  REQUIRE(becomes(queue, 0, 1));
  queue.close().value();
  queue.close().value();
  putter.join();
  REQUIRE(queue.status().value().is_closed);
  REQUIRE(fails(queue.try_put(4), Code::conflict));
  REQUIRE(queue.get().value() == 1);
  REQUIRE((queue.get_many(9).value() == std::vector<int64_t>{2}));
  REQUIRE(queue.get().value() == std::nullopt);
  REQUIRE(queue.try_get().value() == std::nullopt);
  REQUIRE(queue.get_many(9).value().empty());
  // Getters that wait are told.
  const auto empty = Queue<int64_t>::create(session).value();
  std::thread getter{[&] { REQUIRE(empty.get(deadline).value() == std::nullopt); }};
  REQUIRE(becomes(empty, 1, 0));
  empty.close().value();
  getter.join();
}

void check_crowd(const troupe::Session& session) {
  constexpr int64_t each = 1000;
  const auto queue = Queue<int64_t>::create(session, {.elements_max = 50}).value();
  const auto consumed =
      std::vector{session.submit(consume, queue), session.submit(consume_many, queue)};
  std::vector<ObjectRef<int64_t>> produced;
  for (int64_t i = 0; i < 2; ++i)
    produced.push_back(session.submit(produce, queue, i * each, each));
  std::thread here{[&] { REQUIRE(produce(queue, 2 * each, each) == each); }};
  for (const auto& one : produced) REQUIRE(one.get(deadline).value() == each);
  here.join();
  queue.close().value();
  std::set<int64_t> all;
  for (const auto& got : consumed) {
    std::map<int64_t, int64_t> last;  // Of each producer: in its order.
    for (const int64_t one : got.get(deadline).value()) {
      REQUIRE(all.insert(one).second);
      const auto known = last.find(one / each);
      REQUIRE(known == last.end() || known->second < one);
      last[one / each] = one;
    }
  }
  REQUIRE(all.size() == 3 * each);
}

void check_refs(const troupe::Session& session) {
  const auto parcels = Queue<Parcel>::create(session).value();
  constexpr int count = 5;
  REQUIRE(session.submit(put_parcels, parcels, count).get(deadline).value() == count);
  // Of this process: nobody but the queue holds it.
  std::atomic<bool> freed = false;
  {
    const auto content = session.put(std::string(1000, 'z')).value();
    content.on_out_of_scope([&] { freed = true; }).value();
    parcels.put({count, "here", content}).value();
  }
  ::poll(nullptr, 0, 200);
  REQUIRE(!freed);
  for (int i = 0; i < count; ++i) {
    const auto parcel = parcels.get(deadline).value();
    REQUIRE(parcel && parcel->number == i && parcel->text == std::to_string(i));
    REQUIRE(parcel->content.get(deadline).value() ==
            std::string(100'000, static_cast<char>('a' + i)));
  }
  {
    const auto parcel = parcels.get(deadline).value();
    REQUIRE(parcel && parcel->content.get(deadline).value() == std::string(1000, 'z'));
  }
  // Once it was taken out and dropped, it goes.
  REQUIRE(eventually([&] { return freed.load(); }));
}

void check_gone(const troupe::Session& session) {
  const auto queue = Queue<int64_t>::create(session, {.elements_max = 2}).value();
  // Cancelled while it waits.
  const auto reader = session.create<Reader>({.max_concurrency = 2}, queue).value();
  (void)reader.call<&Reader::get>();
  (void)reader.call<&Reader::get>();
  REQUIRE(becomes(queue, 2, 0));
  // Its process dies while it waits: whoever waits behind it gets the element.
  std::vector<int64_t> got;
  std::thread getter{[&] { got.push_back(queue.get(deadline).value().value()); }};
  REQUIRE(becomes(queue, 3, 0));
  ::kill(static_cast<pid_t>(reader.status().value().pid), SIGKILL);
  REQUIRE(becomes(queue, 1, 0));
  queue.put(5).value();
  getter.join();
  REQUIRE(got == std::vector<int64_t>{5});
  REQUIRE(queue.empty().value());
  // A putter that dies while it waits puts nothing later.
  queue.put(1).value();
  queue.put(2).value();
  const auto blocked = session.submit(produce, queue, int64_t{3}, int64_t{1});
  REQUIRE(becomes(queue, 0, 1));
  session.cancel(blocked, {.force = true}).value();
  REQUIRE(becomes(queue, 0, 0));
  REQUIRE(queue.get().value() == 1);
  REQUIRE(queue.get().value() == 2);
  REQUIRE(fails(queue.get(100ms), Code::deadline_exceeded));
}

void check_named(const troupe::Session& session) {
  const troupe::QueueOptions options{.elements_max = 5,
                                     .actor = {.name = "letters", .get_if_exists = true}};
  const auto first = Queue<std::string>::create(session, options).value();
  first.put("a").value();
  const auto second = Queue<std::string>::create(session, options).value();
  REQUIRE(second.actor() == first.actor());
  REQUIRE(second.get().value() == "a");
  REQUIRE(Queue<std::string>::find(session, "letters").value().actor() == first.actor());
  REQUIRE(fails(Queue<int64_t>::find(session, "letters"), Code::invalid, "another type"));
  REQUIRE(fails(Queue<int64_t>::create(session, options), Code::invalid, "another type"));
  REQUIRE(
      fails(Queue<std::string>::create(session, {.actor = {.name = "letters"}}), Code::conflict));
  REQUIRE(fails(Queue<std::string>::find(session, "nobody"), Code::not_found));
  const auto no_queue = session.create<Reader>({.name = "reader"}, Queue<int64_t>{}).value();
  REQUIRE(fails(Queue<std::string>::find(session, "reader"), Code::invalid, "no queue"));
  first.kill().value();
  REQUIRE(eventually([&] { return !Queue<std::string>::find(session, "letters"); }));
}

void check_waiting(const troupe::Session& session) {
  constexpr int64_t count = 3000;
  const auto queue = Queue<int64_t>::create(session).value();
  const auto get_one = [](Queue<int64_t> from) -> Coroutine<int64_t> {
    const auto one = co_await from.get_later();
    co_return one.value().value();
  };
  std::vector<Coroutine<int64_t>> waits;
  for (int64_t i = 0; i < count; ++i) waits.push_back(get_one(queue));
  REQUIRE(becomes(queue, count, 0));
  // It holds no thread for them: it answers, and who waits longest is first.
  for (int64_t i = 0; i < count; ++i) queue.put(i).value();
  for (int64_t i = 0; i < count; ++i) REQUIRE(waits[size_t(i)].get() == i);
  REQUIRE(becomes(queue, 0, 0));
  REQUIRE(queue.empty().value());
}

void check_coroutines(const troupe::Session& session) {
  const auto from = Queue<int64_t>::create(session, {.elements_max = 10}).value();
  const auto to = Queue<int64_t>::create(session, {.elements_max = 10}).value();
  const auto pipe = session.create<Pipe>({}, from, to).value();
  const auto pumps = std::vector{pipe.call<&Pipe::pump>(), pipe.call<&Pipe::pump>()};
  REQUIRE(becomes(from, 2, 0));
  REQUIRE(pipe.call<&Pipe::answer>().get(deadline).value() == 42);
  std::thread producer{[&] {
    for (int64_t i = 0; i < 200; ++i) from.put(i, deadline).value();
    from.close().value();
  }};
  std::set<int64_t> got;
  for (int i = 0; i < 200; ++i) got.insert(to.get(deadline).value().value());
  REQUIRE(got.size() == 200 && *got.rbegin() == 398);
  producer.join();
  REQUIRE(pumps[0].get(deadline).value() + pumps[1].get(deadline).value() == 200);
  REQUIRE(pipe.call<&Pipe::late>().get(deadline).value() ==
          static_cast<int64_t>(Code::deadline_exceeded) * 10 + 2);
}

void check_dies(const troupe::Session& session) {
  const auto queue = Queue<int64_t>::create(session).value();
  std::thread getter{[&] {
    const auto got = queue.get(deadline);
    REQUIRE(!got &&
            (got.error().code() == Code::outcome_unknown ||
             got.error().code() == Code::unavailable || got.error().code() == Code::cancelled));
  }};
  REQUIRE(becomes(queue, 1, 0));
  queue.kill().value();
  getter.join();
  REQUIRE(fails(queue.put(1), Code::unavailable));
}

void check_two_nodes(const troupe::Session& session) {
  const auto queue = Queue<int64_t>::create(session, {.elements_max = 4}).value();
  std::vector<troupe::ActorRef<Reader>> readers;
  for (const char* n : {"0", "1"}) {
    troupe::ActorOptions there;
    there.placement.labels = {troupe::label::equals("n", n)};
    readers.push_back(session.create<Reader>(there, queue).value());
  }
  std::set<std::string> nodes;
  std::vector<ObjectRef<int64_t>> gets;
  for (const auto& reader : readers) {
    nodes.insert(reader.call<&Reader::node>().get(deadline).value());
    gets.push_back(reader.call<&Reader::get>());
  }
  REQUIRE(nodes.size() == 2);
  REQUIRE(becomes(queue, 2, 0));
  // The node's process is gone without a word to the queue: its connection tells.
  ::kill(static_cast<pid_t>(readers[0].status().value().pid), SIGKILL);
  REQUIRE(becomes(queue, 1, 0));
  queue.put(1).value();
  REQUIRE(gets[1].get(deadline).value() == 1);
  REQUIRE(queue.empty().value());
}

}  // namespace

int main(int argc, char** argv) try {
  using Check = std::function<void(const troupe::Session&)>;
  const std::map<std::string, Check> checks{
      {"basics", check_basics},      {"closed", check_closed}, {"crowd", check_crowd},
      {"refs", check_refs},          {"gone", check_gone},     {"named", check_named},
      {"waiting", check_waiting},    {"dies", check_dies},     {"coroutines", check_coroutines},
      {"two_nodes", check_two_nodes}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: queues NAME\n";
    return 2;
  }
  found->second(troupe::connect().value());
  std::cout << "ok\n";
  return 0;
} catch (const std::exception& thrown) {
  std::cerr << thrown.what() << "\n";
  return 1;
}
