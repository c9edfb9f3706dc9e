// One source that two programs are built from, with other types in it: `signatures create` makes an
// actor by the code of the one, `signatures_other call` calls it by that of the other. Prints the
// errors.
#include <troupe/troupe.h>

#include <iostream>
#include <string>

#include "check.h"

#ifdef OTHER
using Number = double;
#else
using Number = int;
#endif

struct Point {
  Number x;
  Number y;
};

class Adder {
 public:
  explicit Adder(Number start) : sum_(start) {}
  Number add(Number n) { return sum_ += n; }
  Number norm(Point point) { return point.x + point.y; }
  troupe::Generator<Number> count(Number n) {
    for (Number i = 0; i < n; ++i) co_yield i;
  }

 private:
  Number sum_;
};
TROUPE_ACTOR(Adder(Number), add, norm, count);

Number half(Number n) {
  return n / 2;
}
TROUPE_TASK(half);
troupe::Generator<Number> below(Number n) {
  for (Number i = 0; i < n; ++i) co_yield i;
}
TROUPE_TASK(below);
// The error of a call that a task makes, as the task's caller gets it.
troupe::Result<Number> call_inside(std::string name) {
  const auto session = troupe::connect().value();
  auto adder = session.find<Adder>(name).value();
  return adder.call<&Adder::add>(Number{1}).get();
}
TROUPE_TASK(call_inside);

namespace {

using troupe::Code;
namespace detail = troupe::detail;

template <class T>
void print_failure(const char* what, const troupe::Result<T>& outcome) {
  REQUIRE(!outcome);
  REQUIRE(outcome.error().code() == Code::invalid);
  std::cout << what << ": " << outcome.error().message() << "\n";
}

int create() {
  const auto session = troupe::connect().value();
  auto adder = session.create<Adder>({.name = "adder", .detached = true}, 1).value();
  REQUIRE(adder.call<&Adder::add>(2).get().value() == 3);
  return 0;
}

int call() {
  const auto session = troupe::connect().value();
  auto adder = session.find<Adder>("adder").value();
  print_failure("method", adder.call<&Adder::add>(Number{1}).get());
  print_failure("struct", adder.call<&Adder::norm>(Point{1, 2}).get());
  auto items = adder.stream<&Adder::count>({}, Number{3});
  print_failure("generator", items.next());
  print_failure("inside", session.submit(call_inside, "adder").get());
  std::vector<troupe::ObjectRef<Number>> refs{adder.call<&Adder::add>(Number{1})};
  print_failure("many", session.get(refs));
  REQUIRE(adder.kill());
  return 0;
}

// A job's processes have the code of its driver. So what a driver would send that has other code is
// sent by hand.
template <class F>
std::vector<detail::ArgumentValue> arguments_of(const std::string& value) {
  return detail::encode_arguments<typename detail::FunctionTraits<F>::Arguments>(
      std::index_sequence<0>{}, value);
}

int by_hand() {
  const auto session = troupe::connect().value();
  using Call = std::string (*)(std::string);
  const uint64_t other = detail::FunctionTraits<Call>::signature();
  const auto task = detail::submit_task(session.impl(), reinterpret_cast<const void*>(&half), other,
                                        arguments_of<Call>("x"), {});
  print_failure("task", troupe::ObjectRef<Number>{task}.get());
  using Items = troupe::Generator<std::string> (*)(std::string);
  auto stream =
      detail::stream_task(session.impl(), reinterpret_cast<const void*>(&below),
                          detail::FunctionTraits<Items>::signature(), arguments_of<Items>("x"), {});
  troupe::Stream<Number> items{std::move(stream.items), std::move(stream.call)};
  print_failure("task generator", items.next());
  const void* const anchor = troupe_class_anchor(static_cast<Adder*>(nullptr));
  const auto made = detail::create_actor(session.impl(), detail::module_of(anchor), "Adder",
                                         detail::FunctionTraits<Adder(std::string)>::signature(),
                                         arguments_of<Adder(std::string)>("x"), {});
  troupe::ActorRef<Adder> adder{session.impl(), made.value()};
  const auto refused = adder.call<&Adder::add>(1).get();
  REQUIRE(!refused);
  std::cout << "constructor: " << refused.error().message() << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "create") return create();
  if (name == "call") return call();
  if (name == "by_hand") return by_hand();
  std::cerr << "no check is called " << name << "\n";
  return 2;
}
