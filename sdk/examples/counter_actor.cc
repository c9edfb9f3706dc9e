// An actor: an object that lives in a process of its own and handles one call after the other.
#include <troupe/troupe.h>

#include <iostream>
#include <stdexcept>

class Counter {
 public:
  explicit Counter(int start) : value_(start) {}
  int add(int amount) {
    if (amount < 0) throw std::invalid_argument("a counter only grows");
    return value_ += amount;
  }
  int read() const { return value_; }

 private:
  int value_;
};
TROUPE_ACTOR(Counter(int), add, read);

int main() try {
  const troupe::Session session = troupe::connect().value();
  const auto counter = session.create<Counter>({.max_restarts = 1}, 10).value();

  // Calls return refs at once; they run in the order in which they were made.
  for (int i = 1; i <= 100; ++i) counter.call<&Counter::add>(i);
  std::cout << "value: " << counter.call<&Counter::read>().get().value() << "\n";

  // An exception comes back as an error with its message and the place where it was thrown.
  const auto refused = counter.call<&Counter::add>(-1).get();
  std::cout << "error: " << refused.error().message() << "\n";
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
