// What a caller of "generate" gets: a stream of items, or one reply.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "troupe/plugin_class.h"

namespace troupe::inference {

// Gathers what was generated and hands it on as far as the caller takes it. Owns the call: one that
// is dropped unfinished fails.
class Answer {
 public:
  enum class Delivery : uint8_t {
    open,     // All was taken, or is kept for the one reply.
    stalled,  // The caller does not keep up: deliver() again later.
    closed,   // The call is finished.
  };

  Answer(plugin::Call call, size_t prompt_tokens)
      : call_(std::move(call)), streams_(call_.streams()), prompt_tokens_(prompt_tokens) {}

  bool cancelled() const { return call_.cancelled(); }
  bool stalled() const { return !unsent_.empty(); }

  void add_text(std::string_view text) { text_ += text; }
  void add_token(int32_t token) {
    tokens_.push_back(token);
    ++completion_tokens_;
  }
  void add_logprobs(boost::json::object entry);
  // Nothing comes after it. reason: "stop" or "length".
  void finish(std::string_view reason) { finish_reason_ = reason; }

  // Sends what has become visible. Tokens without any text yet wait for it.
  Delivery deliver();
  // Finishes the call.
  void fail(const Error& failure) { call_.fail(failure); }

 private:
  std::string take_item();
  Delivery send();

  plugin::Call call_;
  bool streams_;
  std::optional<size_t> prompt_tokens_;  // Until the first item.
  size_t completion_tokens_ = 0;
  std::string text_;
  std::vector<int32_t> tokens_;
  std::optional<boost::json::array> logprobs_;
  std::string finish_reason_;
  std::string unsent_;        // An item that the caller had no room for.
  bool finish_sent_ = false;  // The last item is in `unsent_` or gone.
};

}  // namespace troupe::inference
