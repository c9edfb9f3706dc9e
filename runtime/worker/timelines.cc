#include "worker/timelines.h"

#include <fmt/format.h>

#include "base/log.h"
#include "security/audit.h"

namespace troupe::worker {

using protocol::ProcessTimeline;
using transport::CallContext;
using transport::Message;
using transport::TimelineView;

namespace {

constexpr size_t records_a_message = 4096;

size_t size_of(const ProcessTimeline& timeline) {
  size_t bytes = sizeof timeline + timeline.records.size();
  for (const std::string& name : timeline.names) bytes += sizeof(std::string) + name.size();
  return bytes;
}

}  // namespace

void note(const WorkerOptions& options, const WorkerNote& what) {
  if (options.timeline == nullptr) return;
  Timeline& timeline = options.timeline->timeline();
  TimelineEvent event;
  event.kind = what.kind;
  event.name = timeline.name(what.name);
  event.id = timeline_id(what.id);
  event.start = what.began;
  event.duration = timeline.now() - what.began;
  event.amount = what.amount;
  event.has_failed = what.has_failed;
  timeline.add(event);
}

Timelines::Timelines(transport::Environment environment, Scope& scope, const WorkerOptions& options)
    : environment_(environment), scope_(scope), options_(options) {}

Async<Result<Message>> Timelines::attach(Message message, CallContext call, JobId job) {
  const auto& identity = call.peer->identity();
  if (!identity.local) {
    security::Audit{}.refuse(security::audit_name(identity), "attach_timeline", "not of this node");
    co_return error(Code::denied, "timelines are for processes of this node");
  }
  const protocol::Hello& process = call.peer->remote();
  if (message.descriptors.size() != 1) {
    co_return error(Code::invalid, "one descriptor, of the timeline's memory, must come along");
  }
  if (living_.contains(process.address.process)) {
    co_return error(Code::conflict, "the process has a timeline already");
  }
  if (living_.size() >= options_.timeline_limits.living_max) {
    co_return error(Code::exhausted,
                    fmt::format("{} processes of this node have a timeline, no more are read",
                                options_.timeline_limits.living_max));
  }
  TROUPE_CO_TRY(auto view, TimelineView::open(std::move(message.descriptors[0])));
  Living living;
  living.about.process = process.address;
  living.about.process.node = options_.node;
  living.about.kind = process.kind;
  living.about.pid = identity.pid != 0 ? identity.pid : process.pid;
  living.about.job = job;
  living.view = std::make_shared<const TimelineView>(std::move(view));
  living_.emplace(process.address.process, std::move(living));
  Message done;
  done.body = protocol::encode(protocol::Empty{});
  co_return done;
}

void Timelines::process_gone(ProcessId process) {
  const auto found = living_.find(process);
  if (found == living_.end() || std::exchange(found->second.is_gone, true)) return;
  spawn(scope_, keep(process));
}

Async<void> Timelines::keep(ProcessId process) {
  auto read = [view = living_.at(process).view] { return view->read(); };
  auto copy = co_await run_blocking(environment_, std::move(read));
  ProcessTimeline timeline = std::move(living_.at(process).about);
  living_.erase(process);
  if (!copy) {
    log::warning("timeline_unreadable", {{"process", process}, {"why", copy.error()}});
    co_return;
  }
  timeline.ended = true;
  timeline.names = std::move(copy->names);
  timeline.records = std::move(copy->records);
  timeline.lost = copy->lost;
  ended_bytes_ += size_of(timeline);
  ended_.push_back(std::make_shared<const ProcessTimeline>(std::move(timeline)));
  forget_oldest();
}

void Timelines::forget_oldest() {
  while (ended_.size() > options_.timeline_limits.ended_max ||
         ended_bytes_ > options_.timeline_limits.ended_bytes_max) {
    ended_bytes_ -= size_of(*ended_.front());
    ended_.pop_front();
  }
}

Async<Status> Timelines::send_process(ProcessTimeline about, TimelineCopy copy,
                                      transport::OutgoingStream& out) {
  about.node_name = options_.name;
  about.names = std::move(copy.names);
  about.lost = copy.lost;
  const BytesView records = copy.records;
  size_t sent = 0;
  do {
    const auto part = records.subspan(
        sent, std::min(records_a_message * timeline_record_bytes, records.size() - sent));
    about.records.assign(part.begin(), part.end());
    sent += part.size();
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(about)));
    // The names once, and what was lost.
    about.names.clear();
    about.lost = 0;
  } while (sent < records.size());
  co_return ok();
}

Async<Status> Timelines::send(Message message, const protocol::Hello& self,
                              transport::OutgoingStream& out) {
  TROUPE_CO_TRY(const auto request, protocol::decode<protocol::GetTimelines>(message.body));
  ProcessTimeline own;
  own.process = self.address;
  own.kind = "clock";
  own.pid = self.pid;
  own.node_name = options_.name;
  TimelineEvent clock;
  clock.kind = TimelineKind::clock;
  clock.start = environment_.clock.now();
  append_record(own.records, clock);
  TROUPE_CO_CHECK(co_await out.send(protocol::encode(own)));
  if (options_.timeline != nullptr) {
    own.kind = self.kind;
    auto read = [memory = options_.timeline] { return memory->read(); };
    TROUPE_CO_TRY(auto copy, co_await run_blocking(environment_, std::move(read)));
    TROUPE_CO_CHECK(co_await send_process(own, std::move(copy), out));
  }
  // As they are now: some end meanwhile.
  const auto ended = ended_;
  std::vector<Living> living;
  for (const auto& [process, one] : living_) living.push_back(one);
  const auto is_wanted = [&](const ProcessTimeline& timeline) {
    return request.job.is_nil() || timeline.job == request.job;
  };
  for (const Ended& one : ended) {
    if (!is_wanted(*one)) continue;
    ProcessTimeline about = *one;
    TimelineCopy copy{std::move(about.names), std::move(about.records), about.lost};
    TROUPE_CO_CHECK(co_await send_process(std::move(about), std::move(copy), out));
  }
  for (const Living& one : living) {
    if (!is_wanted(one.about)) continue;
    auto read = [view = one.view] { return view->read(); };
    auto copy = co_await run_blocking(environment_, std::move(read));
    if (!copy) {
      log::warning("timeline_unreadable",
                   {{"process", one.about.process.process}, {"why", copy.error()}});
      continue;
    }
    ProcessTimeline about = one.about;
    about.ended = one.is_gone;
    TROUPE_CO_CHECK(co_await send_process(std::move(about), std::move(*copy), out));
  }
  co_return ok();
}

}  // namespace troupe::worker
