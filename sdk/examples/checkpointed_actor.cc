// An actor whose state outlives its process: it goes on from its last checkpoint.
#include <troupe/troupe.h>

#include <cstdlib>
#include <iostream>
#include <map>
#include <string>

class WordCounter {
 public:
  WordCounter() = default;
  size_t add(const std::string& word) { return ++counts_[word]; }
  size_t count(const std::string& word) { return counts_[word]; }
  void crash() { std::abort(); }

  // What is written here is read there, in the same order and of the same types.
  void save(troupe::CheckpointWriter& out) const { out.write(counts_); }
  void load(troupe::CheckpointReader& in) { in.read(counts_); }

 private:
  std::map<std::string, size_t> counts_;
};
TROUPE_ACTOR(WordCounter(), add, count, crash);

int main() try {
  using namespace std::chrono_literals;
  const troupe::Session session = troupe::connect().value();
  // Once a minute, if it was called since; and whenever somebody asks.
  const auto counter =
      session.create<WordCounter>({.max_restarts = 3, .checkpoint_interval = 60s}).value();
  for (const char* word : {"to", "be", "or", "not", "to", "be"}) {
    counter.call<&WordCounter::add>(std::string(word));
  }
  const troupe::CheckpointInfo kept = counter.checkpoint().value();  // Durable from here on.
  std::cout << "checkpoint " << kept.number << " has " << kept.size_bytes << " bytes\n";

  (void)counter.call<&WordCounter::crash>().get();
  // It may run twice, so it is sent again if it meets the process that ends.
  const auto count =
      counter.call<&WordCounter::count>(troupe::CallOptions{.retries = 3}, std::string("to"));
  std::cout << "\"to\" after the crash: " << count.get().value() << "\n";
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
