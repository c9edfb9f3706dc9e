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
  open_.insert(handle);
  return handle;
}

std::shared_ptr<Call> CallTable::find(const troupe_call* handle) const {
  const std::lock_guard lock{mutex_};
  return handle->call;
}

bool CallTable::finish(troupe_call* handle, Result<Bytes> outcome) {
  std::shared_ptr<Call> call;
  {
    const std::lock_guard lock{mutex_};
    if (open_.erase(handle) > 0) {
      call = std::move(handle->call);
      handle->call = nullptr;
      resting_.push_back(handle);
    }
  }
  if (!call) {
    log::error("call_finished_twice", {{"outcome", outcome ? "reply" : "failure"}});
    return false;
  }
  call->finish(std::move(outcome));
  return true;
}

size_t CallTable::fail_all(const Error& error) {
  std::unordered_set<troupe_call*> open;
  {
    const std::lock_guard lock{mutex_};
    open = open_;
  }
  size_t failed = 0;
  for (troupe_call* handle : open) failed += finish(handle, error) ? 1 : 0;
  return failed;
}

}  // namespace troupe::actor
