// From sampled tokens to the text that a client may see.
#pragma once

#include <string>
#include <vector>

#include "llm/tokenizer.h"

namespace troupe::inference {

// Whole characters only, and nothing of a stop string: a possible beginning of one is held back
// until it is certain. The text does not depend on where the borders of tokens lie: of several stop
// strings the one that ends first counts, the longer one of those that end together.
class TextStream {
 public:
  // `stops` are not empty and valid UTF-8.
  TextStream(llm::Tokenizer tokenizer, std::vector<std::string> stops)
      : decoder_(std::move(tokenizer)), stops_(std::move(stops)) {}

  // The text that became certain; nothing more comes once stopped().
  std::string push(int32_t token) { return accept(decoder_.push(token)); }
  // What was held back. Call once, unless stopped().
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::string accept(std::string text);
  size_t held_back() const;

  llm::StreamDecoder decoder_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace troupe::inference
