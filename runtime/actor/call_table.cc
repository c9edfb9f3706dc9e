#include "actor/call_table.h"

#include "base/log.h"

namespace troupe::actor {

troupe_call* CallTable::open(std::shared_ptr<Call> call) {
  const std::lock_guard lock{mutex_};
  troupe_call* handle = nullptr;
  if (resting_.size() > rest_count) {
    handle = resting_.front();
    resting_.pop_front();
  } else {
    handle = handles_.emplace_back(std::make_unique<troupe_call>()).get();
    handle->table = this;
  }
  handle->call = std::move(call);
  handle->is_open = true;
  return handle;
}

std::shared_ptr<Call> CallTable::find(const troupe_call* handle) const {
  const std::lock_guard lock{mutex_};
  return handle->call;
}

std::shared_ptr<Call> CallTable::close(troupe_call* handle) {
  {
    const std::lock_guard lock{mutex_};
    if (std::exchange(handle->is_open, false)) {
      resting_.push_back(handle);
      return std::exchange(handle->call, nullptr);
    }
  }
  log::error("call_finished_twice", {});
  return nullptr;
}

bool CallTable::finish(troupe_call* handle, Result<Bytes> outcome) {
  const auto call = close(handle);
  if (!call) return false;
  call->finish(std::move(outcome));
  if (on_finish_) on_finish_(*call);
  return true;
}

bool CallTable::finish_value(troupe_call* handle, BytesView value) {
  const auto call = close(handle);
  if (!call) return false;
  call->finish_value(value);
  if (on_finish_) on_finish_(*call);
  return true;
}

size_t CallTable::fail_all(const Error& error) {
  std::vector<troupe_call*> open;
  {
    const std::lock_guard lock{mutex_};
    for (const auto& handle : handles_) {
      if (handle->is_open) open.push_back(handle.get());
    }
  }
  size_t failed = 0;
  for (troupe_call* handle : open) failed += finish(handle, error) ? 1 : 0;
  return failed;
}

}  // namespace troupe::actor
