#include "client/item_source.h"

namespace troupe::client {

Async<Result<std::optional<Bytes>>> ItemSource::next() {
  for (;;) {
    if (const auto stream = stream_) {
      auto item = co_await stream->next();
      if (item && *item) co_return item;
      // At its end. Whether it is sent anew, or with what it has failed, its caller decides.
      if (stream != stream_) continue;
    }
    if (outcome_ && !*outcome_) co_return outcome_->error();
    if (outcome_) co_return std::optional<Bytes>{};
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
