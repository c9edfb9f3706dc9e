// What the programs that check a real cluster share.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <string>

#define REQUIRE(condition)                                     \
  do {                                                         \
    if (!(condition)) {                                        \
      std::cerr << __LINE__ << ": not true: " #condition "\n"; \
      std::exit(1);                                            \
    }                                                          \
  } while (false)

inline constexpr auto deadline = std::chrono::seconds(60);

// A file that holds tasks and actors up while it exists, and in which they leave marks of a byte.
class Gate {
 public:
  Gate() {
    char path[] = "/tmp/troupe-gate-XXXXXX";
    ::close(::mkstemp(path));
    path_ = path;
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() { open(); }
  void open() const { ::unlink(path_.c_str()); }
  const std::string& path() const { return path_; }
  int64_t marks() const { return static_cast<int64_t>(std::filesystem::file_size(path_)); }

 private:
  std::string path_;
};

// Asks again until it holds; false at the deadline.
inline bool eventually(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::poll(nullptr, 0, 2);
  }
  return true;
}
