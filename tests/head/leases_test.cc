// Leases: who gets slots, for how long, and that their resources are free no sooner than the slots.
#include <algorithm>

#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class Leases : public HeadTest {
 protected:
  protocol::RequestLease lease_of(uint32_t slots, int64_t cpu = 1) {
    protocol::RequestLease request;
    request.lease = LeaseId::random(simulation.random());
    request.module = "module";
    request.demand = {{"cpu", cpu * 1000}};
    request.slots = slots;
    return request;
  }
  // As a worker lists it.
  static protocol::RunningSlot running(const protocol::RequestLease& lease,
                                       const protocol::ProcessAddress& address) {
    protocol::RunningSlot slot;
    slot.lease = lease.lease;
    slot.demand = lease.demand;
    slot.address = address;
    return slot;
  }
  Result<protocol::LeaseGranted> request(const std::shared_ptr<Peer>& peer,
                                         const protocol::RequestLease& wanted,
                                         Duration budget = 10s) {
    return ask<protocol::LeaseGranted>(peer, Method::request_lease, wanted, budget);
  }
  Result<protocol::LeaseGranted> renew(const std::shared_ptr<Peer>& peer, LeaseId lease) {
    return ask<protocol::LeaseGranted>(peer, Method::renew_lease, protocol::RenewLease{lease});
  }
  void give_back(const std::shared_ptr<Peer>& peer, LeaseId lease,
                 std::vector<ProcessId> processes = {}) {
    protocol::ReturnLease request{lease, std::move(processes)};
    EXPECT_EQ(code_of(ask<Empty>(peer, Method::return_lease, request)), Code::ok);
  }
  void report_slot_exit(FakeWorker& worker, LeaseId lease, ProcessId process) {
    protocol::ProcessExited news;
    news.node = worker.node;
    news.epoch = worker.epoch;
    news.lease = lease;
    news.process = process;
    EXPECT_EQ(code_of(ask<Empty>(worker.head, Method::process_exited, news)), Code::ok);
  }
};

TEST_F(Leases, GivesAsManySlotsAsWereAskedFor) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto granted = request(client, lease_of(3));
  ASSERT_TRUE(granted);
  EXPECT_EQ(granted->slots.size(), 3u);
  EXPECT_EQ(granted->quantum_us, 10'000'000u);
  EXPECT_EQ(cpu_free(client, worker.node), 1);
}

TEST_F(Leases, GivesTheSlotsThatFitWithoutWaitingForMore) {
  start_head();
  add_worker(2);
  const auto granted = request(driver(), lease_of(5));
  ASSERT_TRUE(granted);
  EXPECT_EQ(granted->slots.size(), 2u);
}

TEST_F(Leases, TakesSlotsOnSeveralNodes) {
  start_head();
  add_worker(2);
  add_worker(2);
  const auto granted = request(driver(), lease_of(4));
  ASSERT_TRUE(granted);
  EXPECT_EQ(granted->slots.size(), 4u);
}

TEST_F(Leases, SameRequestAgainGivesTheSameSlots) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto wanted = lease_of(2);
  const auto first = request(client, wanted);
  const auto second = request(client, wanted);
  ASSERT_TRUE(first && second);
  ASSERT_EQ(second->slots.size(), 2u);
  EXPECT_EQ(first->slots[0].address.process, second->slots[0].address.process);
  EXPECT_EQ(cpu_free(client, worker.node), 2);
}

TEST_F(Leases, RefusesABadRequest) {
  start_head();
  add_worker(4);
  const auto client = driver();
  const auto refuses = [&](const char* what,
                           const std::function<void(protocol::RequestLease&)>& spoil) {
    SCOPED_TRACE(what);
    auto wanted = lease_of(1);
    spoil(wanted);
    EXPECT_EQ(code_of(request(client, wanted)), Code::invalid);
  };
  refuses("no id", [](auto& wanted) { wanted.lease = {}; });
  refuses("no module", [](auto& wanted) { wanted.module.clear(); });
  refuses("long path", [](auto& wanted) { wanted.module.assign(4097, 'x'); });
  refuses("no slot", [](auto& wanted) { wanted.slots = 0; });
  refuses("too many slots", [](auto& wanted) { wanted.slots = 4097; });
  refuses("negative demand", [](auto& wanted) { wanted.demand = {{"cpu", -1}}; });
  refuses("demand twice", [](auto& wanted) { wanted.demand = {{"cpu", 1}, {"cpu", 1}}; });
}

TEST_F(Leases, RefusesMoreLeasesThanTheLimit) {
  options.leases_max = 1;
  start_head();
  add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(request(client, lease_of(1)));
  EXPECT_EQ(code_of(request(client, lease_of(1))), Code::exhausted);
}

TEST_F(Leases, RefusesALeaseOfAJobThatDidNotBegin) {
  start_head();
  auto wanted = lease_of(1);
  wanted.job = JobId::random(simulation.random());
  EXPECT_EQ(code_of(request(driver(), wanted)), Code::not_found);
}

// --- Waiting.

TEST_F(Leases, WaitsForASlotThatAnotherLeaseGivesBack) {
  start_head();
  add_worker(1);
  const auto client = driver();
  const auto first = lease_of(1);
  ASSERT_TRUE(request(client, first));
  const auto second = begin<protocol::LeaseGranted>(client, Method::request_lease, lease_of(1));
  simulation.run_for(1s);
  EXPECT_FALSE(second->has_value());
  give_back(client, first.lease);
  simulation.run_for(100ms);
  ASSERT_TRUE(second->has_value());
  EXPECT_EQ(code_of(**second), Code::ok);
}

TEST_F(Leases, KeepsItsPlaceInLineWhileItsClientAsksAgain) {
  start_head();
  add_worker(1);
  const auto client = driver();
  const auto first = lease_of(1);
  ASSERT_TRUE(request(client, first));
  const auto patient = lease_of(1);
  EXPECT_EQ(code_of(request(client, patient, 1s)), Code::deadline_exceeded);
  const auto later = begin<protocol::LeaseGranted>(client, Method::request_lease, lease_of(1));
  simulation.run_for(1s);
  const auto again = begin<protocol::LeaseGranted>(client, Method::request_lease, patient);
  give_back(client, first.lease);
  simulation.run_for(100ms);
  EXPECT_TRUE(again->has_value());
  EXPECT_FALSE(later->has_value());
}

TEST_F(Leases, LeaseThatComesTooLateHoldsNothingForLong) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto client = driver();
  const auto first = lease_of(1);
  ASSERT_TRUE(request(client, first));
  EXPECT_EQ(code_of(request(client, lease_of(1), 1s)), Code::deadline_exceeded);
  simulation.run_for(100ms);
  give_back(client, first.lease);
  simulation.run_for(11s);
  EXPECT_EQ(cluster_info(client).leases, 0u);
  EXPECT_EQ(cpu_free(client, worker.node), 1);
}

TEST_F(Leases, SaysWhatItWaitedForWhenTimeIsUp) {
  start_head();
  add_worker(1);
  const auto granted = request(driver(), lease_of(1, 2), 1s);
  ASSERT_EQ(code_of(granted), Code::deadline_exceeded);
  EXPECT_NE(granted.error().message().find("no slot yet: "), std::string::npos)
      << granted.error().message();
}

TEST_F(Leases, ListsALeaseThatWaitsWithItsReason) {
  start_head();
  const auto client = driver();
  const auto wanted = lease_of(1);
  const auto waits = begin<protocol::LeaseGranted>(client, Method::request_lease, wanted);
  simulation.run_for(1s);
  const auto info = cluster_info(client);
  ASSERT_EQ(info.pending.size(), 1u);
  EXPECT_EQ(info.pending[0].kind, "lease");
  EXPECT_NE(info.pending[0].reason, "");
}

TEST_F(Leases, CallerThatLeavesHoldsNothingForLong) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto client = driver();
  const auto first = lease_of(1);
  ASSERT_TRUE(request(client, first));
  const auto leaving = driver();
  const auto waits = begin<protocol::LeaseGranted>(leaving, Method::request_lease, lease_of(1));
  simulation.run_for(1s);
  leaving->close();
  simulation.run_for(100ms);
  give_back(client, first.lease);
  simulation.run_for(11s);
  EXPECT_EQ(cluster_info(client).leases, 0u);
  EXPECT_EQ(cpu_free(client, worker.node), 1);
}

TEST_F(Leases, LeaseThatOnlyWaitedMayBeAskedForAgain) {
  start_head();
  const auto client = driver();
  const auto wanted = lease_of(1);
  ASSERT_EQ(code_of(request(client, wanted, 1s)), Code::deadline_exceeded);
  add_worker(1);
  EXPECT_EQ(code_of(request(client, wanted)), Code::ok);
}

TEST_F(Leases, EndedLeaseIsNotGrantedAgainUnderItsId) {
  start_head();
  add_worker(1);
  const auto client = driver();
  const auto wanted = lease_of(1);
  ASSERT_TRUE(request(client, wanted));
  give_back(client, wanted.lease);
  EXPECT_EQ(code_of(request(client, wanted)), Code::exhausted);
}

TEST_F(Leases, LeaseWhoseSlotsWereAllReturnedIsNotGrantedAgainUnderItsId) {
  start_head();
  add_worker(1);
  const auto client = driver();
  const auto wanted = lease_of(1);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  give_back(client, wanted.lease, {granted->slots[0].address.process});
  EXPECT_EQ(code_of(request(client, wanted)), Code::exhausted) << "a late copy of the request";
}

TEST_F(Leases, LeaseWhoseProcessesEndedIsNotGrantedAgainUnderItsId) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto client = driver();
  const auto wanted = lease_of(1);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  report_slot_exit(worker, wanted.lease, granted->slots[0].address.process);
  EXPECT_EQ(code_of(request(client, wanted)), Code::exhausted) << "a late copy of the request";
}

// --- Workers that fail.

TEST_F(Leases, WorkersFailureReachesTheCaller) {
  start_head();
  FakeWorker& worker = add_worker(1);
  worker.start_failure = error(Code::not_found, "no such module");
  const auto granted = request(driver(), lease_of(1));
  ASSERT_EQ(code_of(granted), Code::not_found);
  EXPECT_EQ(granted.error().message(), "no such module");
}

TEST_F(Leases, FailedStartsResourcesAreFreeOnceTheWorkerSaysSo) {
  start_head();
  FakeWorker& worker = add_worker(1);
  worker.start_failure = error(Code::internal, "it hangs");
  worker.hold_stops = true;
  const auto client = driver();
  ASSERT_FALSE(request(client, lease_of(1)));
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 0) << "a process may still run";
  worker.let_go();
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, worker.node), 1);
}

// --- Renewal.

TEST_F(Leases, LeaseThatNobodyRenewsEnds) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto client = driver();
  const auto wanted = lease_of(1);
  ASSERT_TRUE(request(client, wanted));
  simulation.run_for(9s);
  EXPECT_TRUE(worker.slots_stopped.empty());
  simulation.run_for(2s);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_EQ(worker.slots_stopped[0].lease, wanted.lease);
  EXPECT_EQ(code_of(renew(client, wanted.lease)), Code::not_found);
  EXPECT_EQ(cpu_free(client, worker.node), 1);
}

TEST_F(Leases, RenewedLeaseGoesOn) {
  start_head();
  add_worker(1);
  const auto client = driver();
  const auto wanted = lease_of(1);
  ASSERT_TRUE(request(client, wanted));
  for (int i = 0; i < 5; ++i) {
    simulation.run_for(9s);
    ASSERT_EQ(code_of(renew(client, wanted.lease)), Code::ok);
  }
}

// --- The end.

TEST_F(Leases, SlotsResourcesAreFreeOnceItsProcessHasStopped) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.hold_stops = true;
  const auto client = driver();
  const auto wanted = lease_of(3);
  ASSERT_TRUE(request(client, wanted));
  give_back(client, wanted.lease);
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 1);
  worker.let_go();
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, worker.node), 4);
}

TEST_F(Leases, ReturnOfOneSlotStopsThatOneAlone) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto wanted = lease_of(2);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  const ProcessId returned = granted->slots[0].address.process;
  give_back(client, wanted.lease, {returned});
  simulation.run_for(100ms);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_EQ(worker.slots_stopped[0].processes, std::vector<ProcessId>{returned});
  EXPECT_EQ(cpu_free(client, worker.node), 3);
  const auto rest = renew(client, wanted.lease);
  ASSERT_TRUE(rest);
  ASSERT_EQ(rest->slots.size(), 1u);
  EXPECT_EQ(rest->slots[0].address.process, granted->slots[1].address.process);
}

TEST_F(Leases, ReturnOfAnUnknownLeaseIsNoError) {
  start_head();
  give_back(driver(), LeaseId::random(simulation.random()));
}

TEST_F(Leases, SlotWhoseProcessEndedIsGoneFromTheLease) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto wanted = lease_of(2);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  report_slot_exit(worker, wanted.lease, granted->slots[0].address.process);
  EXPECT_EQ(renew(client, wanted.lease)->slots.size(), 1u);
  EXPECT_EQ(cpu_free(client, worker.node), 3);
}

TEST_F(Leases, LeaseIsOverWhenItsLastProcessEnded) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto wanted = lease_of(1);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  report_slot_exit(worker, wanted.lease, granted->slots[0].address.process);
  EXPECT_EQ(code_of(renew(client, wanted.lease)), Code::not_found);
  EXPECT_EQ(cpu_free(client, worker.node), 4);
}

TEST_F(Leases, EndOfTheLastProcessFreesNoSlotThatIsStillStopping) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.hold_stops = true;
  const auto client = driver();
  const auto wanted = lease_of(2);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  give_back(client, wanted.lease, {granted->slots[0].address.process});
  report_slot_exit(worker, wanted.lease, granted->slots[1].address.process);
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 3);
  worker.let_go();
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, worker.node), 4);
}

TEST_F(Leases, EndOfTheJobStopsItsSlots) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto wanted = lease_of(2);
  wanted.job = begin_job(client);
  ASSERT_TRUE(request(client, wanted));
  ASSERT_TRUE(ask<Empty>(client, Method::end_job, protocol::EndJob{wanted.job, true, {}}));
  simulation.run_for(100ms);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_EQ(worker.slots_stopped[0].lease, wanted.lease);
  EXPECT_EQ(cluster_info(client).leases, 0u);
}

// --- Lost nodes and new heads.

TEST_F(Leases, LostNodesSlotsAreGoneFromTheLease) {
  start_head();
  FakeWorker& first = add_worker(1);
  FakeWorker& second = add_worker(1);
  const auto client = driver();
  const auto wanted = lease_of(2);
  ASSERT_EQ(request(client, wanted)->slots.size(), 2u);
  first.beats = false;
  simulation.run_for(6s);
  const auto rest = renew(client, wanted.lease);
  ASSERT_TRUE(rest);
  ASSERT_EQ(rest->slots.size(), 1u);
  EXPECT_EQ(rest->slots[0].address.node, second.node);
}

TEST_F(Leases, LeaseThatWaitsGetsASlotElsewhereWhenItsNodeIsLost) {
  start_head();
  FakeWorker& first = add_worker(1);
  first.hold_starts = true;
  const auto client = driver();
  const auto waits = begin<protocol::LeaseGranted>(client, Method::request_lease, lease_of(1), 30s);
  simulation.run_for(1s);
  ASSERT_EQ(first.slots_started.size(), 1u);
  FakeWorker& second = add_worker(1);
  first.beats = false;
  simulation.run_for(7s);
  ASSERT_TRUE(waits->has_value());
  ASSERT_EQ(code_of(**waits), Code::ok);
  EXPECT_EQ((**waits)->slots[0].address.node, second.node);
}

TEST_F(Leases, NewHeadLetsTheClientRenewWhatTheWorkerStillRuns) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto wanted = lease_of(1);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();
  worker.registration.slots = {running(wanted, granted->slots[0].address)};
  return_worker(worker);
  const auto client = driver();
  for (int i = 0; i < 3; ++i) {
    simulation.run_for(9s);
    const auto renewed = renew(client, wanted.lease);
    ASSERT_TRUE(renewed);
    ASSERT_EQ(renewed->slots.size(), 1u);
    EXPECT_EQ(renewed->slots[0].address.process, granted->slots[0].address.process);
  }
}

TEST_F(Leases, NewHeadCountsWhatTheWorkerStillRuns) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto wanted = lease_of(1);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();
  worker.registration.slots = {running(wanted, granted->slots[0].address)};
  return_worker(worker);
  const auto client = driver();
  const auto next = lease_of(1);
  EXPECT_EQ(code_of(request(client, next, 1s)), Code::deadline_exceeded);
  give_back(client, wanted.lease);
  EXPECT_TRUE(request(client, next));
}

TEST_F(Leases, NewHeadGivesWhatStillRunsToWhoAsksAgainBeforeItsNodeIsBack) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const auto wanted = lease_of(1);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();
  const auto client = driver();
  const auto again = begin<protocol::LeaseGranted>(client, Method::request_lease, wanted);
  simulation.run_for(1s);
  ASSERT_FALSE(again->has_value());
  worker.registration.slots = {running(wanted, granted->slots[0].address)};
  return_worker(worker);
  simulation.run_for(1s);
  ASSERT_TRUE(again->has_value());
  ASSERT_TRUE(**again);
  EXPECT_EQ((**again)->slots[0].address.process, granted->slots[0].address.process);
  for (const auto& stopped : worker.slots_stopped) {
    EXPECT_EQ(std::count(stopped.processes.begin(), stopped.processes.end(),
                         granted->slots[0].address.process),
              0);
  }
}

TEST_F(Leases, NewHeadDoesNotCallALeaseOverBeforeItsNodesMayBeBack) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto wanted = lease_of(1);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();
  const auto client = driver();
  const LeaseId unknown = LeaseId::random(simulation.random());
  EXPECT_EQ(code_of(renew(client, wanted.lease)), Code::unavailable);
  worker.registration.slots = {running(wanted, granted->slots[0].address)};
  return_worker(worker);
  EXPECT_EQ(code_of(renew(client, wanted.lease)), Code::ok);
  give_back(client, wanted.lease);
  EXPECT_EQ(code_of(renew(client, wanted.lease)), Code::not_found) << "it ended here";
  simulation.run_for(10s);
  EXPECT_EQ(code_of(renew(client, unknown)), Code::not_found);
}

TEST_F(Leases, WhatANodeWasAskedBeforeItWasLostIsNotAskedAgainWhenItIsBack) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const auto client = driver();
  simulation.network().partition("head", worker.registration.name);
  simulation.run_for(3s);
  const auto granted =
      begin<protocol::LeaseGranted>(client, Method::request_lease, lease_of(2), 1min);
  simulation.run_until([&] { return look(client, worker.node).state == "dead"; }, 10s);
  simulation.network().heal();
  worker.hold_starts = true;
  return_worker(worker);
  simulation.run_for(10s);  // The first was given 5 s.
  for (const auto& asked : worker.slots_started) {
    ASSERT_EQ(asked.slots.size(), 2u);
    EXPECT_EQ(asked.slots[0].number, worker.slots_started[0].slots[0].number)
        << "for slots that were lost with the node";
  }
  worker.let_go();
  simulation.run_for(1s);
  ASSERT_TRUE(granted->has_value() && **granted);
  EXPECT_EQ((**granted)->slots.size(), 2u);
}

TEST_F(Leases, SlotsThatNobodyAskedForAreStopped) {
  start_head();
  FakeWorker& worker = add_worker(4);
  auto wanted = lease_of(2);
  ASSERT_TRUE(request(driver(), wanted));
  restart_head();
  return_worker(worker);  // It names both as what runs of the lease, though it did not list them.
  wanted.slots = 1;
  const auto client = driver();
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  ASSERT_EQ(granted->slots.size(), 1u);
  simulation.run_for(100ms);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  ASSERT_EQ(worker.slots_stopped[0].processes.size(), 1u);
  EXPECT_NE(worker.slots_stopped[0].processes[0], granted->slots[0].address.process);
  EXPECT_EQ(renew(client, wanted.lease)->slots.size(), 1u);
}

TEST_F(Leases, NewHeadEndsWhatNobodyRenews) {
  start_head();
  FakeWorker& worker = add_worker(1);
  const auto wanted = lease_of(1);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();
  worker.registration.slots = {running(wanted, granted->slots[0].address)};
  return_worker(worker);
  simulation.run_for(11s);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_EQ(worker.slots_stopped[0].lease, wanted.lease);
}

TEST_F(Leases, SlotThatANodeBringsBackMuchLaterIsStopped) {
  start_head();
  FakeWorker& worker = add_worker(1);
  simulation.run_for(1min);
  protocol::RunningSlot slot;
  slot.lease = LeaseId::random(simulation.random());
  slot.address = worker.new_process();
  worker.registration.slots = {slot};
  ASSERT_TRUE(register_worker(worker));
  simulation.run_for(100ms);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_EQ(worker.slots_stopped[0].lease, slot.lease);
}

TEST_F(Leases, SlotThatIsStoppingIsNotGrantedAgainWhenItsNodeRegistersAgain) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto wanted = lease_of(2);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();  // A lease that was taken over takes further slots that nodes bring.
  const ProcessId returned = granted->slots[0].address.process;
  worker.registration.slots = {running(wanted, granted->slots[0].address),
                               running(wanted, granted->slots[1].address)};
  return_worker(worker);
  const auto client = driver();
  ASSERT_EQ(renew(client, wanted.lease)->slots.size(), 2u);
  worker.hold_stops = true;
  give_back(client, wanted.lease, {returned});
  ASSERT_TRUE(register_worker(worker));
  const auto rest = renew(client, wanted.lease);
  ASSERT_TRUE(rest);
  ASSERT_EQ(rest->slots.size(), 1u);
  EXPECT_NE(rest->slots[0].address.process, returned);
  EXPECT_EQ(cpu_free(client, worker.node), 2);
  // Nor if the list was on its way while the stop was answered.
  worker.let_go();
  simulation.run_for(100ms);
  ASSERT_TRUE(register_worker(worker));
  EXPECT_EQ(renew(client, wanted.lease)->slots.size(), 1u);
  EXPECT_EQ(cpu_free(client, worker.node), 3);
}

TEST_F(Leases, SlotThatWasStoppingWhenItsNodeWasLostIsStoppedWhenItIsBack) {
  start_head();
  FakeWorker& worker = add_worker(4);
  FakeWorker& other = add_worker(4);
  const auto client = driver();
  const auto wanted = lease_of(8);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  const auto here = std::ranges::find(granted->slots, worker.node,
                                      [](const auto& slot) { return slot.address.node; });
  ASSERT_NE(here, granted->slots.end());
  worker.hold_stops = true;
  give_back(client, wanted.lease, {here->address.process});
  worker.beats = false;
  worker.head->close();
  simulation.run_until([&] { return look(client, worker.node).state == "dead"; }, 30s);
  worker.let_go();
  worker.slots_stopped.clear();
  ASSERT_TRUE(renew(client, wanted.lease));
  worker.beats = true;
  worker.registration.slots = {running(wanted, here->address)};
  return_worker(worker);
  simulation.run_for(100ms);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_EQ(worker.slots_stopped[0].processes, std::vector<ProcessId>{here->address.process});
  EXPECT_EQ(cpu_free(client, worker.node), 4);
  EXPECT_EQ(cpu_free(client, other.node), 0);
}

TEST_F(Leases, NewHeadWaitsForTheRoomOfSlotsThatStop) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto wanted = lease_of(3);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();
  // The head before had two of them stopped.
  for (const auto& slot : granted->slots) {
    worker.registration.slots.push_back(running(wanted, slot.address));
  }
  worker.registration.slots[0].stopping = worker.registration.slots[1].stopping = true;
  worker.hold_stops = true;
  return_worker(worker);
  const auto client = driver();
  EXPECT_EQ(cpu_free(client, worker.node), 1);
  const auto rest = renew(client, wanted.lease);
  ASSERT_TRUE(rest);
  ASSERT_EQ(rest->slots.size(), 1u);
  EXPECT_EQ(rest->slots[0].address.process, granted->slots[2].address.process);
  const auto other = begin<protocol::LeaseGranted>(client, Method::request_lease, lease_of(2));
  simulation.run_for(1s);
  ASSERT_TRUE(other->has_value() && **other);
  EXPECT_EQ((**other)->slots.size(), 1u) << "for more there is no room";
  worker.let_go();
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, worker.node), 2);
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_EQ(worker.slots_stopped[0].processes.size(), 2u);
}

TEST_F(Leases, WhatOnlyStopsOnANewHeadIsALeaseForAWhile) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const auto wanted = lease_of(1);
  const auto granted = request(driver(), wanted);
  ASSERT_TRUE(granted);
  restart_head();
  worker.registration.slots = {running(wanted, granted->slots[0].address)};
  worker.registration.slots[0].stopping = true;
  worker.hold_stops = true;
  return_worker(worker);
  const auto client = driver();
  EXPECT_EQ(cpu_free(client, worker.node), 1);
  // Once more, while the stop goes on: they are the same.
  ASSERT_TRUE(register_worker(worker));
  EXPECT_EQ(cpu_free(client, worker.node), 1);
  worker.let_go();
  simulation.run_for(11s);
  EXPECT_EQ(cpu_free(client, worker.node), 2);
  EXPECT_EQ(code_of(renew(client, wanted.lease)), Code::not_found);
}

TEST_F(Leases, SlotThatIsMissingWhenItsNodeRegistersAgainIsGone) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const auto client = driver();
  const auto wanted = lease_of(2);
  const auto granted = request(client, wanted);
  ASSERT_TRUE(granted);
  worker.registration.slots = {running(wanted, granted->slots[1].address)};
  ASSERT_TRUE(register_worker(worker));
  const auto rest = renew(client, wanted.lease);
  ASSERT_TRUE(rest);
  ASSERT_EQ(rest->slots.size(), 1u);
  EXPECT_EQ(rest->slots[0].address.process, granted->slots[1].address.process);
}

}  // namespace
}  // namespace troupe::head
