// A driver that loses nodes with what lies there: `lineage NAME` exits 0 if NAME holds. The driver
// is on the node labelled n=0; those labelled n=1 and n=2 are lost.
#include <fcntl.h>
#include <signal.h>
#include <troupe/troupe.h>

#include <map>
#include <numeric>
#include <vector>

#include "check.h"

using troupe::Code;
using troupe::ObjectRef;
using troupe::TaskOptions;
using Numbers = std::vector<int64_t>;
namespace label = troupe::label;

namespace {

constexpr int64_t count = 32 << 10;  // Of numbers: what goes through the store.

void leave_mark(const std::string& path) {
  const int file = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  const ssize_t written = ::write(file, "x", 1);
  ::close(file);
  if (written != 1) throw std::runtime_error("cannot mark");
}

// Only there.
TaskOptions at(const std::string& n, int retries = 3) {
  return {.retries = retries, .placement = {.labels = {label::equals("n", n)}}};
}
// There while that node is, then on another that is not the driver's.
TaskOptions near(const std::string& n, int retries = 3) {
  return {.retries = retries,
          .placement = {.labels = {label::equals("n", n).soft(), label::not_equals("n", "0")}}};
}

}  // namespace

Numbers make(int64_t seed, const std::string& marks) {
  leave_mark(marks);
  Numbers numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), seed);
  return numbers;
}
TROUPE_TASK(make);
Numbers add(const Numbers& a, const Numbers& b, const std::string& marks) {
  leave_mark(marks);
  Numbers sum(a.size());
  for (size_t i = 0; i < sum.size(); ++i) sum[i] = a[i] + b[i];
  return sum;
}
TROUPE_TASK(add);
std::vector<Numbers> make_two(int64_t seed, const std::string& marks) {
  return {make(seed, marks), Numbers(static_cast<size_t>(count), seed)};
}
TROUPE_TASK(make_two);
// Less when it runs again.
Numbers shrinking(const std::string& marks) {
  const bool first = std::filesystem::file_size(marks) == 0;
  leave_mark(marks);
  return Numbers(first ? static_cast<size_t>(count) : 1, 7);
}
TROUPE_TASK(shrinking);
int64_t last_of(const Numbers& numbers) {
  return numbers.back();
}
TROUPE_TASK(last_of);
// Owns what was made for it.
class Keeper {
 public:
  bool fill(const std::string& marks) {
    object_ = troupe::connect().value().submit(at("1", 0), make, 1000, marks);
    return troupe::connect().value().wait(std::vector{object_}, {}).value().ready.size() == 1;
  }
  int64_t first() { return object_.get(deadline).value()[0]; }

 private:
  ObjectRef<Numbers> object_;
};
TROUPE_ACTOR(Keeper(), fill, first);
// Its object is held by nobody but this, which lies with the node that made it.
using Wrapped = std::pair<std::vector<ObjectRef<Numbers>>, Numbers>;
class Maker {
 public:
  ObjectRef<Numbers> make_one() {
    return troupe::connect().value().put(Numbers(static_cast<size_t>(count), 8)).value();
  }
};
TROUPE_ACTOR(Maker(), make_one);
Wrapped wrap(const troupe::ActorRef<Maker>& maker, int64_t padding) {
  auto inner = maker.call<&Maker::make_one>();
  return {{inner.get(deadline).value()}, Numbers(static_cast<size_t>(padding))};
}
TROUPE_TASK(wrap);
// What the task's own process owns, and that process.
using Owned = std::pair<std::vector<ObjectRef<Numbers>>, int64_t>;
Owned put_one(const std::string& marks, bool puts) {
  leave_mark(marks);
  REQUIRE(eventually([&] { return std::filesystem::file_size(marks) == 2; }));
  Owned owned{{}, ::getpid()};
  if (puts) owned.first.push_back(troupe::connect().value().put(Numbers{9}).value());
  return owned;
}
TROUPE_TASK(put_one);
// The pid of the node's worker, which its processes do not outlive.
int64_t parent() {
  return ::getppid();
}
TROUPE_TASK(parent);

namespace {

std::string tool;  // The path of `troupe`.

pid_t worker_of(const troupe::Session& session, const std::string& n) {
  return static_cast<pid_t>(session.submit(at(n), parent).get(deadline).value());
}
void lose(const troupe::Session& session, const std::string& n) {
  REQUIRE(::kill(worker_of(session, n), SIGKILL) == 0);
}
template <class T>
void await(const troupe::Session& session, const std::vector<ObjectRef<T>>& refs) {
  const auto wanted = refs.size();
  REQUIRE(session.wait(refs, {.count = wanted, .timeout = deadline}).value().ready.size() ==
          wanted);
}

// One after the other, of which only the last is still wanted: each runs once more.
void check_chain(const troupe::Session& session) {
  const Gate makes, adds;
  constexpr int64_t steps = 20;
  auto last = session.submit(at("1"), make, 5, makes.path());
  for (int64_t i = 0; i < steps; ++i) {
    last = session.submit(at("1"), add, last, last, adds.path());
  }
  await(session, std::vector{last});
  REQUIRE(makes.marks() == 1 && adds.marks() == steps);
  lose(session, "1");
  REQUIRE(last.get(deadline).value()[1] == 6 << steps);
  REQUIRE(makes.marks() == 2 && adds.marks() == 2 * steps);
}

// What lies elsewhere, or was read elsewhere, is not made again.
void check_parts(const troupe::Session& session) {
  const Gate lost, spared, copied, adds;
  const auto a = session.submit(at("1"), make, 1, lost.path());
  const auto b = session.submit(at("2"), make, 2, spared.path());
  const auto c = session.submit(at("1"), make, 3, copied.path());
  REQUIRE(session.submit(at("2"), last_of, c).get(deadline).value() == 3 + count - 1);
  const auto sum = session.submit(at("1"), add, a, b, adds.path());
  await(session, std::vector{a, b, c, sum});
  lose(session, "1");
  REQUIRE(sum.get(deadline).value()[0] == 3);
  REQUIRE(c.get(deadline).value()[0] == 3);
  REQUIRE(a.get(deadline).value()[0] == 1);
  REQUIRE(lost.marks() == 2 && adds.marks() == 2);
  REQUIRE(spared.marks() == 1 && copied.marks() == 1);
}

// The owner makes it again for readers in other processes, too.
void check_readers(const troupe::Session& session) {
  const Gate makes;
  const auto a = session.submit(near("1"), make, 1, makes.path());
  await(session, std::vector{a});
  lose(session, "1");
  std::vector<ObjectRef<int64_t>> read;
  for (int i = 0; i < 8; ++i) read.push_back(session.submit(near("2"), last_of, a));
  for (const auto& one : read) REQUIRE(one.get(deadline).value() == count);
  REQUIRE(makes.marks() == 2);
}

// One of several results is enough for all.
void check_several(const troupe::Session& session) {
  const Gate makes;
  TaskOptions two = near("1");
  two.returns = 2;
  auto results = session.submit_many(two, make_two, 4, makes.path());
  await(session, results);
  lose(session, "1");
  REQUIRE(results[1].get(deadline).value()[0] == 4);
  REQUIRE(results[0].get(deadline).value()[1] == 5);
  REQUIRE(makes.marks() == 2);
}

void check_shrinking(const troupe::Session& session) {
  const Gate makes;
  const auto a = session.submit(near("1"), shrinking, makes.path());
  await(session, std::vector{a});
  lose(session, "1");
  REQUIRE(a.get(deadline).value() == Numbers{7});
  REQUIRE(session.submit(near("2"), last_of, a).get(deadline).value() == 7);
  REQUIRE(makes.marks() == 2);
}

// What lies with a node that is drained moves before it goes: nothing is made again.
void check_drained(const troupe::Session& session) {
  const Gate makes;
  std::vector<ObjectRef<Numbers>> refs;
  for (int64_t i = 0; i < 50; ++i)
    refs.push_back(session.submit(at("1", 0), make, i, makes.path()));
  await(session, refs);
  // Of processes on other nodes, too.
  const auto keeper = session.create<Keeper>({.placement = at("2").placement}).value();
  REQUIRE(keeper.call<&Keeper::fill>(makes.path()).get(deadline));
  const pid_t worker = worker_of(session, "1");
  REQUIRE(std::system((tool + " drain worker-1 --timeout 60").c_str()) == 0);
  REQUIRE(::kill(worker, SIGKILL) == 0);
  for (int64_t i = 0; i < 50; ++i) {
    REQUIRE(refs[static_cast<size_t>(i)].get(deadline).value()[0] == i);
  }
  REQUIRE(keeper.call<&Keeper::first>().get(deadline).value() == 1000);
  REQUIRE(makes.marks() == 51);
}

// What is made again waits for what it is made of before it takes what both need.
void check_last_one(const troupe::Session& session) {
  const Gate makes, adds;
  TaskOptions with_license = at("1");
  with_license.resources.custom["license"] = 1;
  const auto a = session.submit(with_license, make, 5, makes.path());
  const auto sum = session.submit(with_license, add, a, a, adds.path());
  await(session, std::vector{a, sum});
  lose(session, "1");
  REQUIRE(sum.get(deadline).value()[0] == 10);
  REQUIRE(a.get(deadline).value()[0] == 5);
  REQUIRE(makes.marks() == 2 && adds.marks() == 2);
}

// Refs inside results live on when the process that made these goes with its drained node.
void check_wrapped(const troupe::Session& session) {
  const auto maker = session.create<Maker>({.placement = at("2").placement}).value();
  const auto large = session.submit(at("1", 0), wrap, maker, count);
  const auto small = session.submit(at("1", 0), wrap, maker, 0);
  await(session, std::vector{large, small});
  const pid_t worker = worker_of(session, "1");
  REQUIRE(std::system((tool + " drain worker-1 --timeout 60").c_str()) == 0);
  REQUIRE(::kill(worker, SIGKILL) == 0);
  // A task of the same place runs once the node is back, so that its old processes are gone.
  REQUIRE(worker_of(session, "1") != worker);
  for (const auto& wrapped : {large, small}) {
    REQUIRE(wrapped.get(deadline).value().first[0].get(deadline).value()[1] == 8);
  }
}

// A task's process that idles ends, unless others have refs to what it owns.
void check_idle(const troupe::Session& session) {
  const Gate marks;  // Of both while they run, so that each has a process.
  const auto kept = session.submit(at("0"), put_one, marks.path(), true);
  const auto other = session.submit(at("0"), put_one, marks.path(), false);
  await(session, std::vector{kept, other});
  const auto ended = static_cast<pid_t>(other.get(deadline).value().second);
  REQUIRE(eventually([&] { return ::kill(ended, 0) != 0; }));
  const Owned owned = kept.get(deadline).value();
  REQUIRE(owned.second != ended && owned.first[0].get(deadline).value() == Numbers{9});
}

// What cannot be made again says why.
void check_refused(const troupe::Session& session) {
  const Gate once, again, of_put;
  const auto a = session.submit(at("1", 0), make, 1, once.path());
  auto input = session.put(Numbers(static_cast<size_t>(count), 1)).value();
  const auto b = session.submit(at("1"), add, input, input, of_put.path());
  const auto kept = session.put(Numbers(static_cast<size_t>(count), 2)).value();
  const auto c = session.submit(at("1"), add, kept, kept, of_put.path());
  const auto d = session.submit(at("1", 1), make, 1, again.path());
  await(session, std::vector{a, b, c, d});
  input = {};
  lose(session, "1");
  auto why = a.get(deadline).error();
  REQUIRE(why.code() == Code::data_loss && why.message().find("retries") != std::string::npos);
  REQUIRE(once.marks() == 1);
  why = b.get(deadline).error();
  REQUIRE(why.code() == Code::data_loss && why.message().find("freed") != std::string::npos);
  REQUIRE(c.get(deadline).value()[0] == 4);
  // As often as its retries allow. Nobody has kept it here.
  REQUIRE(session.submit(near("2"), last_of, d).get(deadline).value() == count);
  REQUIRE(again.marks() == 2);
  lose(session, "1");
  lose(session, "2");
  why = d.get(deadline).error();
  REQUIRE(why.code() == Code::data_loss &&
          why.message().find("1 times again") != std::string::npos);
  REQUIRE(again.marks() == 2);
}

}  // namespace

int main(int argc, char** argv) try {
  const std::map<std::string, std::function<void(const troupe::Session&)>> checks{
      {"chain", check_chain},     {"parts", check_parts},         {"readers", check_readers},
      {"several", check_several}, {"shrinking", check_shrinking}, {"refused", check_refused},
      {"drained", check_drained}, {"last_one", check_last_one},   {"wrapped", check_wrapped},
      {"idle", check_idle}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: lineage NAME [TROUPE]\n";
    return 2;
  }
  if (argc > 2) tool = argv[2];
  found->second(troupe::connect().value());
  return 0;
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
