// A driver that checks Cap'n Proto messages as objects; exits 0 if they hold.
#include <troupe/capnp.h>
#include <troupe/troupe.h>

#include <algorithm>
#include <cstdint>
#include <iostream>
#include <string>

#include "check.h"
#include "sample.capnp.h"

namespace {

using troupe::Code;
using troupe::MessageRef;

constexpr unsigned value_count = 100'000;

void fill(Sample::Builder sample) {
  sample.setName("parent");
  auto values = sample.initValues(value_count);
  for (unsigned i = 0; i < value_count; ++i) values.set(i, i);
  auto children = sample.initChildren(2);
  children[0].setName("first");
  children[1].setName("second");
}

}  // namespace

// The sum of its values and the name of its last child.
std::string summarise(const MessageRef<Sample>& ref) {
  const auto view = ref.view().value();
  double sum = 0;
  for (const double value : view.root().getValues()) sum += value;
  return std::to_string(static_cast<int64_t>(sum)) + " " +
         view.root().getChildren()[1].getName().cStr();
}
TROUPE_TASK(summarise);

int main() try {
  const troupe::Session session = troupe::connect().value();
  capnp::MallocMessageBuilder builder;
  fill(builder.initRoot<Sample>());
  const auto ref = troupe::put_message<Sample>(session, builder).value();
  const std::string expected = "4999950000 second";
  REQUIRE(summarise(ref) == expected);
  REQUIRE(session.submit(summarise, ref).get().value() == expected);

  // Read in place: two views show the same memory.
  const auto view = ref.view().value();
  const auto again = ref.view().value();
  REQUIRE(view.root().getName().begin() == again.root().getName().begin());

  // A copy of the view outlives refs.
  auto last = [&] {
    const auto other = troupe::put_message<Sample>(session, builder).value();
    return other.view().value();
  }();
  REQUIRE(last.root().getValues()[7] == 7);

  // What is no message is an error, not a crash.
  for (const uint64_t word : {uint64_t{0xffff'ffff'ffff'ffff}, uint64_t{0x7fff'0000'0000}}) {
    auto building = session.create<uint64_t>(100).value();
    std::ranges::fill(building.span(), word);
    const MessageRef<Sample> wrong{building.seal().value()};
    REQUIRE(wrong.view().error().code() == Code::invalid);
  }
  const MessageRef<Sample> empty{session.create<uint64_t>(0).value().seal().value()};
  const auto nothing = empty.view();
  REQUIRE(!nothing || nothing->root().getName().size() == 0);
  return 0;
} catch (const troupe::Error& failure) {
  std::cerr << failure.to_string() << "\n";
  return 1;
}
