// What every kind of submitting shares.
#pragma once

#include <functional>

#include "client/actor_caller.h"
#include "session_impl.h"

namespace troupe::detail {

// Large inline arguments go through the store, so that every message stays small.
Status store_large_arguments(const std::shared_ptr<SessionImpl>& session,
                             std::vector<ArgumentValue>& values);
// Takes over the object's one reference.
std::shared_ptr<RefHandle> own(const std::shared_ptr<SessionImpl>& session,
                               std::shared_ptr<client::Object> object);
// An object that failed before it began.
std::shared_ptr<RefHandle> make_failed(const std::shared_ptr<SessionImpl>& session, Error failure);
// What a call of this thread's submits ends with it.
void note_child(const std::shared_ptr<SessionImpl>& session,
                const std::shared_ptr<client::Object>& object);

// What CallOptions leave open.
struct CallExtras {
  int max_call_retries = 0;
  uint32_t results = 0;  // As client::ActorCallExtras has them.
  std::shared_ptr<client::ItemSource> items = nullptr;
  std::shared_ptr<client::CallRoute> route = nullptr;
};
// Of no actor yet.
client::ActorCallSpec to_call_spec(std::string_view method, uint64_t signature,
                                   std::vector<ArgumentValue>& arguments,
                                   const CallOptions& options, CallExtras more);

// Runs `call` on a thread of the SDK's own, where it may block in put() or get().
void call_back(std::function<void()> call);

}  // namespace troupe::detail
