// What clients of the OpenAI API get: answers, and the pieces of a stream.
#pragma once

#include <string>
#include <vector>

#include "gateway/backend.h"
#include "gateway/openai_request.h"

namespace troupe::gateway {

struct Usage {
  uint64_t prompt_tokens = 0;
  uint64_t completion_tokens = 0;
};

// One choice as far as it has come.
struct ChoiceText {
  std::string text;
  std::string finish_reason;
  std::vector<std::string> logprobs;  // JSON arrays of the engine, in order.
};

class AnswerWriter {
 public:
  AnswerWriter(const ApiRequest& request, std::string request_id, int64_t created_unix_s);

  std::string whole(const std::vector<ChoiceText>& choices, const Usage& usage) const;
  // The pieces of a stream. first: what comes before any text (chat: the role; echo: the prompt);
  // empty if nothing does.
  std::string first(size_t choice) const;
  std::string piece(size_t choice, const Chunk& chunk, size_t text_offset) const;
  std::string usage(const Usage& usage) const;

 private:
  const ApiRequest& request_;
  std::string id_;
  int64_t created_;
};

}  // namespace troupe::gateway
