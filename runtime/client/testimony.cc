#include "client/testimony.h"

#include <fmt/format.h>

#include <algorithm>

#include "client/actor_caller.h"
#include "client/blocked_waits.h"
#include "client/lease_pool.h"
#include "client/object_directory.h"

namespace troupe::client {

using protocol::Explanation;
using protocol::Explanations;

namespace {

constexpr size_t asked_max = 4096;  // In one question.

Error too_many() {
  return error(Code::invalid, fmt::format("at most {} things can be explained at once", asked_max));
}

}  // namespace

protocol::WaitsFor call_at(const Object& result, const protocol::ProcessAddress& process) {
  return {"call", result.id(), {}, process};
}

uint64_t left_us(Instant now, Instant deadline) {
  if (deadline - now >= default_budget) return 0;
  return static_cast<uint64_t>(
      std::max<int64_t>((deadline - now) / std::chrono::microseconds(1), 1));
}

Testimony::Testimony(Client& client) : client_(client) {
  client_.router().on(Method::explain_objects, *this, &Testimony::explain_objects);
  client_.router().on(Method::explain_calls, *this, &Testimony::explain_calls);
}

bool Testimony::is_self(const protocol::ProcessAddress& process) const {
  return process.process == client_.address().process;
}

Explanation Testimony::about(ObjectId id) const {
  Explanation told;
  told.kind = "object";
  told.id = id;
  auto object = client_.objects().find(id);
  if (!object) {
    // What is waited for has a name from now on, even if nobody else was told of it.
    client_.waits().for_each([](BlockedWait& wait) { (void)wait.facts(); });
    object = client_.objects().find(id);
  }
  if (!object) {
    told.state = "unknown";
    told.why = "its owner has no such object: it was freed, or nobody else was told of it";
    return told;
  }
  if (object->is_ready()) {
    const Error* failure = object->failure();
    told.state = object->is_discarded() ? "freed" : failure != nullptr ? "failed" : "ready";
    if (failure != nullptr) told.why = failure->to_string();
    return told;
  }
  const auto first = object->first();
  const Object& made = first ? *first : *object;
  told.state = "pending";
  bool known = false;
  if (made.maker() == Object::Maker::task) {
    known = client_.leases_->explain(made, told);
  } else if (made.maker() == Object::Maker::actor) {
    known = client_.actors_->explain(made, told);
  } else {
    told.why = "it is being stored";
    return told;
  }
  if (known) return told;
  const ProcessId process = made.sent_to();
  told.why = process.is_nil()
                 ? "what makes it is on its way"
                 : fmt::format("what makes it was sent to process {}, which is given up",
                               process.to_string());
  return told;
}

Explanations Testimony::about_all(const std::vector<ObjectId>& objects) const {
  Explanations told;
  told.items.reserve(objects.size());
  for (const ObjectId id : objects) told.items.push_back(about(id));
  return told;
}

Result<Explanations> Testimony::calls_here(const protocol::ExplainCalls& asked) const {
  if (client_.invocations_ == nullptr) {
    return error(Code::not_found, "this process runs no calls of others");
  }
  return client_.invocations_->explain_calls(asked);
}

// --- Answering

Async<Result<Explanations>> Testimony::explain_objects(protocol::ObjectIds request,
                                                       transport::CallContext) {
  if (request.objects.size() > asked_max) co_return too_many();
  co_return about_all(request.objects);
}

Async<Result<Explanations>> Testimony::explain_calls(protocol::ExplainCalls request,
                                                     transport::CallContext) {
  if (request.tasks.size() > asked_max) co_return too_many();
  co_return calls_here(request);
}

// --- Asking

template <class Request>
Async<Result<Explanations>> Testimony::ask(protocol::ProcessAddress process, Method method,
                                           Request request, Instant deadline) {
  TROUPE_CO_TRY(const auto peer, co_await client_.peer_of(std::move(process), deadline));
  const Duration left = deadline - client_.environment().clock.now();
  co_return co_await transport::call<Explanations>(peer, method, std::move(request), left);
}

Async<Result<Explanations>> Testimony::objects(protocol::ProcessAddress owner,
                                               std::vector<ObjectId> objects, Instant deadline) {
  if (is_self(owner)) co_return about_all(objects);
  protocol::ObjectIds request{std::move(objects)};
  co_return co_await ask(std::move(owner), Method::explain_objects, std::move(request), deadline);
}

Async<Result<Explanations>> Testimony::calls(protocol::ProcessAddress process,
                                             protocol::ExplainCalls asked, Instant deadline) {
  if (is_self(process)) co_return calls_here(asked);
  co_return co_await ask(std::move(process), Method::explain_calls, std::move(asked), deadline);
}

Async<Result<Explanation>> Testimony::head(RawId id, Instant deadline) {
  TROUPE_CO_TRY(const auto peer, co_await client_.head(deadline));
  protocol::Explain request{id};
  const Duration left = deadline - client_.environment().clock.now();
  co_return co_await transport::call<Explanation>(peer, Method::explain, request, left);
}

}  // namespace troupe::client
