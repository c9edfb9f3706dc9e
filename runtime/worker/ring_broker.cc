#include "worker/ring_broker.h"

#include <fcntl.h>
#include <fmt/format.h>

#include "base/log.h"
#include "security/audit.h"

namespace troupe::worker {

using transport::CallContext;
using transport::Message;
using transport::Method;
using transport::SharedPage;

namespace {

constexpr size_t ring_bytes = 256 << 10;
constexpr Duration accept_budget = std::chrono::seconds(5);

Result<FileDescriptor> copy_of(const FileDescriptor& file) {
  FileDescriptor copy{::fcntl(file.get(), F_DUPFD_CLOEXEC, 0)};
  if (!copy.is_open()) return error(Code::exhausted, "the worker has no file descriptors left");
  return copy;
}

Status check_local(const CallContext& call, const char* what) {
  if (call.peer->identity().local) return ok();
  security::Audit{}.refuse(security::audit_name(call.peer->identity()), what, "not of this node");
  return error(Code::denied, "rings are for processes of this node");
}

}  // namespace

Async<Result<Message>> RingBroker::attach(Message message, CallContext call) {
  TROUPE_CO_CHECK(check_local(call, "attach_rings"));
  const ProcessId process = call.peer->remote().address.process;
  if (message.descriptors.size() != 1) {
    co_return error(Code::invalid, "one descriptor, of the doorbell, must come along");
  }
  if (members_.contains(process)) co_return error(Code::conflict, "the process has rings already");
  TROUPE_CO_TRY(auto doorbell, SharedPage::open(std::move(message.descriptors[0])));
  if (!node_) {
    TROUPE_CO_TRY(auto page, SharedPage::create("troupe-node"));
    node_.emplace(std::move(page));
  }
  TROUPE_CO_TRY(auto copy, copy_of(node_->file()));
  members_[process] = std::make_unique<Member>(call.peer, std::move(doorbell));
  Message answer;
  answer.descriptors.push_back(std::move(copy));
  co_return answer;
}

std::optional<uint32_t> RingBroker::free_index(Member& member) const {
  // In turn, so that a number rests before it is used again.
  for (uint32_t i = 0; i < transport::rings_max; ++i) {
    const uint32_t index = (member.next_index + i) % transport::rings_max;
    if (member.ends[index]) continue;
    member.next_index = index + 1;
    return index;
  }
  return std::nullopt;
}

void RingBroker::release(ProcessId process, uint32_t index,
                         const std::shared_ptr<SharedPage>& control) {
  const auto found = members_.find(process);
  if (found == members_.end()) return;
  auto& end = found->second->ends[index];
  if (end && end->control == control) end.reset();  // Not another pair's that came meanwhile.
}

Async<Result<Message>> RingBroker::open(Message message, CallContext call) {
  TROUPE_CO_CHECK(check_local(call, "open_ring"));
  TROUPE_CO_TRY(const auto request, protocol::decode<protocol::OpenRing>(message.body));
  const ProcessId asking = call.peer->remote().address.process;
  const auto mine = members_.find(asking);
  const auto theirs = members_.find(request.process);
  if (mine == members_.end() || theirs == members_.end() || asking == request.process) {
    co_return error(Code::not_found, fmt::format("process {} of this node has no rings",
                                                 request.process.short_string()));
  }
  TROUPE_CO_TRY(auto file, transport::create_ring_file(ring_bytes));
  TROUPE_CO_TRY(auto mapped, copy_of(file));
  TROUPE_CO_TRY(auto page, SharedPage::open(std::move(mapped)));
  page.close_file();
  const auto control = std::make_shared<SharedPage>(std::move(page));
  TROUPE_CO_TRY(auto file_copy, copy_of(file));
  TROUPE_CO_TRY(auto my_doorbell, copy_of(mine->second->doorbell.memory()->file()));
  TROUPE_CO_TRY(auto their_doorbell, copy_of(theirs->second->doorbell.memory()->file()));
  const auto my_index = free_index(*mine->second);
  const auto their_index = free_index(*theirs->second);
  if (!my_index || !their_index) {
    co_return error(Code::exhausted,
                    fmt::format("a process has {} rings at most", transport::rings_max));
  }
  mine->second->ends[*my_index] = End{request.process, control};
  theirs->second->ends[*their_index] = End{asking, control};
  // Given back unless both ends are open.
  struct Guard {
    RingBroker& broker;
    ProcessId mine, theirs;
    uint32_t my_index, their_index;
    const std::shared_ptr<SharedPage>& control;
    bool kept = false;
    ~Guard() {
      if (kept) return;
      broker.release(mine, my_index, control);
      broker.release(theirs, their_index, control);
    }
  } guard{*this, asking, request.process, *my_index, *their_index, control};
  const auto& caller = call.peer->identity();
  protocol::RingOffer offer{asking, caller.name, caller.pid, 1, *their_index, *my_index};
  Message told{protocol::encode(offer), {}};
  told.descriptors.push_back(std::move(file_copy));
  told.descriptors.push_back(std::move(my_doorbell));
  const auto other = theirs->second->peer;
  auto accepted = co_await other->call(Method::accept_ring, std::move(told), accept_budget);
  if (!accepted) co_return std::move(accepted).error().context("open a ring");
  const bool both = members_.contains(asking) && members_.contains(request.process);
  if (!both) co_return error(Code::unavailable, "the process ended while a ring was opened");
  guard.kept = true;
  const auto& identity = other->identity();
  protocol::RingOffer reply{request.process, identity.name, identity.pid, 0,
                            *my_index,       *their_index};
  Message answer{protocol::encode(reply), {}};
  answer.descriptors.push_back(std::move(file));
  answer.descriptors.push_back(std::move(their_doorbell));
  co_return answer;
}

void RingBroker::process_gone(ProcessId process) {
  const auto found = members_.find(process);
  if (found == members_.end()) return;
  const auto gone = std::move(found->second);
  members_.erase(found);
  // What it counted as awake sleeps for good.
  const auto awake = static_cast<int32_t>(gone->doorbell.page().awake.exchange(0));
  constexpr int32_t threads_max = 4096;  // It may have written anything.
  if (awake > 0 && awake <= threads_max) node_->as<transport::NodePage>().awake.fetch_sub(awake);
  for (auto& end : gone->ends) {
    if (!end) continue;
    end->control->as<transport::RingPairControl>().closed.exchange(1);
    const auto peer = members_.find(end->peer);
    if (peer == members_.end()) continue;
    for (uint32_t i = 0; i < transport::rings_max; ++i) {
      auto& other = peer->second->ends[i];
      if (!other || other->control != end->control) continue;
      other.reset();
      peer->second->doorbell.ring_for_dead(i);
    }
  }
}

}  // namespace troupe::worker
