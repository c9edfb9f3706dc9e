#include "llm/added_tokens.h"

#include <algorithm>
#include <cstdint>

namespace troupe::llm {

void AddedTokenFinder::add(AddedToken token) {
  starts_[static_cast<uint8_t>(token.content[0])] = true;
  const auto shorter = std::ranges::find_if(tokens_, [&](const AddedToken& other) {
    return other.content.size() < token.content.size();
  });
  tokens_.insert(shorter, std::move(token));
}

std::pair<size_t, const AddedToken*> AddedTokenFinder::find(std::string_view text,
                                                            size_t from) const {
  for (size_t i = from; !tokens_.empty() && i < text.size(); ++i) {
    if (!starts_[static_cast<uint8_t>(text[i])]) continue;
    for (const AddedToken& token : tokens_) {
      if (text.substr(i).starts_with(token.content)) return {i, &token};
    }
  }
  return {std::string_view::npos, nullptr};
}

}  // namespace troupe::llm
