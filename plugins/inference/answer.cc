#include "inference/answer.h"

namespace troupe::inference {
namespace json = boost::json;

void Answer::add_logprobs(json::object entry) {
  if (!logprobs_) logprobs_.emplace();
  logprobs_->push_back(std::move(entry));
}

std::string Answer::take_item() {
  json::object item;
  item["text"] = std::exchange(text_, {});
  item["tokens"] = json::array(tokens_.begin(), tokens_.end());
  tokens_.clear();
  if (finish_reason_.empty()) {
    item["finish_reason"] = nullptr;
  } else {
    item["finish_reason"] = finish_reason_;
  }
  if (prompt_tokens_) item["prompt_tokens"] = *std::exchange(prompt_tokens_, std::nullopt);
  item["completion_tokens"] = completion_tokens_;
  if (logprobs_) item["logprobs"] = *std::exchange(logprobs_, std::nullopt);
  return json::serialize(item);
}

Answer::Delivery Answer::deliver() {
  const bool last = !finish_reason_.empty();
  if (!streams_) {
    if (!last) return Delivery::open;
    call_.reply(take_item());
    return Delivery::closed;
  }
  if (stalled()) {
    const Delivery sent = send();
    if (sent != Delivery::open) return sent;
  }
  // The last item may already have gone out as `unsent_`.
  if (last && finish_sent_) {
    call_.reply(std::string_view{});
    return Delivery::closed;
  }
  if (text_.empty() && !last) return Delivery::open;
  unsent_ = take_item();
  finish_sent_ = last;
  const Delivery sent = send();
  if (sent != Delivery::open || !last) return sent;
  call_.reply(std::string_view{});
  return Delivery::closed;
}

Answer::Delivery Answer::send() {
  switch (call_.emit(unsent_)) {
    case Code::ok:
      unsent_.clear();
      return Delivery::open;
    case Code::exhausted:
      return Delivery::stalled;
    case Code::cancelled:
      fail(error(Code::cancelled, "the caller is gone"));
      return Delivery::closed;
    default:
      fail(error(Code::internal, "the host refused an item of a stream"));
      return Delivery::closed;
  }
}

}  // namespace troupe::inference
