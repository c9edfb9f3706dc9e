// Calls that arrive in rings. One that this process can run as it stands goes from the ring into
// the mailbox, and its outcome back into the ring, on whichever threads do that; every other one
// (refs to fetch, a result to store, nothing hosted yet) goes over the loop, and those behind it,
// too.
#pragma once

#include <atomic>
#include <memory>
#include <unordered_map>

#include "actor/instance.h"
#include "client/client.h"
#include "protocol/call_record.h"
#include "transport/adaptive_mutex.h"
#include "transport/ring_port.h"

namespace troupe::actor {

class Host;

class RingCalls final : public transport::CallHandler, public CallSink {
 public:
  RingCalls(client::Client& client, Host& host) : client_(client), host_(host) {}

  struct Hosted {
    Instance* instance = nullptr;
    ActorId actor;
    uint32_t incarnation = 0;
    bool out_of_order = false;
  };
  // From now on calls of this identity go to the instance. The only one of the process outlives its
  // rings; one of many lives until it is removed.
  void deliver_to(const Hosted& hosted, bool is_only);
  void remove(ActorId actor);

  void take_call(const std::shared_ptr<transport::CallChannel>& channel, uint64_t number,
                 BytesView payload) override;
  void cancel_call(const std::shared_ptr<transport::CallChannel>& channel, uint64_t number,
                   uint8_t how) override;
  void recall_calls(const std::shared_ptr<transport::CallChannel>& channel) override;
  void channel_closed(const std::shared_ptr<transport::CallChannel>& channel) override;
  void finished(const std::shared_ptr<Call>& call, Result<BytesView> outcome) override;

 private:
  using Channel = std::shared_ptr<transport::CallChannel>;
  // One caller's unfinished calls. Only threads that read the rings touch it, but for `on_loop`.
  struct Caller;

  static Caller& caller_of(const Channel& channel);
  // Whether the call can go straight into the mailbox of `hosted`, which may be null.
  static bool is_direct(const Hosted* hosted, const Caller& caller, const protocol::CallView& call);
  void run_on_loop(const Channel& channel, uint64_t number, const protocol::CallView& view);
  Async<void> run(Channel channel, uint64_t number, protocol::Invoke call, Instant deadline,
                  std::shared_ptr<transport::CancelEvent> cancelled, std::shared_ptr<void> on_loop);
  Async<void> reply_from_loop(std::shared_ptr<Call> call, Bytes value);
  void give_up(const std::shared_ptr<Call>& call, uint8_t how);
  Async<void> end_after_grace(std::shared_ptr<Call> call);

  client::Client& client_;
  Host& host_;
  std::unique_ptr<const Hosted> only_;
  std::atomic<const Hosted*> ready_ = nullptr;  // The only one.
  transport::AdaptiveMutex many_mutex_;         // Held while a call is put into a mailbox of them.
  std::unordered_map<ActorId, Hosted> many_;
};

}  // namespace troupe::actor
