// A pool of actors that share work, a queue that tells how it goes, and a caller that is held back.
#include <troupe/troupe.h>

#include <iostream>
#include <ranges>
#include <string>
#include <vector>

struct Report {
  int64_t number = 0;
  int64_t divisors = 0;
};

// Counts divisors, and reports what it found.
class Worker {
 public:
  explicit Worker(troupe::Queue<Report> reports) : reports_(std::move(reports)) {}
  int64_t divisors(int64_t number) {
    int64_t count = 0;
    for (int64_t i = 1; i <= number; ++i) count += number % i == 0 ? 1 : 0;
    if (count > 30) reports_.put({number, count}).value();
    return count;
  }

 private:
  troupe::Queue<Report> reports_;
};
TROUPE_ACTOR(Worker(troupe::Queue<Report>), divisors);

// Takes reports as they come, in another process; ends when the queue is closed.
int64_t best_of(const troupe::Queue<Report>& reports) {
  Report best;
  while (const auto report = reports.get().value()) {
    if (report->divisors > best.divisors) best = *report;
  }
  return best.number;
}
TROUPE_TASK(best_of);

int main() try {
  const auto session = troupe::connect().value();
  // A put blocks while 100 reports wait.
  const auto reports = troupe::Queue<Report>::create(session, {.elements_max = 100}).value();
  const auto best = session.submit(best_of, reports);

  // Two actors, and a few numbers on their way at a time, however long the range is.
  const auto pool =
      troupe::ActorPool<Worker>::create(session, {.max_restarts = 1}, 2, reports).value();
  int64_t total = 0;
  auto counts = pool.map<&Worker::divisors>(std::views::iota(int64_t{1}, int64_t{5001}));
  while (const auto count = counts.next().value()) total += *count;
  reports.close().value();
  std::cout << "all numbers up to 5000 have " << total << " divisors, " << best.get().value()
            << " has the most\n";

  // A handle of one actor with at most 10 unfinished calls: the 11th waits for one to end.
  const auto one = pool.pop_idle().value();
  const auto limited = one.limited(10);
  std::vector<troupe::ObjectRef<int64_t>> refs;
  for (int64_t number = 1; number <= 100; ++number) {
    refs.push_back(limited.call<&Worker::divisors>(number));
  }
  total = 0;
  for (const int64_t count : session.get(refs).value()) total += count;
  std::cout << "those up to 100 have " << total << "\n";
  return one.kill() ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
