// What the SDK keeps for a call that runs here: who asks whether it should end, and what it has
// submitted, which ends with it when it is cancelled.
#pragma once

#include <memory>
#include <mutex>
#include <stop_token>
#include <vector>

#include "client/object.h"
#include "troupe/this_call.h"

namespace troupe::detail {

class SessionImpl;

// Thread-safe.
class CallScope {
 public:
  // Of the call that this thread runs, made when first asked for; null outside of one.
  static std::shared_ptr<CallScope> current();

  std::stop_token token() const { return source_.get_token(); }
  void add_child(std::shared_ptr<SessionImpl> session,
                 const std::shared_ptr<client::Object>& object);

 private:
  struct Child {
    std::weak_ptr<SessionImpl> session;
    std::weak_ptr<client::Object> object;
  };
  static void on_stop(void* argument, uint32_t why);
  void stop(uint32_t why);
  static void cancel(const Child& child);

  std::stop_source source_;
  std::mutex mutex_;  // Guards what follows.
  bool cancels_children_ = false;
  std::vector<Child> children_;  // Those that have ended leave now and then.
  size_t tidy_at_ = 64;
};

}  // namespace troupe::detail
