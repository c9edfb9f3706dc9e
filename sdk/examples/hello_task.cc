// A task: a plain function that runs somewhere in the cluster.
#include <troupe/troupe.h>

#include <iostream>
#include <string>

std::string greet(const std::string& name, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += "Hello, " + name + "! ";
  return text;
}
TROUPE_TASK(greet);

int main() {
  auto session = troupe::connect();
  if (!session) {
    std::cerr << session.error().to_string() << "\n";
    return 1;
  }
  const troupe::ObjectRef<std::string> ref = session->submit(greet, "world", 2);
  const auto text = ref.get();
  if (!text) {
    std::cerr << text.error().to_string() << "\n";
    return 1;
  }
  std::cout << *text << "\n";
}
