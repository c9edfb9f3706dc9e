// What this process knows of waits, for those who ask, and the way to ask others.
#pragma once

#include "client/explainer.h"
#include "client/object.h"

namespace troupe::client {

class Client;

// On the loop.
class Testimony final : public Witnesses {
 public:
  // Answers explain_objects and explain_calls from now on.
  explicit Testimony(Client& client);

  protocol::Explanation about(ObjectId object) const;

  // Of this process without a message.
  Async<Result<protocol::Explanations>> objects(protocol::ProcessAddress owner,
                                                std::vector<ObjectId> objects,
                                                Instant deadline) override;
  Async<Result<protocol::Explanations>> calls(protocol::ProcessAddress process,
                                              protocol::ExplainCalls asked,
                                              Instant deadline) override;
  Async<Result<protocol::Explanation>> head(RawId id, Instant deadline) override;

 private:
  Async<Result<protocol::Explanations>> explain_objects(protocol::ObjectIds request,
                                                        transport::CallContext context);
  Async<Result<protocol::Explanations>> explain_calls(protocol::ExplainCalls request,
                                                      transport::CallContext context);
  protocol::Explanations about_all(const std::vector<ObjectId>& objects) const;
  Result<protocol::Explanations> calls_here(const protocol::ExplainCalls& asked) const;
  template <class Request>
  Async<Result<protocol::Explanations>> ask(protocol::ProcessAddress process, Method method,
                                            Request request, Instant deadline);
  bool is_self(const protocol::ProcessAddress& process) const;

  Client& client_;
};

// The explanation of what is at a process now.
protocol::WaitsFor call_at(const Object& result, const protocol::ProcessAddress& process);
// What is left until then, in the form of Explanation::deadline_us.
uint64_t left_us(Instant now, Instant deadline);

}  // namespace troupe::client
