// What the code of a task or method learns of the call that it runs in.
#pragma once

#include <memory>
#include <stop_token>

#include "troupe/plugin.h"

namespace troupe {

// Whether the task or call that this thread runs should end soon: it was cancelled, its caller is
// gone, or it is past its time limit. False outside of one, and on threads that the code started:
// those look at a stop_token() that it gave them.
bool should_stop();

// The same as a token, e.g. for std::stop_callback, whose callbacks run on a thread of the
// runtime's and must not block. Good for as long as somebody wants it; without a call it never
// asks.
std::stop_token stop_token();

namespace detail {

class CallScope;

// The call whose code a thread runs, and what is kept for it once somebody asks.
struct CurrentCall {
  troupe_call* call = nullptr;
  std::shared_ptr<CallScope> scope = nullptr;
};
CurrentCall& current_call();

// While it lives this thread runs the code of a call.
class RunningCall {
 public:
  explicit RunningCall(CurrentCall call) : before_(std::move(current_call())) {
    current_call() = std::move(call);
  }
  RunningCall(const RunningCall&) = delete;
  RunningCall& operator=(const RunningCall&) = delete;
  ~RunningCall() { current_call() = std::move(before_); }

 private:
  CurrentCall before_;
};

}  // namespace detail
}  // namespace troupe
