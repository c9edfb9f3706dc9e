// What a troupe-actor process hosts: one instance of one module's class, an actor or a task slot.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "actor/cluster_services.h"
#include "actor/instance.h"
#include "actor/module.h"
#include "actor/ring_calls.h"
#include "client/client.h"

namespace troupe::actor {

struct HostOptions {
  std::vector<std::filesystem::path> plugin_folders;
  InstanceOptions instance;
};

// Belongs to the client's loop. Make it before the client starts.
class Host final : public client::InvocationHandler {
 public:
  Host(client::Client& client, HostOptions options);

  // Set when the process should end: it was told to stop, or its instance ended by itself.
  Event& done() { return done_; }
  // 0 after an orderly end.
  int exit_status() const { return exit_status_; }
  // Ends the instance; waits for its thread.
  Async<void> stop();

  // Where a call comes from.
  struct Origin {
    ProcessId caller;
    Instant deadline = Instant::max();
    std::shared_ptr<transport::CancelEvent> cancelled;  // Set when the caller gives up.
    std::shared_ptr<void> until_enqueued;  // Let go of once the call is in the mailbox, or refused.
  };
  Async<Result<protocol::InvokeReply>> run(protocol::Invoke call, Origin origin);
  // Says where it failed. Only a call that was refused before it ran has no place: so its caller
  // knows that it may be sent again. Thread-safe once something is hosted.
  Error placed(Error failure, const std::string& call) const;
  // What a call is told that the mailbox did not take.
  Error refusal(Error failure, const std::string& call) const;
  // What few calls have. Thread-safe.
  void add_extras(CallRequest& request, const protocol::CallExtras& extras);
  // The reply of a call that was finished with `value`.
  Async<Result<protocol::InvokeReply>> make_reply(std::shared_ptr<Call> call, Bytes value,
                                                  ObjectId result, ProcessId caller);
  // The process ends: once what was answered is sent, or this instant. What it was sent and has not
  // begun runs elsewhere.
  void end_soon();
  [[noreturn]] void end_now();
  // A task that was cancelled has a moment to notice by itself.
  static constexpr Duration cancel_grace = std::chrono::milliseconds(200);

  Async<Result<protocol::InvokeReply>> invoke(protocol::Invoke call,
                                              transport::CallContext context) override;
  Async<Status> invoke_stream(protocol::Invoke call, transport::CallContext context,
                              transport::OutgoingStream& out) override;

 private:
  // Only the worker that started this process says what it hosts and when it ends.
  Status check_worker(const transport::CallContext& context) const;
  Async<Result<protocol::ProcessStarted>> assign_actor(protocol::AssignActor request,
                                                       transport::CallContext context);
  Async<Result<protocol::ProcessStarted>> assign_slot(protocol::AssignSlot request,
                                                      transport::CallContext context);
  Async<Result<protocol::Empty>> stop_process(protocol::StopProcess request,
                                              transport::CallContext context);
  Async<Result<protocol::ProcessStarted>> host(std::string module, std::string class_name,
                                               Identity identity, uint64_t signature,
                                               std::vector<client::ObjectBytes> arguments,
                                               uint32_t concurrency);
  static Origin origin_of(const transport::CallContext& context);
  Async<void> watch_instance();
  Async<void> report_gauges();
  Async<void> outlives_cancel(std::shared_ptr<transport::CancelEvent> cancelled);
  // Until its items are sent, or nobody takes them.
  static Async<Status> send_items(std::shared_ptr<Call> call, transport::OutgoingStream& out);
  static Async<Result<Bytes>> stream_outcome(std::shared_ptr<Call> call,
                                             transport::OutgoingStream& out);
  // Of a task that has begun: warns it, and ends the process of one that does not heed that.
  Async<void> keep_time_limit(std::shared_ptr<Call> call);
  // Resolves the arguments and puts the call into the mailbox, in the order of arrival of each
  // caller.
  Async<Result<std::vector<client::ObjectBytes>>> resolve(std::vector<protocol::Argument> arguments,
                                                          Duration budget);
  Async<Result<std::shared_ptr<Call>>> enqueue(protocol::Invoke call, Origin origin, bool streams);

  client::Client& client_;
  const HostOptions options_;
  Groups groups_;
  ClusterServices services_;
  std::optional<Identity> identity_;
  std::unique_ptr<Instance> instance_;
  RingCalls ring_calls_;
  bool assigning_ = false;
  std::map<ProcessId, std::shared_ptr<Event>> last_arrival_;  // Of each caller: set once enqueued.
  Event done_;
  bool hurries_ = false;  // Its code was warned and runs on.
  int exit_status_ = 0;
};

}  // namespace troupe::actor
