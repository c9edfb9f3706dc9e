// A driver whose doings the tests look for in a trace: `traced NAME`.
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "check.h"

using troupe::Code;
using troupe::ObjectRef;
using Numbers = std::vector<int64_t>;
namespace label = troupe::label;

int64_t work(int64_t n) {
  ::poll(nullptr, 0, 5);
  return n + 1;
}
TROUPE_TASK(work);
int64_t fail_at_once(int64_t n) {
  if (n >= 0) throw troupe::Error{Code::invalid, "as it was told"};
  return n;
}
TROUPE_TASK(fail_at_once);
Numbers make_numbers(int64_t bytes) {
  return Numbers(static_cast<size_t>(bytes / 8), 7);
}
TROUPE_TASK(make_numbers);

class Crasher {
 public:
  int64_t add(int64_t n) { return sum_ += n; }
  void crash() { ::kill(::getpid(), SIGKILL); }

 private:
  int64_t sum_ = 0;
};
using MakeCrasher = Crasher();
TROUPE_ACTOR(MakeCrasher, add, crash);

namespace {

// Tasks that queue, one that fails, an object from another node, an actor that dies and returns.
void do_all(const troupe::Session& session) {
  std::vector<ObjectRef<int64_t>> refs;
  for (int64_t i = 0; i < 20; ++i) refs.push_back(session.submit(work, i));
  for (auto& ref : refs) REQUIRE(ref.get(deadline).value() > 0);
  REQUIRE(!session.submit(fail_at_once, 1).get(deadline));
  const auto stored = session.put(Numbers(1 << 20, 1)).value();
  const troupe::TaskOptions there{.placement = {.labels = {label::equals("n", "1")}}};
  const auto far = session.submit(there, make_numbers, int64_t{8} << 20);
  REQUIRE(far.get(deadline).value().size() == 1 << 20);
  const auto actor = session.create<Crasher>({.max_restarts = 1}).value();
  REQUIRE(actor.call<&Crasher::add>(1).get(deadline).value() == 1);
  REQUIRE(!actor.call<&Crasher::crash>().get(deadline));
  REQUIRE(actor.call<&Crasher::add>(1).get(deadline).value() == 1);
}

// More calls than each could be noted.
void be_busy(const troupe::Session& session) {
  const auto actor = session.create<Crasher>({}).value();
  int64_t last = 0;
  for (int64_t round = 0; round < 100; ++round) {
    std::vector<ObjectRef<int64_t>> refs;
    for (int64_t i = 0; i < 2000; ++i) refs.push_back(actor.call<&Crasher::add>(1));
    for (auto& ref : refs) last = ref.get(deadline).value();
  }
  REQUIRE(last == 200'000);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  const auto session = troupe::connect().value();
  if (name == "all") {
    do_all(session);
  } else if (name == "busy") {
    be_busy(session);
  } else {
    return 2;
  }
}
