// What a job's processes find around them, on whatever node they run: environment variables and a
// working directory. What they print comes here. Usage: job_environment DIRECTORY FILE
#include <troupe/troupe.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

std::string greet(const std::string& file) {
  std::cout << "reading " << file << "\n";  // To the driver's standard error.
  std::ifstream in{file};                   // In the working directory.
  std::string name;
  if (!std::getline(in, name)) throw std::runtime_error("nothing to read in " + file);
  return std::getenv("GREETING") + (", " + name) + "!";
}
TROUPE_TASK(greet);

int main(int argc, char** argv) try {
  if (argc != 3) throw std::invalid_argument("usage: job_environment DIRECTORY FILE");
  troupe::ConnectOptions options;
  options.environment = {{"GREETING", "Hello"}};
  options.working_dir = argv[1];
  const auto session = troupe::connect(options).value();
  std::cout << session.submit(greet, argv[2]).get().value() << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
