// What a process has written to its log since it was looked at last, as whole lines. An adapter;
// blocks on the disk. One call at a time, from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace troupe::worker {

class LogReader {
 public:
  // Of what is unread no more than this is read: what is older is left out, and counted.
  static constexpr uint64_t unread_bytes_max = 1 << 20;
  // A longer line comes in pieces.
  static constexpr size_t line_bytes_max = 16 << 10;

  explicit LogReader(std::string path) : path_(std::move(path)) {}

  struct Lines {
    std::vector<std::string> lines;
    uint64_t lost = 0;  // Lines before these.
    bool more = false;  // The file had more than it was to read.
  };
  // Lines of the runtime's own that no person must act upon are not among them. With `ended` what
  // follows the last newline is a line, too.
  Lines read(uint64_t bytes_max, bool ended);

 private:
  void skip(int fd, uint64_t end, Lines& out);
  void take(std::string_view text, Lines& out);
  static void add(std::string line, Lines& out);

  const std::string path_;
  uint64_t offset_ = 0;
  std::string partial_;  // After the last newline.
};

}  // namespace troupe::worker
