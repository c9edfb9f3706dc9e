#include "call_scope.h"

#include <algorithm>

#include "client/object_directory.h"
#include "session_impl.h"

namespace troupe {
namespace detail {

CurrentCall& current_call() {
  thread_local CurrentCall current;
  return current;
}

std::shared_ptr<CallScope> CallScope::current() {
  CurrentCall& current = current_call();
  if (current.call == nullptr || current.scope) return current.scope;
  current.scope = std::make_shared<CallScope>();
  // The host gives it back when the call is finished.
  auto* kept = new std::shared_ptr<CallScope>(current.scope);
  host().call_on_stop(current.call, &CallScope::on_stop, kept);
  return current.scope;
}

void CallScope::on_stop(void* argument, uint32_t why) {
  auto* scope = static_cast<std::shared_ptr<CallScope>*>(argument);
  if (why == 0) {
    delete scope;
  } else {
    (*scope)->stop(why);
  }
}

void CallScope::stop(uint32_t why) {
  std::vector<Child> children;
  if ((why & TROUPE_STOP_CHILDREN) != 0) {
    const std::lock_guard lock{mutex_};
    cancels_children_ = true;
    children.swap(children_);
  }
  for (const Child& child : children) cancel(child);
  source_.request_stop();
}

void CallScope::add_child(std::shared_ptr<SessionImpl> session,
                          const std::shared_ptr<client::Object>& object) {
  const Child child{session, object};
  {
    const std::lock_guard lock{mutex_};
    if (!cancels_children_) {
      if (children_.size() >= tidy_at_) {
        std::erase_if(children_, [](const Child& one) {
          const auto found = one.object.lock();
          return !found || found->is_ready();
        });
        tidy_at_ = std::max<size_t>(64, children_.size() * 2);
      }
      children_.push_back(child);
      return;
    }
  }
  cancel(child);
}

void CallScope::cancel(const Child& child) {
  const auto session = child.session.lock();
  const auto object = child.object.lock();
  if (!session || !object) return;
  session->client().objects().cancel(
      object, error(Code::cancelled, "the call that submitted it was cancelled"));
}

}  // namespace detail

bool should_stop() {
  const troupe_call* call = detail::current_call().call;
  return call != nullptr && detail::host().call_cancelled(call) != 0;
}

std::stop_token stop_token() {
  const auto scope = detail::CallScope::current();
  return scope ? scope->token() : std::stop_token{};
}

}  // namespace troupe
