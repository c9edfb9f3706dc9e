// What a troupe-actor process hosts: a task slot, an actor, or any number of light actors of one
// module.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "actor/call_report.h"
#include "actor/checkpoints.h"
#include "actor/cluster_services.h"
#include "actor/crew.h"
#include "actor/instance.h"
#include "actor/module.h"
#include "actor/ring_calls.h"
#include "client/client.h"
#include "client/roster.h"

namespace troupe::actor {

struct HostOptions {
  std::vector<std::filesystem::path> plugin_folders;
  std::string module_file;  // Where the module that it is told to load lies; empty: at its name.
  InstanceOptions instance;
  // Has the process killed then, whatever it does, unless it is called again in time with a later
  // instant; of the client's clock. Null: actors that end in isolation are refused.
  std::function<void(Instant)> kill_at;
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
  Error placed(Error failure, const std::string& call, ActorId actor) const;
  // What a call is told that the mailbox took: one that was still there when its actor stopped has
  // no place.
  Error failed(Error failure, const Call& call, ActorId actor) const;
  // What a call is told that the mailbox did not take.
  Error refusal(Error failure, const std::string& call, ActorId actor) const;
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
  protocol::Explanations explain_calls(const protocol::ExplainCalls& asked) override;
  std::vector<TaskId> calls_of(std::span<client::BlockedWait* const> waits) override;

 private:
  struct Hosted {
    Identity identity;
    std::string class_name;
    std::unique_ptr<Instance> instance;
    bool out_of_order = false;
    bool ready = false;  // It was created, and takes calls.
    bool ending = false;
  };
  using HostedPointer = std::shared_ptr<Hosted>;
  using CallerAndActor = std::pair<ProcessId, ActorId>;
  // A call on its way to its mailbox.
  struct Arriving {
    TaskId task;
    CallerAndActor caller;
    std::string label;
    std::vector<client::ObjectName> arguments;  // Those that are refs.
    bool ordered = false;  // It goes in after those of its caller that came before it.
    Instant since;
    Instant deadline;
  };
  // What came of light actors, until it was told.
  struct Outcomes {
    explicit Outcomes(const Executor& loop) : changed(loop) {}
    std::vector<protocol::StartedActor> told_next;
    size_t left = 0;
    Event changed;
  };

  // Only the worker that started this process says what it hosts and when it ends.
  Status check_worker(const transport::CallContext& context) const;
  Async<Result<protocol::ProcessStarted>> assign_actor(protocol::AssignActor request,
                                                       transport::CallContext context);
  Async<Result<protocol::ProcessStarted>> assign_slot(protocol::AssignSlot request,
                                                      transport::CallContext context);
  Async<Result<protocol::Empty>> stay_until(protocol::StayUntil request,
                                            transport::CallContext context);
  Async<Result<protocol::Empty>> stop_process(protocol::StopProcess request,
                                              transport::CallContext context);
  // A stream of ActorsStarted.
  Async<Status> assign_actors(transport::Message message, transport::CallContext context,
                              transport::OutgoingStream& out);
  Async<Result<protocol::Empty>> end_actors(protocol::EndActors request,
                                            transport::CallContext context);
  // The one actor or slot that this process is for.
  Async<Result<protocol::ProcessStarted>> host_only(protocol::AssignActor assignment,
                                                    std::vector<client::ObjectBytes> arguments);
  Async<Status> load(std::string module);
  // Makes the instance and waits until it was created.
  Async<Status> create(HostedPointer hosted, protocol::AssignActor assignment,
                       std::vector<client::ObjectBytes> arguments, Crew* crew);
  Async<void> start_light(protocol::AssignActor request, std::shared_ptr<Outcomes> outcomes);
  Async<Status> create_light(protocol::AssignActor request);
  Async<Status> end_light(protocol::EndActor request);
  void forget(const HostedPointer& hosted);
  // Asks all to end; false if one does not within the grace.
  Async<bool> end_all(Duration grace, bool save);
  // And its states have arrived. False: not in time.
  Async<bool> wait_ended(HostedPointer hosted, Instant deadline);
  Async<void> end_one(protocol::EndActor request, std::shared_ptr<Status> failed,
                      std::shared_ptr<void> until_ended);
  protocol::ProcessStarted started() const;
  Identity identity_of(const protocol::ActorSpec& spec, uint32_t incarnation) const;
  // Null: this process does not host it, or not yet.
  HostedPointer find(ActorId actor) const;
  Origin origin_of(const transport::CallContext& context) const;
  Async<void> watch_only();
  void gauges_changed(ActorId actor);
  Async<void> report_gauges();
  Async<void> outlives_cancel(std::shared_ptr<transport::CancelEvent> cancelled);
  // Until its items are sent, or nobody takes them.
  Async<Status> send_items(std::shared_ptr<Call> call, ProcessId receiver,
                           transport::OutgoingStream& out);
  Async<Result<Bytes>> stream_outcome(std::shared_ptr<Call> call, ProcessId receiver,
                                      transport::OutgoingStream& out);
  // Of a task that has begun: warns it, and ends the process of one that does not heed that.
  Async<void> keep_time_limit(std::shared_ptr<Call> call);
  // Resolves the arguments and puts the call into the mailbox, in the order of arrival of each
  // caller.
  Async<Result<std::vector<client::ObjectBytes>>> resolve(std::vector<protocol::Argument> arguments,
                                                          Duration budget);
  Async<Result<std::shared_ptr<Call>>> enqueue(protocol::Invoke call, Origin origin, bool streams);
  // What is hosted, as it is reported; null: it is not there (yet).
  static std::shared_ptr<Instance> instance_of(const HostedPointer& hosted);
  static std::optional<Reported> reported(const HostedPointer& hosted);
  std::vector<Reported> all_reported() const;
  void report_arriving(const std::unordered_set<TaskId>& wanted, CallReports& out) const;
  protocol::Explanations explain_actor(ActorId actor) const;

  client::Client& client_;
  const HostOptions options_;
  Groups groups_;
  ClusterServices services_;
  Checkpoints checkpoints_;
  Crew crew_;
  std::map<ActorId, HostedPointer> hosted_;
  bool is_shared_ = false;  // By light actors.
  std::optional<Module> module_;
  std::string module_name_;
  RingCalls ring_calls_;
  bool assigning_ = false;
  // Of each caller of an actor: set once its latest call was enqueued.
  std::map<CallerAndActor, std::shared_ptr<Event>> last_arrival_;
  client::Roster<Arriving> arriving_;
  std::set<ActorId> gauges_changed_;
  bool reporting_ = false;
  Event done_;
  bool hurries_ = false;  // Its code was warned and runs on.
  int exit_status_ = 0;
};

}  // namespace troupe::actor
