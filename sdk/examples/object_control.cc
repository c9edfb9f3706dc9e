// The life of objects: waiting without fetching, callbacks, pins, refs inside values, freeing.
#include <troupe/troupe.h>

#include <chrono>
#include <future>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

using namespace std::chrono_literals;
using Numbers = std::vector<int64_t>;
using NumberRefs = std::vector<troupe::ObjectRef<Numbers>>;

Numbers count_to(int64_t end) {
  Numbers numbers;
  for (int64_t i = 1; i <= end; ++i) numbers.push_back(i);
  return numbers;
}
TROUPE_TASK(count_to);

// Results that stay where they were made: whoever gets the list gets refs.
NumberRefs count_in_parts(int64_t parts) {
  const auto session = troupe::connect().value();
  NumberRefs made;
  for (int64_t i = 1; i <= parts; ++i) made.push_back(session.put(count_to(i * 1000)).value());
  return made;
}
TROUPE_TASK(count_in_parts);

int main() try {
  const troupe::Session session = troupe::connect().value();

  // The first of several that is ready, and no value is fetched for that.
  NumberRefs refs;
  for (const int64_t end : {10, 20, 30}) refs.push_back(session.submit(count_to, end));
  const auto first = session.wait(refs, {.count = 1}).value();
  std::cout << "ready: " << first.ready.size() << " of 3\n";

  // Called once it is there, on a thread of the session's.
  std::promise<void> called;
  refs[2].on_ready([&called] { called.set_value(); });
  called.get_future().wait();
  std::cout << "the third has " << refs[2].get().value().size() << " numbers\n";

  // Refs inside a value hold what they refer to, in whichever process it lies.
  auto parts = session.submit(count_in_parts, int64_t{3}).get().value();
  {
    const auto pin = parts[2].pin().value();  // Brought to this node, and not spilled meanwhile.
    std::cout << "pinned, read in place: " << parts[2].view().value()[2999] << "\n";
  }

  // Freed for everybody at once, though there are refs.
  session.free(NumberRefs{parts[0]}).value();
  std::cout << "freed: " << troupe::code_name(parts[0].get().error().code())
            << ", the others: " << parts[1].get().value().size() << "\n";
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
