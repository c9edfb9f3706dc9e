#include "worker/log_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/file_descriptor.h"
#include "base/log.h"

namespace troupe::worker {
namespace {

constexpr size_t piece_bytes = 64 << 10;
constexpr size_t head_bytes = 64;  // Enough to tell whose line it is.

// Of what lies between two places of the file; less where it ends.
std::string_view read_piece(int fd, uint64_t from, uint64_t to, std::string& buffer) {
  buffer.resize(piece_bytes);
  const auto size = static_cast<size_t>(std::min<uint64_t>(piece_bytes, to - from));
  const ssize_t count = ::pread(fd, buffer.data(), size, static_cast<off_t>(from));
  return {buffer.data(), count > 0 ? static_cast<size_t>(count) : 0};
}

}  // namespace

LogReader::Lines LogReader::read(uint64_t bytes_max, bool ended) {
  Lines out;
  const FileDescriptor file{::open(path_.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat status {};
  if (!file.is_open() || ::fstat(file.get(), &status) != 0) return out;  // Somebody removed it.
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > offset_ + unread_bytes_max) skip(file.get(), size - unread_bytes_max, out);
  const uint64_t end = std::min(size, offset_ + bytes_max);
  std::string buffer;
  while (offset_ < end) {
    const std::string_view piece = read_piece(file.get(), offset_, end, buffer);
    if (piece.empty()) break;
    offset_ += piece.size();
    take(piece, out);
  }
  out.more = offset_ < size;
  if (ended && !out.more && !partial_.empty()) add(std::exchange(partial_, {}), out);
  return out;
}

// To the first line that begins at `end` or, where none does, behind the last newline before it.
void LogReader::skip(int fd, uint64_t end, Lines& out) {
  std::string buffer;
  std::string head = partial_.substr(0, head_bytes);  // Of the line that is passed over.
  uint64_t line = offset_;                            // Where the latest line begins.
  for (uint64_t at = offset_; at < end;) {
    const std::string_view piece = read_piece(fd, at, end, buffer);
    if (piece.empty()) break;
    for (size_t from = 0; from < piece.size();) {
      const size_t newline = std::min(piece.find('\n', from), piece.size());
      if (head.size() < head_bytes) {
        head += piece.substr(from, std::min(newline - from, head_bytes - head.size()));
      }
      from = newline + 1;
      if (newline == piece.size()) break;
      if (!log::is_routine(head)) ++out.lost;
      head.clear();
      line = at + from;
    }
    at += piece.size();
  }
  if (line == offset_) {  // One line that has no end yet.
    ++out.lost;
    line = end;
  }
  partial_.clear();
  offset_ = line;
}

void LogReader::take(std::string_view text, Lines& out) {
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    const size_t room = line_bytes_max - partial_.size();
    const size_t size = std::min({newline, text.size(), room});
    partial_.append(text.substr(0, size));
    if (size == newline) {
      text.remove_prefix(size + 1);
    } else {
      text.remove_prefix(size);
      if (text.empty()) return;  // Its end is still to be written.
    }
    add(std::exchange(partial_, {}), out);
  }
}

void LogReader::add(std::string line, Lines& out) {
  if (!log::is_routine(line)) out.lines.push_back(std::move(line));
}

}  // namespace troupe::worker
