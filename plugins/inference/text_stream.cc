#include "inference/text_stream.h"

#include <algorithm>
#include <utility>

namespace troupe::inference {

std::string TextStream::finish() {
  std::string text = accept(decoder_.finish());
  if (!stopped_) text += std::exchange(held_, {});
  return text;
}

std::string TextStream::accept(std::string text) {
  if (stops_.empty()) return text;
  held_ += text;
  size_t begin = std::string::npos;
  size_t end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t found = held_.find(stop);
    if (found == std::string::npos) continue;
    const size_t found_end = found + stop.size();
    if (found_end < end || (found_end == end && found < begin)) {
      begin = found;
      end = found_end;
    }
  }
  if (end != std::string::npos) {
    stopped_ = true;
    held_.resize(begin);
    return std::exchange(held_, {});
  }
  const size_t certain = held_.size() - held_back();
  std::string out = held_.substr(0, certain);
  held_.erase(0, certain);
  return out;
}

// The longest end of `held_` that begins a stop string.
size_t TextStream::held_back() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    const size_t most = std::min(held_.size(), stop.size() - 1);
    for (size_t n = most; n > longest; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) longest = n;
    }
  }
  return longest;
}

}  // namespace troupe::inference
