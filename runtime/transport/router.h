// A Service made of one function a method.
#pragma once

#include <functional>
#include <string>
#include <unordered_map>

#include "transport/peer.h"

namespace troupe::transport {

// Handlers are coroutine members of a component that outlives the router.
class Router : public Service {
 public:
  using Handler = std::function<Async<Result<Message>>(Message, CallContext)>;
  using StreamHandler = std::function<Async<Status>(Message, CallContext, OutgoingStream&)>;

  void on_message(Method method, Handler handler) { handlers_[method] = std::move(handler); }
  void on_stream(Method method, StreamHandler handler) { streams_[method] = std::move(handler); }

  // router.on(Method::get_actor, *this, &Head::get_actor), where
  // Async<Result<Reply>> Head::get_actor(Request, CallContext).
  template <class Component, class Request, class Reply>
  void on(Method method, Component& component,
          Async<Result<Reply>> (Component::*member)(Request, CallContext)) {
    on_message(method, [&component, member](Message message, CallContext context) {
      return adapt<Component, Request, Reply>(component, member, std::move(message),
                                              std::move(context));
    });
  }

  Async<Result<Message>> handle(Method method, Message request, CallContext context) override {
    const auto found = handlers_.find(method);
    if (found == handlers_.end()) return refuse(method);
    return found->second(std::move(request), std::move(context));
  }
  Async<Status> handle_stream(Method method, Message request, CallContext context,
                              OutgoingStream& out) override {
    const auto found = streams_.find(method);
    if (found == streams_.end()) return refuse_stream(method);
    return found->second(std::move(request), std::move(context), out);
  }

 private:
  template <class Component, class Request, class Reply>
  static Async<Result<Message>> adapt(Component& component,
                                      Async<Result<Reply>> (Component::*member)(Request,
                                                                                CallContext),
                                      Message message, CallContext context) {
    auto request = protocol::decode<Request>(message.body);
    if (!request) co_return std::move(request).error();
    auto reply = co_await (component.*member)(std::move(*request), std::move(context));
    if (!reply) co_return std::move(reply).error();
    Message answer{protocol::encode(*reply), {}};
    co_return answer;
  }
  static Async<Result<Message>> refuse(Method method) {
    co_return error(Code::unimplemented, "this process does not answer " + method_name(method));
  }
  static Async<Status> refuse_stream(Method method) {
    co_return error(Code::unimplemented, "this process does not stream " + method_name(method));
  }

  std::unordered_map<Method, Handler> handlers_;
  std::unordered_map<Method, StreamHandler> streams_;
};

}  // namespace troupe::transport
