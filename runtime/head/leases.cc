#include "head/leases.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/log.h"
#include "head/waiting.h"

namespace troupe::head {

namespace {

constexpr uint32_t slots_max = 4096;
constexpr size_t ended_max = 16384;
constexpr size_t path_bytes_max = 4096;
constexpr uint32_t no_slot = UINT32_MAX;  // It runs, but the scheduler had no room to account it.
constexpr Duration press_period = std::chrono::milliseconds(500);
constexpr Duration stop_budget = std::chrono::hours(1);  // Or until the node is dead.

std::string class_of(const protocol::RequestLease& request) {
  std::string text = request.module;
  for (const auto& amount : request.demand) {
    text += fmt::format("|{}={}", amount.name, amount.milli);
  }
  const protocol::PlacementSpec& placement = request.placement;
  if (!placement.group.is_nil()) {
    text += fmt::format("|{}/{}", placement.group.to_string(), placement.bundle);
  }
  return text;
}

}  // namespace

Leases::Leases(transport::Environment environment, const HeadOptions& options, Scope& scope,
               Membership& membership, Placement& placement, const Groups& groups)
    : environment_(environment),
      options_(options),
      scope_(scope),
      membership_(membership),
      placement_(placement),
      groups_(groups),
      started_(environment.clock.now()) {}

Leases::Lease* Leases::look_up(LeaseId id) {
  const auto found = leases_.find(id);
  return found == leases_.end() ? nullptr : &found->second;
}

bool Leases::runs(const Lease& lease) {
  for (const auto& [node, share] : lease.shares) {
    for (const Held& held : share.held) {
      if (!held.address.process.is_nil()) return true;
    }
  }
  return false;
}

bool Leases::starts(const Lease& lease) {
  return std::any_of(lease.shares.begin(), lease.shares.end(),
                     [](const auto& entry) { return entry.second.starting; });
}

bool Leases::is_leaving(const Lease& lease, NodeId node, ProcessId process) {
  const auto there = lease.leaving.find(node);
  return there != lease.leaving.end() && there->second.contains(process);
}

protocol::LeaseGranted Leases::grant_of(const Lease& lease) const {
  protocol::LeaseGranted granted;
  granted.lease = lease.request.lease;
  granted.quantum_us = static_cast<uint64_t>(options_.lease_quantum / std::chrono::microseconds(1));
  for (const auto& [node, share] : lease.shares) {
    for (const Held& held : share.held) {
      if (!held.address.process.is_nil()) granted.slots.push_back({held.address});
    }
  }
  return granted;
}

Async<Result<protocol::LeaseGranted>> Leases::request(protocol::RequestLease request,
                                                      transport::CallContext context) {
  context.deadline = answer_by(environment_.clock, context.deadline);
  const LeaseId id = request.lease;
  if (id.is_nil()) co_return error(Code::invalid, "a lease needs an id");
  if (request.module.empty() || request.module.size() > path_bytes_max) {
    co_return error(Code::invalid, "a lease needs a module, with a path of at most 4096 bytes");
  }
  if (request.slots == 0 || request.slots > slots_max) {
    co_return error(Code::invalid, fmt::format("a lease has 1 to {} slots", slots_max));
  }
  TROUPE_CO_TRY(auto demand, to_resources(request.demand));
  TROUPE_CO_CHECK(scheduler::check_demand(demand));
  TROUPE_CO_TRY(auto affinity, groups_.affinity_of(request.placement));
  if (look_up(id) == nullptr) {
    // Its slots may still be stopping, under the same numbers.
    if (ended_.contains(id)) {
      co_return error(Code::exhausted, "the lease ended: ask again under another id");
    }
    if (leases_.size() >= options_.leases_max) {
      co_return error(Code::exhausted, fmt::format("the cluster has {} leases", leases_.size()));
    }
    scheduler::LeaseRequested wanted;
    wanted.lease = id;
    wanted.job = request.job;
    wanted.scheduling_class = class_of(request);
    wanted.demand = std::move(demand);
    wanted.slots = request.slots;
    wanted.priority = request.priority;
    wanted.affinity = std::move(affinity);
    Lease& lease = leases_[id];
    lease.request = std::move(request);
    lease.changed = std::make_shared<Event>(environment_.loop);
    placement_.apply(wanted);
    if (look_up(id) != nullptr && look_up(id)->shares.empty()) spawn(scope_, press_holders(id));
  }
  look_up(id)->holder = context.peer;
  ++look_up(id)->waiters;
  const Status waited = co_await wait(id, std::move(context));
  Lease* lease = look_up(id);
  if (lease == nullptr) {
    co_return waited ? error(Code::cancelled, "the lease ended") : waited.error();
  }
  --lease->waiters;
  if (waited || (lease->delivered && runs(*lease))) {
    // What is still to come is not waited for: the client asks again for what it still needs.
    lease->delivered = true;
    for (auto& [node, share] : lease->shares) {
      for (Held& held : share.held) held.granted = !held.address.process.is_nil();
    }
    keep_for_a_quantum(*lease);
    protocol::LeaseGranted granted = grant_of(*lease);
    placement_.apply(scheduler::Cancelled{id});
    co_return granted;
  }
  if (lease->waiters == 0 && !lease->delivered) {
    // Out of time or cut off, its client asks again under this id: it keeps its place in line.
    const Code code = waited.error().code();
    if (code == Code::deadline_exceeded || code == Code::cancelled) {
      keep_for_a_quantum(*lease);
    } else {
      finish(id, waited.error());
    }
  }
  co_return waited.error();
}

void Leases::keep_for_a_quantum(Lease& lease) {
  lease.expires_at = environment_.clock.now() + options_.lease_quantum;
  if (!std::exchange(lease.expires, true)) spawn(scope_, expire(lease.request.lease));
}

// Until at least one slot runs and none is still starting.
Async<Status> Leases::wait(LeaseId id, transport::CallContext context) {
  const auto end = look_up(id)->end;
  for (;;) {
    const Lease* lease = look_up(id);
    if (lease == nullptr) co_return *end;
    if (!starts(*lease)) {
      if (runs(*lease)) co_return ok();
      if (lease->failure) co_return *lease->failure;
    }
    const auto changed = lease->changed;
    const Status waited = co_await wait_for_caller(environment_.clock, changed, context);
    if (waited) continue;
    lease = look_up(id);
    if (lease != nullptr && runs(*lease) && waited.error().code() == Code::deadline_exceeded) {
      co_return ok();
    }
    co_return error(waited.error().code(), fmt::format("no slot yet: {}", placement_.why(id)));
  }
}

Async<void> Leases::press_holders(LeaseId id) {
  for (;;) {
    const Lease* waiting = look_up(id);
    if (waiting == nullptr || !waiting->shares.empty() || waiting->delivered) co_return;
    const protocol::YieldSlots wanted{waiting->request.demand, waiting->request.priority};
    // Each once, in an order that does not depend on where they lie in memory.
    std::vector<std::shared_ptr<transport::Peer>> holders;
    for (const auto& [other, lease] : leases_) {
      if (lease.shares.empty()) continue;
      auto holder = lease.holder.lock();
      if (!holder || !holder->is_open() || std::ranges::count(holders, holder) > 0) continue;
      holders.push_back(std::move(holder));
    }
    for (const auto& holder : holders) spawn(scope_, press(holder, wanted));
    co_await sleep_for(environment_.clock, press_period);
  }
}

Async<void> Leases::press(std::shared_ptr<transport::Peer> holder, protocol::YieldSlots wanted) {
  auto told = co_await transport::call<protocol::Empty>(holder, transport::Method::yield_slots,
                                                        std::move(wanted), press_period);
  if (!told) log::debug("holder_not_told", {{"why", told.error().message()}});
}

void Leases::lease_granted(const scheduler::LeaseGranted& granted) {
  Lease* lease = look_up(granted.lease);
  if (lease != nullptr) lease->next_slot = granted.slots.back().slot + 1;
  if (lease == nullptr || lease->delivered) {
    scheduler::LeaseReturned back{granted.lease, {}};
    for (const scheduler::Slot& slot : granted.slots) back.slots.push_back(slot.slot);
    placement_.apply(back);
    return;
  }
  Share& share = lease->shares[granted.node];
  for (const scheduler::Slot& slot : granted.slots) {
    share.held.push_back({.slot = slot.slot,
                          .devices = slot.devices,
                          .bundle = granted.bundle ? *granted.bundle + 1 : 0});
  }
  if (!std::exchange(share.starting, true)) {
    spawn(scope_, start_slots(granted.lease, granted.node));
  }
}

protocol::StartSlots Leases::start_request(const Lease& lease, const Share& share) const {
  protocol::StartSlots request;
  request.epoch = membership_.epoch();
  request.lease = lease.request.lease;
  request.job = lease.request.job;
  request.module = lease.request.module;
  request.demand = lease.request.demand;
  for (const Held& held : share.held) {
    // One that runs may have another number there, from the head before.
    if (!held.address.process.is_nil()) continue;
    protocol::SlotToStart slot{held.slot, {}, held.bundle};
    for (const auto& part : held.devices) slot.devices.push_back(part.device);
    request.devices.insert(request.devices.end(), slot.devices.begin(), slot.devices.end());
    request.slots.push_back(std::move(slot));
  }
  request.count = static_cast<uint32_t>(request.slots.size());
  request.placement = groups_.for_worker(lease.request.placement, lease.request.placement.bundle);
  return request;
}

Async<void> Leases::start_slots(LeaseId id, NodeId node) {
  const auto wanted = [this, id, node] {
    const Lease* lease = look_up(id);
    return lease != nullptr && lease->shares.contains(node);
  };
  for (;;) {
    if (!wanted()) co_return;
    if (!look_up(id)->request.placement.group.is_nil()) {
      const Status durable = co_await groups_.settled();
      if (!durable || !wanted()) co_return;  // Without its disk the head ends.
    }
    const Lease* begun = look_up(id);
    const size_t known_of = begun->shares.at(node).held.size();
    protocol::StartSlots request = start_request(*begun, begun->shares.at(node));
    auto started = co_await membership_.call<protocol::SlotsStarted>(
        node, transport::Method::start_slots, request, options_.slot_start_budget, wanted);
    if (!wanted()) co_return;
    Lease& lease = *look_up(id);
    Share& share = lease.shares.at(node);
    if (!started) {
      log::warning("slots_not_started", {{"lease", id}, {"node", node}, {"why", started.error()}});
      lease.failure = std::move(started).error();
      const auto changed = lease.changed;
      // Some may run or still be starting there: what they hold is free once the worker says so.
      std::vector<uint32_t> slots;
      for (const Held& held : share.held) slots.push_back(held.slot);
      lease.shares.erase(node);
      spawn(scope_, stop_slots(id, node, {}, std::move(slots)));
      changed->pulse();
      co_return;
    }
    // Each process that no slot has yet takes its slot, or the next without one if the worker is
    // of a version that does not tell.
    std::vector<ProcessId>
        unwanted;  // Of a request that another head, or life of the node, forgot.
    for (const protocol::ProcessStarted& process : started->processes) {
      if (is_leaving(lease, node, process.address.process)) continue;
      const bool known = std::any_of(share.held.begin(), share.held.end(), [&](const Held& held) {
        return held.address.process == process.address.process;
      });
      if (known) continue;
      const auto free = std::find_if(share.held.begin(), share.held.end(), [&](const Held& held) {
        const bool meant = process.slot == 0 || process.slot == held.slot + 1;
        return held.address.process.is_nil() && meant;
      });
      if (free == share.held.end()) {
        unwanted.push_back(process.address.process);
        continue;
      }
      free->address = process.address;
    }
    if (!unwanted.empty()) stop_some(lease, node, std::move(unwanted), {});
    const bool more = share.held.size() > known_of;
    if (more) continue;  // A further grant came meanwhile.
    share.starting = false;
    settle(id, node);
    if (Lease* settled = look_up(id)) settled->changed->pulse();
    co_return;
  }
}

void Leases::settle(LeaseId id, NodeId node) {
  Lease* lease = look_up(id);
  if (lease == nullptr) return;
  const auto found = lease->shares.find(node);
  if (found == lease->shares.end()) return;
  scheduler::LeaseReturned back{id, {}};
  std::vector<ProcessId> late;  // Their client got what there was, and asks anew for more.
  std::vector<uint32_t> late_slots;
  std::erase_if(found->second.held, [&](const Held& held) {
    if (held.address.process.is_nil()) {
      back.slots.push_back(held.slot);
      return true;
    }
    if (!lease->delivered || held.granted) return false;
    late.push_back(held.address.process);
    late_slots.push_back(held.slot);
    return true;
  });
  if (found->second.held.empty()) lease->shares.erase(found);
  if (!late.empty()) stop_some(*lease, node, std::move(late), std::move(late_slots));
  if (!back.slots.empty()) placement_.apply(back);
}

// Its holder sends nothing more there, and gives a slot back when what runs in it has ended.
void Leases::press_to_leave(const Lease& lease, NodeId node) {
  const auto holder = lease.holder.lock();
  if (!holder || !holder->is_open()) return;
  protocol::YieldSlots wanted;
  wanted.node = node;
  spawn(scope_, press(holder, std::move(wanted)));
}

Result<protocol::LeaseGranted> Leases::renew(LeaseId id) {
  Lease* lease = look_up(id);
  if (lease == nullptr) {
    // To give it up now would leave its slots idle until this head gives it up, too.
    if (is_young() && !ended_.contains(id))
      return error(Code::unavailable,
                   fmt::format("the head has just started: a node may still bring lease {}",
                               id.to_string()));
    return error(Code::not_found, fmt::format("lease {} is over", id.to_string()));
  }
  keep_for_a_quantum(*lease);
  for (const auto& [node, share] : lease->shares) {
    if (membership_.is_draining(node)) press_to_leave(*lease, node);  // It may not have heard.
  }
  return grant_of(*lease);
}

void Leases::give_back(const protocol::ReturnLease& request) {
  Lease* lease = look_up(request.lease);
  if (lease == nullptr) return;
  if (request.processes.empty()) {
    return finish(request.lease, error(Code::cancelled, "the lease was returned"));
  }
  for (auto& [node, share] : lease->shares) {
    std::vector<ProcessId> processes;
    std::vector<uint32_t> slots;
    std::erase_if(share.held, [&](const Held& held) {
      const bool returned = std::find(request.processes.begin(), request.processes.end(),
                                      held.address.process) != request.processes.end();
      if (!returned || held.address.process.is_nil()) return false;
      processes.push_back(held.address.process);
      slots.push_back(held.slot);
      return true;
    });
    if (!processes.empty()) stop_some(*lease, node, std::move(processes), std::move(slots));
  }
  if (!runs(*lease) && !starts(*lease) && lease->waiters == 0) {
    forget(request.lease);  // The scheduler hears of it when the processes have stopped.
  }
}

void Leases::slot_waits(const protocol::SlotWaits& news, const protocol::ProcessAddress& teller) {
  Lease* lease = look_up(news.lease);
  if (lease == nullptr) return;
  const auto share = lease->shares.find(teller.node);
  if (share == lease->shares.end()) return;
  for (Held& held : share->second.held) {
    if (held.address.process != teller.process) continue;
    if (news.sequence <= held.wait_sequence) return;  // A later one overtook it.
    held.wait_sequence = news.sequence;
    placement_.apply(scheduler::SlotWaits{news.lease, held.slot, news.waiting});
    return;
  }
}

void Leases::end_job(JobId job) {
  std::vector<LeaseId> ending;
  for (const auto& [id, lease] : leases_) {
    if (lease.request.job == job) ending.push_back(id);
  }
  for (const LeaseId id : ending)
    finish(id, error(Code::cancelled, "the job ended"), Running::ends);
}

void Leases::process_exited(const protocol::ProcessExited& news) {
  drop_process(news.lease, news.node, news.process);
}

void Leases::drop_process(LeaseId id, NodeId node, ProcessId process) {
  Lease* lease = look_up(id);
  if (lease == nullptr || process.is_nil()) return;
  const auto share = lease->shares.find(node);
  if (share == lease->shares.end()) return;
  const auto held = std::find_if(share->second.held.begin(), share->second.held.end(),
                                 [&](const Held& one) { return one.address.process == process; });
  if (held == share->second.held.end()) return;
  const uint32_t slot = held->slot;
  share->second.held.erase(held);
  const bool over = !runs(*lease) && !starts(*lease) && lease->delivered;
  const bool delivered = lease->delivered;
  if (over) forget(id);
  // A client that has its slots asks anew for more; one that waits gets another in its place.
  // Only this slot: others that the client returned may still be stopping.
  if (delivered) {
    placement_.apply(scheduler::LeaseReturned{id, {slot}});
  } else {
    placement_.apply(scheduler::SlotLost{id, slot});
  }
}

void Leases::forget(LeaseId id) {
  leases_.erase(id);
  if (!ended_.insert(id).second) return;
  ended_order_.push_back(id);
  if (ended_order_.size() <= ended_max) return;
  ended_.erase(ended_order_.front());
  ended_order_.pop_front();
}

void Leases::finish(LeaseId id, Error why, Running running) {
  const auto found = leases_.find(id);
  if (found == leases_.end()) return;
  Lease lease = std::move(found->second);
  *lease.end = why;
  // One that only ever waited may be asked for again under its id.
  if (lease.shares.empty() && !lease.failure && !lease.delivered) {
    leases_.erase(found);
  } else {
    forget(id);
  }
  lease.changed->pulse();
  log::debug("lease_ended", {{"lease", id}, {"why", why.message()}});
  placement_.apply(scheduler::Cancelled{id});
  for (const auto& [node, share] : lease.shares) {
    std::vector<uint32_t> slots;
    for (const Held& held : share.held) slots.push_back(held.slot);
    // No process named: all of the lease's on that node, also those that are just starting.
    spawn(scope_, stop_slots(id, node, {}, std::move(slots), running));
  }
}

void Leases::stop_some(Lease& lease, NodeId node, std::vector<ProcessId> processes,
                       std::vector<uint32_t> slots) {
  lease.leaving[node].insert(processes.begin(), processes.end());
  spawn(scope_, stop_slots(lease.request.lease, node, std::move(processes), std::move(slots)));
}

Async<void> Leases::stop_slots(LeaseId id, NodeId node, std::vector<ProcessId> processes,
                               std::vector<uint32_t> slots, Running running) {
  protocol::StopSlots request;
  request.end_tasks = running == Running::ends;
  request.epoch = membership_.epoch();
  request.lease = id;
  request.processes = std::move(processes);
  auto stopped = co_await membership_.call<protocol::Empty>(
      node, transport::Method::stop_slots, request, stop_budget, [] { return true; });
  if (!stopped && !membership_.is_dead(node)) {
    log::warning("slots_stop_failed", {{"lease", id}, {"why", stopped.error()}});
  }
  if (!slots.empty()) placement_.apply(scheduler::LeaseReturned{id, std::move(slots)});
  if (request.processes.empty()) co_return;
  // What the worker said before it heard of this is here by then, or the node is dead.
  co_await sleep_for(environment_.clock, options_.window);
  Lease* lease = look_up(id);
  if (lease == nullptr) co_return;
  const auto there = lease->leaving.find(node);
  if (there == lease->leaving.end()) co_return;
  for (const ProcessId process : request.processes) there->second.erase(process);
  if (there->second.empty()) lease->leaving.erase(there);
}

void Leases::lease_revoked(LeaseId id, const scheduler::Revoked& revoked) {
  Lease* lease = look_up(id);
  if (lease == nullptr) return;
  switch (revoked.reason) {
    case scheduler::RevokeReason::preempted:
      return;  // Only gangs can pause.
    case scheduler::RevokeReason::node_draining: {
      for (const scheduler::Placed& unit : revoked.units) press_to_leave(*lease, unit.node);
      return;
    }
    case scheduler::RevokeReason::node_lost: {
      for (const scheduler::Placed& unit : revoked.units) lease->shares.erase(unit.node);
      if (lease->delivered) {
        placement_.apply(scheduler::Cancelled{id});
        if (lease->shares.empty()) forget(id);
      }
      return;
    }
    case scheduler::RevokeReason::lease_expired:
    case scheduler::RevokeReason::job_removed: {
      log::info("lease_expired", {{"lease", id}});
      Lease over = std::move(*lease);
      leases_.erase(id);
      over.changed->pulse();
      for (const auto& [node, share] : over.shares) spawn(scope_, stop_slots(id, node, {}, {}));
      return;
    }
  }
}

void Leases::node_registered(const protocol::RegisterNode& node) {
  const NodeId here = node.address.node;
  std::map<LeaseId, std::vector<const protocol::RunningSlot*>> listed;
  std::set<ProcessId> alive;
  for (const protocol::RunningSlot& slot : node.slots) {
    listed[slot.lease].push_back(&slot);
    if (!slot.stopping) alive.insert(slot.address.process);
  }
  // What we believe to run there and does not.
  std::vector<std::pair<LeaseId, ProcessId>> gone;
  for (const auto& [id, lease] : leases_) {
    const auto share = lease.shares.find(here);
    if (share == lease.shares.end()) continue;
    for (const Held& held : share->second.held) {
      const ProcessId process = held.address.process;
      if (!process.is_nil() && !alive.contains(process)) gone.emplace_back(id, process);
    }
  }
  for (const auto& [id, process] : gone) drop_process(id, here, process);
  for (auto& [id, slots] : listed) take_over(id, here, std::move(slots));
}

void Leases::take_over(LeaseId id, NodeId node, std::vector<const protocol::RunningSlot*> slots) {
  if (ended_.contains(id)) {
    spawn(scope_, stop_slots(id, node, {}, {}));
    return;
  }
  const bool is_new = look_up(id) == nullptr;
  Lease& lease = leases_[id];
  if (is_new) {
    lease.request.lease = id;
    lease.request.job = slots.front()->job;
    lease.request.demand = slots.front()->demand;
    lease.changed = std::make_shared<Event>(environment_.loop);
    lease.delivered = true;
    lease.request.placement = slots.front()->placement;
    lease.adopted = true;
    keep_for_a_quantum(lease);
  }
  std::erase_if(slots, [&](const protocol::RunningSlot* slot) {
    return is_leaving(lease, node, slot->address.process);
  });
  see_out(lease, node, slots);
  std::erase_if(slots, [](const protocol::RunningSlot* slot) { return slot->stopping; });
  if (const auto share = lease.shares.find(node); share != lease.shares.end()) {
    if (share->second.starting) return;  // They are what it asked for.
    std::erase_if(slots, [&](const protocol::RunningSlot* slot) {
      return std::any_of(
          share->second.held.begin(), share->second.held.end(),
          [&](const Held& held) { return held.address.process == slot->address.process; });
    });
  }
  if (slots.empty()) return;
  // Its client asked this head before the node came back, and has nothing yet: they are what it
  // asked for.
  const protocol::PlacementSpec& asked = lease.request.placement;
  const bool is_current =
      asked.group.is_nil() || groups_.is_current(asked.group, slots.front()->placement.grant);
  const bool is_asked_again = !lease.delivered && lease.next_slot == 0 && is_current;
  std::vector<Held> found = adopt(lease, node, slots);
  if (lease.adopted) {
    auto& held = lease.shares[node].held;
    held.insert(held.end(), found.begin(), found.end());
    // A head that has been here for long would have known a lease that counts.
    if (is_new && !is_young())
      finish(id, error(Code::not_found, "the head does not know the lease"));
    const protocol::PlacementSpec& placement = slots.front()->placement;
    if (!placement.group.is_nil() && !groups_.is_current(placement.group, placement.grant)) {
      finish(id, error(Code::not_found, "its placement group is no more, or was granted anew"),
             Running::ends);
    }
    return;
  }
  if (is_asked_again) {
    for (Held& held : found) held.granted = false;
    auto& held = lease.shares[node].held;
    held.insert(held.end(), found.begin(), found.end());
    lease.changed->pulse();
    return;
  }
  // The node was given up, and the lease went on without these.
  std::vector<ProcessId> processes;
  std::vector<uint32_t> numbers;
  for (const Held& held : found) {
    processes.push_back(held.address.process);
    numbers.push_back(held.slot);
  }
  stop_some(lease, node, std::move(processes), std::move(numbers));
}

void Leases::see_out(Lease& lease, NodeId node,
                     const std::vector<const protocol::RunningSlot*>& slots) {
  std::vector<const protocol::RunningSlot*> stopping;
  std::ranges::copy_if(slots, std::back_inserter(stopping), &protocol::RunningSlot::stopping);
  if (stopping.empty()) return;
  std::vector<ProcessId> processes;
  std::vector<uint32_t> numbers;
  for (const Held& held : adopt(lease, node, stopping)) {
    processes.push_back(held.address.process);
    numbers.push_back(held.slot);
  }
  stop_some(lease, node, std::move(processes), std::move(numbers));
}

std::vector<Leases::Held> Leases::adopt(Lease& lease, NodeId node,
                                        const std::vector<const protocol::RunningSlot*>& slots) {
  scheduler::LeaseRequested request;
  request.lease = lease.request.lease;
  request.job = lease.request.job;
  request.scheduling_class = class_of(lease.request);
  auto demand = to_resources(lease.request.demand);
  if (demand) request.demand = *demand;
  request.slots = static_cast<uint32_t>(slots.size());
  // As their worker says it: a client that asks again names no grant.
  const protocol::PlacementSpec& placement = slots.front()->placement;
  const bool within = groups_.is_current(placement.group, placement.grant);
  if (auto affinity = groups_.affinity_of(placement); affinity && within) {
    request.affinity.within = affinity->within;
    request.affinity.within->bundle.reset();
  }
  std::vector<scheduler::Placed> places;
  std::vector<Held> found;
  for (const protocol::RunningSlot* slot : slots) {
    auto devices = shares_of(slot->devices, request.demand);
    const uint32_t bundle = within ? slot->placement.bundle : 0;
    places.push_back({lease.next_slot++, node, devices, {}});
    if (bundle > 0) places.back().bundle = bundle - 1;
    found.push_back({.slot = places.back().unit,
                     .devices = std::move(devices),
                     .address = slot->address,
                     .granted = true,
                     .bundle = bundle});
  }
  if (demand && placement_.adopt({std::move(request), std::move(places)})) return found;
  log::warning("lease_overcommitted", {{"lease", lease.request.lease}, {"node", node}});
  for (Held& held : found) held.slot = no_slot;
  return found;
}

Async<void> Leases::expire(LeaseId id) {
  for (;;) {
    Lease* lease = look_up(id);
    if (lease == nullptr) co_return;
    if (lease->waiters > 0) keep_for_a_quantum(*lease);
    const Instant due = lease->expires_at;
    if (environment_.clock.now() >= due) {
      finish(id, error(Code::deadline_exceeded, "nobody renewed the lease"));
      co_return;
    }
    co_await sleep_until(environment_.clock, due);
  }
}

void Leases::group_removed(PlacementGroupId, scheduler::GangId gang, const std::string& reason) {
  finish_within(gang, error(Code::not_found, reason));
}

void Leases::group_broken(PlacementGroupId, scheduler::GangId gang, const std::string& reason) {
  finish_within(gang, error(Code::exhausted, "its placement group is granted anew: " + reason));
}

void Leases::finish_within(scheduler::GangId gang, const Error& why) {
  for (const scheduler::RequestId& member : placement_.view().members(gang)) {
    if (const auto* lease = std::get_if<LeaseId>(&member)) finish(*lease, why, Running::ends);
  }
}

void Leases::node_lost(NodeId node, const std::string&) {
  std::vector<LeaseId> empty;
  for (auto& [id, lease] : leases_) {
    lease.leaving.erase(node);  // Should it come back with them, they are to be stopped anew.
    if (lease.shares.erase(node) == 0) continue;
    lease.changed->pulse();
    if (lease.delivered && lease.shares.empty()) empty.push_back(id);
  }
  for (const LeaseId id : empty) forget(id);
}

size_t Leases::slots_on(NodeId node) const {
  size_t count = 0;
  for (const auto& [id, lease] : leases_) {
    if (const auto share = lease.shares.find(node); share != lease.shares.end()) {
      count += share->second.held.size();
    }
  }
  return count;
}

std::vector<protocol::PendingInfo> Leases::pending(size_t items_max) const {
  std::vector<protocol::PendingInfo> out;
  for (const auto& [id, lease] : leases_) {
    if (out.size() >= items_max) break;
    if (lease.delivered || runs(lease)) continue;
    out.push_back({id, "lease", placement_.why(id)});
  }
  return out;
}

}  // namespace troupe::head
