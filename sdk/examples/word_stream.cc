// Generators, several results of one task, and what happens to a task that takes too long.
#include <troupe/troupe.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <numeric>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

using namespace std::chrono_literals;

// Its items reach the caller as they are made; it runs at most as far ahead as the caller says.
troupe::Generator<std::string> words(std::string text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    co_yield text.substr(begin, end - begin);
    begin = end + 1;
  }
}
TROUPE_TASK(words);

// Large items go as refs: who gets one, or passes it on, reads the object where it lies. It lives
// until nobody has a ref any more.
troupe::Generator<troupe::ObjectRef<std::vector<double>>> chunks(int count) {
  const troupe::Session session = troupe::connect().value();
  for (int i = 0; i < count; ++i) {
    const auto chunk = session.put(std::vector<double>(100'000, i)).value();
    co_yield chunk;
  }
}
TROUPE_TASK(chunks);

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}
TROUPE_TASK(sum);

// Each part of the tuple becomes an object of its own.
std::tuple<int, std::string> count_and_longest(const std::vector<std::string>& all) {
  std::string longest;
  for (const std::string& word : all) {
    if (word.size() > longest.size()) longest = word;
  }
  return {static_cast<int>(all.size()), longest};
}
TROUPE_TASK(count_and_longest);

// Ends early when it is told to: at its time limit, or when it is cancelled.
int search(int most) {
  int found = 0;
  while (found < most && !troupe::should_stop()) {
    std::this_thread::sleep_for(1ms);
    ++found;
  }
  return found;
}
TROUPE_TASK(search);

int main() try {
  const troupe::Session session = troupe::connect().value();

  std::vector<std::string> all;
  auto stream = session.stream({.generator_items_max = 4}, words, "a stream of words that grows");
  while (auto word = stream.next().value()) all.push_back(*word);

  double total = 0;
  auto parts = session.stream(chunks, 4);
  while (auto chunk = parts.next().value()) total += session.submit(sum, *chunk).get().value();
  std::cout << "in chunks: " << total << "\n";

  const auto [count, longest] = session.submit_many({}, count_and_longest, all);
  std::cout << count.get().value() << " words, the longest: " << longest.get().value() << "\n";

  const troupe::TaskOptions limited{
      .name = "search", .retries = 2, .retry_on = {troupe::Code::unavailable}, .time_limit = 50ms};
  const int found = session.submit(limited, search, 1'000'000).get().value();
  std::cout << (found < 1'000'000 ? "ended at its limit\n" : "found all\n");
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
