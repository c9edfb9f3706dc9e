#include "client/item_source.h"

#include "client/object_directory.h"

namespace troupe::client {

Async<Result<std::optional<Item>>> ItemSource::next() {
  for (;;) {
    if (const auto stream = stream_) {
      auto got = co_await stream->next_item();
      if (got && *got) {
        Item item{std::move((*got)->bytes), nullptr};
        const uint32_t held = (*got)->held;
        if (held != 0) item.keep_alive = objects_.hold_of_item(stream->sender().address, held);
        co_return std::optional<Item>{std::move(item)};
      }
      // At its end. Whether it is sent anew, or with what it has failed, its caller decides.
      if (stream != stream_) continue;
    }
    if (outcome_ && !*outcome_) co_return outcome_->error();
    if (outcome_) co_return std::optional<Item>{};
    co_await changed_.wait();
  }
}

void ItemSource::begin(std::shared_ptr<transport::IncomingStream> stream) {
  stream_ = std::move(stream);
  changed_.pulse();
}

void ItemSource::settle(Status outcome) {
  if (!outcome_) outcome_ = std::move(outcome);
  changed_.pulse();
}

}  // namespace troupe::client
