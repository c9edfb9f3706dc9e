#include "worker/slot_host.h"

#include <fmt/format.h>

#include <algorithm>
#include <ranges>

#include "base/log.h"

namespace troupe::worker {

using transport::Method;

namespace {

constexpr size_t ended_max = 16384;
constexpr uint32_t slots_max = 4096;
constexpr Duration stop_grace = std::chrono::seconds(2);
constexpr Duration reuse_budget = std::chrono::seconds(1);
constexpr Duration start_budget = std::chrono::minutes(1);

Bytes assignment(const protocol::StartSlots& request, uint32_t bundle) {
  protocol::AssignSlot assign;
  assign.lease = request.lease;
  assign.job = request.job;
  assign.module = request.module;
  assign.placement = request.placement;
  assign.placement.bundle = bundle;
  return protocol::encode(assign);
}

// A head of an older version gives a count, and devices to deal out evenly.
std::vector<protocol::SlotToStart> slots_of(const protocol::StartSlots& request) {
  if (!request.slots.empty()) return request.slots;
  std::vector<protocol::SlotToStart> slots(request.count);
  const size_t share = request.devices.size() / request.count;
  for (uint32_t number = 0; number < request.count; ++number) {
    const auto first = request.devices.begin() + static_cast<std::ptrdiff_t>(share * number);
    slots[number].number = number;
    slots[number].devices.assign(first, first + static_cast<std::ptrdiff_t>(share));
  }
  return slots;
}

}  // namespace

SlotHost::SlotHost(transport::Environment environment, Scope& scope, ProcessTable& processes,
                   Logs& logs, const WorkerOptions& options)
    : environment_(environment),
      scope_(scope),
      processes_(processes),
      logs_(logs),
      options_(options) {}

Async<Result<protocol::SlotsStarted>> SlotHost::start(protocol::StartSlots request,
                                                      Surroundings surroundings, Instant deadline) {
  if (request.lease.is_nil() || request.count == 0 || request.count > slots_max ||
      request.slots.size() > slots_max) {
    co_return error(Code::invalid, "start_slots needs a lease and 1 to 4096 slots");
  }
  if (ended_.contains(request.lease)) {
    co_return error(Code::conflict, fmt::format("lease {} was stopped", request.lease.to_string()));
  }
  Pointer& entry = leases_[request.lease];
  if (!entry) {
    entry = std::make_shared<Lease>(environment_.loop);
    entry->job = request.job;
    entry->module = request.module;
    entry->demand = request.demand;
    entry->placement = request.placement;
  }
  const Pointer lease = entry;
  if (std::exchange(lease->epoch, request.epoch) != request.epoch) lease->answered.clear();
  const auto slots = slots_of(request);
  for (const protocol::SlotToStart& slot : slots) {
    if (lease->answered.contains(slot.number)) continue;
    const auto [made, fresh] = lease->slots.try_emplace(slot.number);
    if (!fresh) continue;
    lease->failure.reset();
    made->second.bundle = slot.bundle;
    // With a budget of its own: the head asks again while this goes on.
    spawn(scope_,
          start_slot(lease, slot, request, surroundings, environment_.clock.now() + start_budget));
  }
  while (!settled(*lease) && !lease->stopped) {
    if (!co_await wait_until(environment_.clock, deadline, lease->changed)) break;
  }
  if (lease->stopped) co_return error(Code::cancelled, "the lease was stopped while it started");
  auto reply = started(*lease);
  if (!reply.processes.empty()) {
    // The head takes this for all that there is: what came later would belong to nobody.
    drop_unstarted(request.lease, *lease);
    // One of an older version gives no numbers: what it counts may be started again.
    for (const auto& slot : request.slots) lease->answered.insert(slot.number);
    co_return reply;
  }
  const bool is_over = std::ranges::all_of(
      slots, [&](const auto& slot) { return lease->answered.contains(slot.number); });
  drop_if_empty(request.lease);  // Nothing came of it: a retry begins anew.
  if (is_over) co_return error(Code::unavailable, "the slots have ended");
  if (lease->failure) {
    Error failure = *lease->failure;
    co_return failure;
  }
  co_return error(Code::deadline_exceeded, "the slots still start");
}

Async<void> SlotHost::start_slot(Pointer lease, protocol::SlotToStart wanted_slot,
                                 protocol::StartSlots request, Surroundings surroundings,
                                 Instant deadline) {
  const uint32_t number = wanted_slot.number;
  if (wanted_slot.devices.empty()) {
    const bool reused = co_await reuse(lease, wanted_slot, request);
    if (reused) co_return;
  }
  const auto empty = lease->slots.find(number);
  if (lease->stopped || empty == lease->slots.end() || empty->second.process) co_return;
  const Instant began = environment_.clock.now();
  const auto driver = surroundings.driver;
  const ProcessTable::Request launch{
      request.job, wanted_slot.devices, {}, request.module, std::move(surroundings)};
  auto launched = processes_.launch(launch);
  if (!launched) {
    lease->slots.erase(number);
    lease->failure = launched.error();
    lease->changed.pulse();
    co_return;
  }
  auto process = *launched;
  process->work.is_replaceable = true;  // Whoever submitted its tasks submits them again.
  lease->slots[number] = Slot{process, false, launch.devices, wanted_slot.bundle};
  logs_.process_started(process, {}, program_of(request.module), driver);
  Bytes body = assignment(request, wanted_slot.bundle);
  auto outcome =
      co_await HostedProcess::greet_and_assign(process, processes_.service(), processes_.hello,
                                               Method::assign_slot, std::move(body), deadline);
  processes_.note_started("process of tasks", began, !outcome);
  const auto slot = lease->slots.find(number);
  const bool wanted =
      !lease->stopped && slot != lease->slots.end() && slot->second.process == process;
  if (outcome && wanted && process->is_usable()) {
    slot->second.started = true;
    process->work.lease = request.lease;
    log::info("slot_started", {{"lease", request.lease}, {"process", process->id()}});
  } else {
    if (!outcome) {
      log::warning("slot_start_failed", {{"lease", request.lease}, {"why", outcome.error()}});
      lease->failure = outcome.error();
    }
    if (wanted) lease->slots.erase(number);
    end_slot(request.lease, *lease, Slot{process, false, launch.devices, wanted_slot.bundle});
  }
  lease->changed.pulse();
}

Async<bool> SlotHost::reuse(Pointer lease, protocol::SlotToStart wanted_slot,
                            protocol::StartSlots request) {
  const uint32_t number = wanted_slot.number;
  for (;;) {
    const auto empty = lease->slots.find(number);
    if (lease->stopped || empty == lease->slots.end() || empty->second.process) co_return true;
    const auto process = take_idle(*lease);
    if (!process) co_return false;
    empty->second.process = process;
    const Instant deadline = environment_.clock.now() + reuse_budget;
    Bytes body = assignment(request, wanted_slot.bundle);
    auto outcome =
        co_await HostedProcess::assign(process, Method::assign_slot, std::move(body), deadline);
    const auto slot = lease->slots.find(number);
    const bool wanted =
        !lease->stopped && slot != lease->slots.end() && slot->second.process == process;
    if (!outcome || !process->is_usable() || !wanted) {
      end_soon(process);
      if (!wanted) co_return true;
      slot->second.process = nullptr;
      continue;
    }
    slot->second = Slot{process, true, {}, wanted_slot.bundle};
    process->work.lease = request.lease;
    log::info("slot_reused", {{"lease", request.lease}, {"process", process->id()}});
    lease->changed.pulse();
    co_return true;
  }
}

Async<Result<protocol::Empty>> SlotHost::stop(protocol::StopSlots request, Instant deadline) {
  const auto found = leases_.find(request.lease);
  const bool whole = request.processes.empty();
  if (whole && ended_.insert(request.lease).second) {
    ended_order_.push_back(request.lease);
    if (ended_order_.size() > ended_max) {
      ended_.erase(ended_order_.front());
      ended_order_.pop_front();
    }
  }
  if (found != leases_.end()) stop_now(found, request);
  const bool ended = co_await wait_until_ended(request.lease, deadline);
  if (!ended) co_return error(Code::deadline_exceeded, "processes of the lease still end");
  co_return protocol::Empty{};
}

void SlotHost::stop_now(std::map<LeaseId, Pointer>::iterator found,
                        const protocol::StopSlots& request) {
  const bool whole = request.processes.empty();
  const Pointer lease = found->second;
  for (auto slot = lease->slots.begin(); slot != lease->slots.end();) {
    const auto process = slot->second.process;
    const bool named = whole || (process && std::ranges::count(request.processes, process->id()));
    if (!named) {
      ++slot;
      continue;
    }
    const Slot stopped = std::move(slot->second);
    slot = lease->slots.erase(slot);
    if (!process) continue;
    process->work.lease = {};
    if (stopped.started && !request.end_tasks) {
      lease->left.insert(process->id());
      retire(request.lease, *lease, stopped);
    } else {
      end_slot(request.lease, *lease, stopped);
    }
  }
  if (whole) {
    lease->stopped = true;
    leases_.erase(found);
    log::info("lease_stopped", {{"lease", request.lease}});
  }
  drop_if_empty(request.lease);
  lease->changed.pulse();
}

// Whoever gets their resources next must not meet them.
Async<bool> SlotHost::wait_until_ended(LeaseId lease, Instant deadline) {
  for (;;) {
    const auto found = ending_.find(lease);
    if (found == ending_.end()) co_return true;
    const HostedProcess::Pointer process = found->second.back().process;
    const bool ended = co_await wait_until(environment_.clock, deadline, process->exited());
    if (!ended) co_return false;
    const auto again = ending_.find(lease);
    if (again == ending_.end()) co_return true;
    std::erase_if(again->second, [&](const Ending& one) { return one.process == process; });
    if (again->second.empty()) ending_.erase(again);
  }
}

void SlotHost::end_slot(LeaseId id, const Lease& lease, const Slot& slot) {
  auto& ending = ending_[id];
  const auto same = [&](const Ending& one) { return one.process == slot.process; };
  if (std::ranges::none_of(ending, same)) {
    ending.push_back({slot.process, listed(id, lease, slot)});
    ending.back().listed.stopping = true;
  }
  end_soon(slot.process);
}

void SlotHost::retire(LeaseId id, const Lease& lease, const Slot& slot) {
  const HostedProcess::Pointer& process = slot.process;
  // One with a GPU is not used again: the next lease may have none.
  if (!process->is_usable() || !slot.devices.empty() || options_.idle_slots_max == 0) {
    end_slot(id, lease, slot);
    return;
  }
  // Not this one: it is the likeliest to be wanted again, and others may need what it owns.
  auto staying = idle_ | std::views::filter([](const auto& entry) { return !entry.second.leaves; });
  const auto count = static_cast<size_t>(std::ranges::distance(staying));
  if (count >= options_.idle_slots_max) {
    const auto oldest =
        std::ranges::min_element(staying, {}, [](const auto& entry) { return entry.second.until; });
    oldest->second.leaves = true;
    spawn(scope_, end_if_unneeded(oldest->first));
  }
  const Instant until = environment_.clock.now() + options_.idle_slot_life;
  idle_[process->id()] = Idle{process, lease.module, until};
  spawn(scope_, end_idle(process->id(), until));
}

HostedProcess::Pointer SlotHost::take_idle(const Lease& lease) {
  for (auto entry = idle_.begin(); entry != idle_.end(); ++entry) {
    const auto& [process, loaded, until, leaves] = entry->second;
    if (process->job() != lease.job || loaded != lease.module) continue;
    if (leaves || !process->is_usable()) continue;
    if (lease.left.contains(process->id())) continue;
    auto taken = process;
    idle_.erase(entry);
    return taken;
  }
  return nullptr;
}

Async<void> SlotHost::end_idle(ProcessId id, Instant when) {
  co_await sleep_until(environment_.clock, when);
  const auto found = idle_.find(id);
  if (found == idle_.end() || found->second.until != when) co_return;  // Taken, perhaps back again.
  found->second.leaves = true;
  co_await end_if_unneeded(id);
}

Async<void> SlotHost::end_if_unneeded(ProcessId id) {
  auto found = idle_.find(id);
  if (found == idle_.end()) co_return;
  auto process = found->second.process;
  const bool ended = co_await HostedProcess::end_if_unneeded(std::move(process), stop_grace);
  found = idle_.find(id);
  if (ended || found == idle_.end()) co_return;  // Its exit, or its job's end, took it from there.
  const Instant until = environment_.clock.now() + options_.idle_slot_life;
  found->second.until = until;
  found->second.leaves = false;
  spawn(scope_, end_idle(id, until));
}

void SlotHost::job_ended(JobId job) {
  std::erase_if(idle_, [&](const auto& entry) {
    const auto& process = entry.second.process;
    if (process->job() != job) return false;
    end_soon(process);
    return true;
  });
}

void SlotHost::end_soon(HostedProcess::Pointer process) {
  spawn(scope_, end_process(std::move(process), stop_grace));
}

Async<void> SlotHost::end_process(HostedProcess::Pointer process, Duration grace) {
  co_await HostedProcess::end(process, grace);
}

void SlotHost::process_exited(HostedProcess& process) {
  idle_.erase(process.id());
  forget_ended(process);
  const auto found = leases_.find(process.work.lease);
  if (found == leases_.end()) return;
  const Pointer lease = found->second;
  std::erase_if(lease->slots,
                [&](const auto& slot) { return slot.second.process.get() == &process; });
  drop_if_empty(found->first);
  lease->changed.pulse();
}

void SlotHost::drop_if_empty(LeaseId id) {
  const auto found = leases_.find(id);
  if (found == leases_.end() || !found->second->slots.empty()) return;
  if (found->second->answered.empty() && found->second->left.empty()) {
    leases_.erase(found);
    return;
  }
  emptied_.push_back(id);
  if (emptied_.size() <= ended_max) return;
  const auto oldest = leases_.find(emptied_.front());
  emptied_.pop_front();
  if (oldest != leases_.end() && oldest->second->slots.empty()) leases_.erase(oldest);
}

void SlotHost::forget_ended(const HostedProcess& process) {
  for (auto entry = ending_.begin(); entry != ending_.end();) {
    std::erase_if(entry->second, [&](const Ending& one) { return one.process.get() == &process; });
    entry = entry->second.empty() ? ending_.erase(entry) : std::next(entry);
  }
}

bool SlotHost::settled(const Lease& lease) const {
  return std::ranges::all_of(lease.slots, [](const auto& slot) { return slot.second.started; });
}

protocol::SlotsStarted SlotHost::started(const Lease& lease) const {
  protocol::SlotsStarted reply;
  for (const auto& [number, slot] : lease.slots) {
    if (!slot.started) continue;
    reply.processes.push_back(slot.process->started());
    reply.processes.back().slot = number + 1;
  }
  return reply;
}

void SlotHost::drop_unstarted(LeaseId id, Lease& lease) {
  const auto dropped = std::erase_if(lease.slots, [&](const auto& slot) {
    if (slot.second.started) return false;
    if (slot.second.process) end_slot(id, lease, slot.second);
    return true;
  });
  if (dropped > 0) lease.changed.pulse();
}

void SlotHost::drop_unstarted() {
  const auto leases = leases_;  // Those without slots leave it.
  for (const auto& [id, lease] : leases) {
    if (lease->slots.empty()) continue;
    drop_unstarted(id, *lease);
    drop_if_empty(id);
  }
}

std::vector<protocol::RunningSlot> SlotHost::running() const {
  std::vector<protocol::RunningSlot> running;
  for (const auto& [id, lease] : leases_) {
    for (const auto& [number, slot] : lease->slots) {
      if (!slot.started) continue;
      running.push_back(listed(id, *lease, slot));
    }
  }
  for (const auto& [id, ending] : ending_) {
    for (const Ending& one : ending) running.push_back(one.listed);
  }
  return running;
}

protocol::RunningSlot SlotHost::listed(LeaseId id, const Lease& lease, const Slot& slot) const {
  const HostedProcess& process = *slot.process;
  protocol::RunningSlot listed{id,
                               lease.job,
                               lease.demand,
                               slot.devices,
                               process.started().address,
                               process.pid(),
                               lease.placement};
  listed.address.node = options_.node;
  listed.address.process = process.id();
  listed.placement.bundle = slot.bundle;
  return listed;
}

}  // namespace troupe::worker
