// Tasks under control: retries, timeouts, cancelling, tasks that submit tasks, tasks whose results
// nobody reads, and why something waits.
#include <troupe/troupe.h>

#include <chrono>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

using namespace std::chrono_literals;

class Tries {
 public:
  Tries() = default;
  int64_t next() { return ++count_; }

 private:
  int64_t count_ = 0;
};
TROUPE_ACTOR(Tries(), next);

// Fails twice. A task keeps nothing between its runs; an actor does.
int64_t unreliable(const troupe::ActorRef<Tries>& tries) {
  const int64_t run = tries.call<&Tries::next>().get().value();
  if (run < 3) throw troupe::error(troupe::Code::unavailable, "not yet");
  return run;
}
TROUPE_TASK(unreliable);

// Works until it is told to stop.
void endless() {
  while (!troupe::should_stop()) std::this_thread::sleep_for(1ms);
}
TROUPE_TASK(endless);

int64_t fibonacci(int64_t n) {
  if (n < 2) return n;
  // A task that waits lends its cpu to those that it waits for.
  const auto session = troupe::connect().value();
  const auto before = session.submit(fibonacci, n - 1);
  return fibonacci(n - 2) + before.get().value();
}
TROUPE_TASK(fibonacci);

void note(const std::string& text) {
  if (text.empty()) throw std::invalid_argument("nothing to note");
}
TROUPE_TASK(note);

int main() try {
  const troupe::Session session = troupe::connect().value();
  const auto tries = session.create<Tries>({}).value();
  const troupe::TaskOptions patient{
      .name = "patient", .retries = 5, .retry_on = {troupe::Code::unavailable}};
  std::cout << "runs: " << session.submit(patient, unreliable, tries).get().value() << "\n";

  const auto late = session.submit({.timeout = 50ms}, endless);
  std::cout << "timeout: " << troupe::code_name(late.get().error().code()) << "\n";
  const auto stopped = session.submit(endless);
  session.cancel(stopped).value();
  std::cout << "cancel: " << troupe::code_name(stopped.get().error().code()) << "\n";

  std::cout << "nested: " << session.submit(fibonacci, int64_t{8}).get().value() << "\n";

  // Results that nobody reads; drain() waits for all, and failures are counted.
  for (const char* text : {"one", "two", ""}) (void)session.submit(note, std::string(text));
  session.drain().value();
  std::cout << "unread failures: " << session.unread_failures() << "\n";

  // Why something waits, as `troupe why` says it.
  const auto impossible =
      session.submit({.resources = {.custom = {{"unicorns", 1}}}}, note, std::string("never"));
  std::cout << session.explain(impossible).value().text;
  session.cancel(impossible).value();
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
