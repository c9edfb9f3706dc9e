// Calls that arrive in rings. One that this process can run as it stands goes from the ring into
// the mailbox, and its outcome back into the ring, on whichever threads do that; every other one
// (refs to fetch, a result to store, nothing hosted yet) goes over the loop, and those behind it,
// too.
#pragma once

#include <atomic>
#include <memory>

#include "actor/instance.h"
#include "client/client.h"
#include "protocol/call_record.h"
#include "transport/ring_port.h"

namespace troupe::actor {

class Host;

class RingCalls final : public transport::RingHandler, public CallSink {
 public:
  RingCalls(client::Client& client, Host& host) : client_(client), host_(host) {}

  // From now on calls of this identity go to the instance, which outlives the process's rings.
  void deliver_to(Instance& instance, const Identity& identity);

  void ring_call(const std::shared_ptr<transport::RingChannel>& channel, uint64_t number,
                 BytesView payload) override;
  void ring_cancel(const std::shared_ptr<transport::RingChannel>& channel, uint64_t number,
                   uint8_t how) override;
  void ring_recall(const std::shared_ptr<transport::RingChannel>& channel) override;
  void ring_closed(const std::shared_ptr<transport::RingChannel>& channel) override;
  void finished(const std::shared_ptr<Call>& call, Result<BytesView> outcome) override;

 private:
  using Channel = std::shared_ptr<transport::RingChannel>;
  struct Hosted {
    Instance& instance;
    ActorId actor;
    uint32_t incarnation;
  };
  // One caller's unfinished calls. Only threads that read the rings touch it, but for `on_loop`.
  struct Caller;

  static Caller& caller_of(const Channel& channel);
  // Whether the call can go straight into the mailbox.
  const Hosted* direct(const Caller& caller, const protocol::CallView& call) const;
  void run_on_loop(const Channel& channel, uint64_t number, const protocol::CallView& view);
  Async<void> run(Channel channel, uint64_t number, protocol::Invoke call, Instant deadline,
                  std::shared_ptr<transport::CancelEvent> cancelled, std::shared_ptr<void> on_loop);
  Async<void> reply_from_loop(std::shared_ptr<Call> call, Bytes value);
  void give_up(const std::shared_ptr<Call>& call, uint8_t how);
  Async<void> end_after_grace(std::shared_ptr<Call> call);

  client::Client& client_;
  Host& host_;
  std::unique_ptr<const Hosted> hosted_;
  std::atomic<const Hosted*> ready_ = nullptr;
};

}  // namespace troupe::actor
