// Actors that others find by a name, that outlive the program that made them, and that begin anew
// when their process dies; and many light ones in one process.
#include <signal.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

class Registry {
 public:
  Registry() = default;
  int64_t count() { return ++count_; }
  // 1, and one more each time that it was started anew.
  int64_t incarnation() const { return troupe::this_actor().value().incarnation; }
  void crash() { ::kill(::getpid(), SIGKILL); }

 private:
  int64_t count_ = 0;
};
TROUPE_ACTOR(Registry(), count, incarnation, crash);

class Cell {
 public:
  explicit Cell(int64_t value) : value_(value) {}
  int64_t value() const { return value_; }

 private:
  int64_t value_;
};
TROUPE_ACTOR(Cell(int64_t), value);

// Runs in another process, which needs nothing but the name.
int64_t use_registry(const std::string& name) {
  const auto session = troupe::connect().value();
  return session.find<Registry>(name).value().call<&Registry::count>().get().value();
}
TROUPE_TASK(use_registry);

int main() try {
  const troupe::Session session = troupe::connect().value();
  const troupe::ActorOptions options{
      .name = "registry", .get_if_exists = true, .detached = true, .max_restarts = 1};
  const auto registry = session.create<Registry>(options).value();
  const auto same = session.create<Registry>(options).value();
  std::cout << "the same: " << std::boolalpha << (registry.id() == same.id()) << "\n";
  std::cout << "count: " << session.submit(use_registry, std::string("registry")).get().value()
            << "\n";

  // Its process dies: the call's outcome is unknown, and the next one finds a new incarnation.
  std::cout << "crash: " << registry.call<&Registry::crash>().get().error().message() << "\n";
  std::cout << "incarnation: " << registry.call<&Registry::incarnation>().get().value() << "\n";
  registry.kill().value();  // Else it would live on.

  // Light actors share a process; they cost about 10 kB each, and come in one request.
  const auto cells =
      session.create_many<Cell>({.process = troupe::ActorProcess::shared}, 1000, int64_t{7})
          .value();
  session.wait_alive(cells).value();
  int64_t total = 0;
  for (const auto& cell : cells) total += cell.call<&Cell::value>().get().value();
  std::cout << "cells: " << total << "\n";
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
