// An actor whose methods are coroutines: many calls are under way in one thread, and each waits for
// others without holding them up.
#include <troupe/troupe.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

using namespace std::chrono_literals;

int64_t slow_square(int64_t n) {
  std::this_thread::sleep_for(20ms);
  return n * n;
}
TROUPE_TASK(slow_square);

class Desk {
 public:
  // Suspends until its argument is there; meanwhile other calls run.
  troupe::Coroutine<int64_t> add(troupe::ObjectRef<int64_t> a, troupe::ObjectRef<int64_t> b) {
    ++open_;
    most_ = std::max(most_, open_);
    const int64_t sum = (co_await a).value() + (co_await b).value();
    --open_;
    co_return sum;
  }
  troupe::Coroutine<std::string> later(std::string text) {
    (void)co_await troupe::sleep_for(50ms);
    co_return text + " (later)";
  }
  // One that is no coroutine runs between the others' steps.
  int64_t most_at_once() const { return most_; }

 private:
  int64_t open_ = 0;
  int64_t most_ = 0;
};
TROUPE_ACTOR(Desk(), add, later, most_at_once);
// At most two calls of this method are unfinished at a time, however many others are.
TROUPE_CONCURRENCY_GROUP(Desk, "slow", 2, later);

int main() try {
  const troupe::Session session = troupe::connect().value();
  const auto desk = session.create<Desk>({.max_concurrency = 100}).value();

  const auto hello = desk.call<&Desk::later>(std::string("hello"));
  std::vector<troupe::ObjectRef<int64_t>> sums;
  for (int64_t n = 0; n < 10; ++n) {
    sums.push_back(
        desk.call<&Desk::add>(session.submit(slow_square, n), session.submit(slow_square, n + 1)));
  }
  int64_t total = 0;
  for (const int64_t sum : session.get(sums).value()) total += sum;
  std::cout << "sums: " << total << "\n";
  std::cout << "several at once: " << std::boolalpha
            << (desk.call<&Desk::most_at_once>().get().value() > 1) << "\n";
  std::cout << hello.get().value() << "\n";
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
