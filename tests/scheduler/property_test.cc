// Random histories against a plain model that believes only the decisions.
// TROUPE_SEED=n replays one history; TROUPE_SEEDS=n bounds how many are tried.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "base/random.h"
#include "scenario.h"

namespace troupe::scheduler {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::vector<uint64_t> seeds(uint64_t count) {
  if (const char* given = std::getenv("TROUPE_SEED")) return {std::strtoull(given, nullptr, 10)};
  if (const char* most = std::getenv("TROUPE_SEEDS"))
    count = std::min<uint64_t>(count, std::strtoull(most, nullptr, 10));
  std::vector<uint64_t> result;
  for (uint64_t seed = 1; seed <= count; ++seed) result.push_back(seed);
  return result;
}

// What a node has left, added up from decisions, in the plainest way.
struct ModelNode {
  ResourceVector total;
  ResourceVector left;
  int64_t cpu_left;  // Below 0 when lent CPU was taken again.
  std::vector<int64_t> device_left;
  std::vector<Label> labels;
  bool draining = false;
  uint32_t units = 0;  // Of a bundle.

  explicit ModelNode(const ResourceVector& all = {}, std::vector<Label> own_labels = {})
      : total(all),
        left(all),
        cpu_left(all.cpu_milli),
        device_left(static_cast<size_t>(all.gpu_milli / 1000), 1000),
        labels(std::move(own_labels)) {}
  // A bundle, with the devices that it holds.
  ModelNode(const ResourceVector& all, const Devices& devices) : ModelNode(all) {
    device_left.assign(devices.empty() ? 0 : devices.back().device + 1, 0);
    for (const DeviceShare& share : devices) device_left[share.device] = share.milli;
  }
  bool has_all(const std::vector<LabelSelector>& selectors) const {
    return std::all_of(selectors.begin(), selectors.end(),
                       [&](const auto& selector) { return matches(selector, labels); });
  }

  bool fits(const ResourceVector& demand) const {
    if (left.cpu_milli < demand.cpu_milli || left.memory_mib < demand.memory_mib) return false;
    for (const CustomAmount& amount : demand.custom)
      if (left.custom_milli(amount.name) < amount.milli) return false;
    if (demand.gpu_milli == 0) return true;
    if (demand.gpu_milli < 1000)
      return std::any_of(device_left.begin(), device_left.end(),
                         [&](int64_t free) { return free >= demand.gpu_milli; });
    return std::count(device_left.begin(), device_left.end(), 1000) * 1000 >= demand.gpu_milli;
  }

  void take(const ResourceVector& demand, const Devices& devices) {
    ASSERT_TRUE(subtract(left, demand));
    use_cpu(demand.cpu_milli);
    int64_t sum = 0;
    for (const DeviceShare& share : devices) {
      ASSERT_LT(share.device, device_left.size());
      device_left[share.device] -= share.milli;
      ASSERT_GE(device_left[share.device], 0) << "device over-allocated";
      sum += share.milli;
    }
    ASSERT_EQ(sum, demand.gpu_milli);
    const bool fraction = demand.gpu_milli > 0 && demand.gpu_milli < 1000;
    ASSERT_TRUE(!fraction || devices.size() == 1);
  }
  void give_back(const ResourceVector& demand, const Devices& devices) {
    ASSERT_TRUE(add(left, demand));
    use_cpu(-demand.cpu_milli);
    for (const DeviceShare& share : devices) device_left[share.device] += share.milli;
  }
  void use_cpu(int64_t milli) {
    cpu_left -= milli;
    left.cpu_milli = std::max<int64_t>(0, cpu_left);
  }
};

struct ModelRequest {
  std::vector<ResourceVector> bundles;
  uint32_t wanted = 0;  // Units that it should hold or wait for.
  std::map<uint32_t, Placed> held;
  std::set<uint32_t> lending;  // Of those held.
  std::set<uint32_t> numbers;  // Every unit number ever granted.
  int64_t infeasible_told = 0;
  bool broken = false;  // A gang that lost a node.
  bool closed = false;  // A gang that was released while something lay in its bundles.
  Affinity affinity;
  std::map<uint32_t, ModelNode> rooms;  // Of a gang's bundles that it holds.

  bool open() const { return !broken && !closed && held.size() == bundles.size(); }
  bool gang() const { return bundles.size() > 1; }
  const ResourceVector& demand(uint32_t unit) const { return gang() ? bundles[unit] : bundles[0]; }
};

class Model {
 public:
  std::map<NodeId, ModelNode> nodes;
  std::map<RequestId, ModelRequest> requests;

  void take(const Decisions& decisions) {
    for (const Decision& decision : decisions) std::visit(*this, decision);
  }
  void free(const RequestId& id, uint32_t unit) {
    lend(id, unit, false);
    ModelRequest& request = requests.at(id);
    const Placed placed = request.held.at(unit);
    request.held.erase(unit);
    if (placed.bundle) return leave(request.affinity.within->gang, placed, request.demand(unit));
    if (request.gang()) {
      ASSERT_EQ(request.rooms.at(unit).units, 0u) << "a bundle in use was freed";
      request.rooms.erase(unit);
    }
    if (nodes.count(placed.node) != 0)
      nodes.at(placed.node).give_back(request.demand(unit), placed.devices);
  }
  void leave(const GangId& id, const Placed& placed, const ResourceVector& demand) {
    ModelRequest& gang = requests.at(id);
    ModelNode& room = gang.rooms.at(*placed.bundle);
    room.give_back(demand, placed.devices);
    if (--room.units > 0 || !gang.closed) return;
    free(id, *placed.bundle);
    if (gang.held.empty()) requests.erase(id);
  }
  // What its bundles are free of goes back at once, the rest once it is empty.
  void close(const RequestId& id) {
    ModelRequest& gang = requests.at(id);
    gang.closed = true;
    const auto held = gang.held;
    for (const auto& [unit, placed] : held)
      if (gang.rooms.at(unit).units == 0) free(id, unit);
    if (gang.held.empty()) requests.erase(id);
  }
  void lend(const RequestId& id, uint32_t unit, bool lends) {
    ModelRequest& request = requests.at(id);
    const auto held = request.held.find(unit);
    if (held == request.held.end()) return;
    const bool changed =
        lends ? request.lending.insert(unit).second : request.lending.erase(unit) > 0;
    if (!changed) return;
    const int64_t cpu_milli = request.demand(unit).cpu_milli;
    ModelNode* room = nullptr;
    if (held->second.bundle) {
      room = &requests.at(request.affinity.within->gang).rooms.at(*held->second.bundle);
    } else if (const auto node = nodes.find(held->second.node); node != nodes.end()) {
      room = &node->second;
    }
    if (room != nullptr) room->use_cpu(lends ? -cpu_milli : cpu_milli);
  }
  void drop(const RequestId& id) {
    const auto it = requests.find(id);
    if (it == requests.end()) return;
    if (it->second.gang()) return close(id);
    while (!it->second.held.empty()) free(id, it->second.held.begin()->first);
    requests.erase(it);
  }

  void operator()(const LeaseGranted& granted) {
    for (const Slot& slot : granted.slots)
      hold(granted.lease, {slot.slot, granted.node, slot.devices, granted.bundle});
  }
  void operator()(const ActorPlaced& placed) {
    hold(placed.actor, {0, placed.node, placed.devices, placed.bundle});
  }
  void operator()(const GangPlaced& placed) {
    ASSERT_EQ(placed.bundles.size(), requests.at(placed.gang).bundles.size());
    ASSERT_TRUE(requests.at(placed.gang).held.empty());
    for (const Placed& bundle : placed.bundles) {
      hold(placed.gang, bundle);
      ModelRequest& gang = requests.at(placed.gang);
      gang.rooms[bundle.unit] = ModelNode(gang.bundles[bundle.unit], bundle.devices);
    }
  }
  void operator()(const Revoked& revoked) {
    ASSERT_EQ(requests.count(revoked.id), 1u);
    if (revoked.reason == RevokeReason::node_draining) return;
    const bool lease = std::holds_alternative<LeaseId>(revoked.id);
    for (const Placed& unit : revoked.units)
      ASSERT_EQ(requests.at(revoked.id).held.at(unit.unit), unit);
    if (requests.at(revoked.id).gang() && revoked.reason == RevokeReason::job_removed)
      return close(revoked.id);
    for (const Placed& unit : revoked.units) free(revoked.id, unit.unit);
    if (revoked.reason == RevokeReason::node_lost && lease) return;  // It waits again.
    requests.at(revoked.id).broken = true;
    if (requests.at(revoked.id).held.empty()) requests.erase(revoked.id);
  }
  void operator()(const Infeasible& infeasible) {
    EXPECT_EQ(++requests.at(infeasible.id).infeasible_told, 1) << "told twice";
  }
  void operator()(const Rejected& rejected) {
    FAIL() << to_string(rejected.id) << rejected.error.to_string();
  }

  std::set<NodeId> kept;  // Before the event, or after it.

 private:
  void hold_within(const ModelRequest& request, const Placed& placed) {
    const WithinGang& within = *request.affinity.within;
    ASSERT_TRUE(placed.bundle);
    ASSERT_EQ(within.bundle.value_or(*placed.bundle), *placed.bundle);
    ModelRequest& gang = requests.at(within.gang);
    ASSERT_TRUE(gang.open()) << "something new in a gang that is not whole";
    ASSERT_EQ(gang.held.at(*placed.bundle).node, placed.node);
    ASSERT_FALSE(nodes.at(placed.node).draining);
    ModelNode& room = gang.rooms.at(*placed.bundle);
    room.take(request.demand(placed.unit), placed.devices);
    ++room.units;
  }
  void check_preference(const ModelRequest& request, const Placed& placed) {
    const Affinity& affinity = request.affinity;
    ASSERT_TRUE(nodes.at(placed.node).has_all(affinity.selectors)) << "a selector was ignored";
    const auto preferred = [&](const NodeId& id, const ModelNode& node) {
      return id == affinity.preferred_node.value_or(id) && node.has_all(affinity.preferred);
    };
    if (!affinity.has_preference() || request.gang()) return;
    if (preferred(placed.node, nodes.at(placed.node))) return;
    for (const auto& [id, node] : nodes) {
      if (node.draining || kept.count(id) != 0 || !node.has_all(affinity.selectors)) continue;
      ASSERT_FALSE(preferred(id, node) && node.fits(request.bundles[0])) << "a preference ignored";
    }
  }
  void hold(const RequestId& id, const Placed& placed) {
    ASSERT_EQ(requests.count(id), 1u) << "granted to nobody";
    ModelRequest& request = requests.at(id);
    ASSERT_TRUE(request.numbers.insert(placed.unit).second) << "unit granted twice";
    request.held[placed.unit] = placed;
    ASSERT_LE(request.held.size(), request.wanted);
    if (request.affinity.within) return hold_within(request, placed);
    ASSERT_FALSE(placed.bundle);
    check_preference(request, placed);
    ASSERT_FALSE(nodes.at(placed.node).draining);
    nodes.at(placed.node).take(request.demand(placed.unit), placed.devices);
  }
};

struct Step {
  Event event;
  Instant now;
};

// Makes up events as it goes, applies them and checks the scheduler against the model.
class History {
 public:
  History(uint64_t seed, uint64_t hash_seed)
      : random_(seed),
        scheduler_({.lease_term = seconds(20), .patience = seconds(3), .hash_seed = hash_seed}) {}

  void run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFatalFailure(); ++i) {
      now_ += milliseconds(random_.below(400));
      apply(next_event());
      check();
    }
  }

  // Gives everything back; then every node must be whole and nothing may wait for what could run.
  void finish() {
    apply(JobRemoved{job(0)});
    while (!model_.requests.empty() && !testing::Test::HasFatalFailure()) {
      const RequestId id = model_.requests.begin()->first;
      std::visit([&](const auto& typed) { apply(end_of(typed)); }, id);
      check();
    }
    for (const NodeView& node : scheduler_.nodes()) {
      EXPECT_EQ(node.available, node.total);
      for (const int64_t free : node.device_free_milli) EXPECT_EQ(free, 1000);
      EXPECT_FALSE(node.kept);
    }
    EXPECT_EQ(scheduler_.pending_units(), 0u);
    EXPECT_TRUE(scheduler_.pending().empty());
    EXPECT_FALSE(scheduler_.next_deadline());
  }

  const std::vector<Step>& steps() const { return steps_; }
  const std::string& log() const { return log_; }

 private:
  static LeaseReturned end_of(const LeaseId& id) { return {id, {}}; }
  static ActorReleased end_of(const ActorId& id) { return {id}; }
  static GangReleased end_of(const GangId& id) { return {id}; }
  static JobId job(uint64_t n) { return make_id<JobId>(n); }

  ResourceVector some_demand() {
    static const std::vector<ResourceVector> shapes = {
        cpus(1),
        cpus(2),
        cpus(5),
        gpus(1000, 1),
        gpus(300),
        gpus(600, 1),
        gpus(2000),
        gpus(4000, 2),
        {},
        {.cpu_milli = 500, .memory_mib = 700},
        {.cpu_milli = 1000, .custom = {{"license", 1000}}},
        gpus(16000),
    };
    return shapes[random_.below(shapes.size())];
  }
  ResourceVector some_total() {
    return {.cpu_milli = static_cast<int64_t>(1 + random_.below(8)) * 1000,
            .memory_mib = static_cast<int64_t>(random_.below(3)) * 1000,
            .gpu_milli = static_cast<int64_t>(random_.below(5)) * 1000,
            .custom = random_.chance(0.3) ? std::vector<CustomAmount>{{"license", 2000}}
                                          : std::vector<CustomAmount>{}};
  }
  std::vector<Label> some_labels() {
    if (random_.chance(0.5)) return {};
    return {{"zone", random_.chance(0.5) ? "a" : "b"}};
  }
  std::vector<LabelSelector> some_selectors() {
    if (random_.chance(0.8)) return {};
    static const std::vector<LabelSelector> selectors = {{"zone", LabelTest::in, {"a"}},
                                                         {"zone", LabelTest::in, {"a", "b"}},
                                                         {"zone", LabelTest::not_in, {"b"}},
                                                         {"zone", LabelTest::exists, {}},
                                                         {"zone", LabelTest::absent, {}}};
    return {pick(selectors)};
  }
  Affinity some_affinity() {
    const auto gangs = open_gangs();
    if (random_.chance(0.4) && !gangs.empty()) {
      const GangId gang = pick(gangs);
      const auto bundles = static_cast<uint32_t>(model_.requests.at(gang).bundles.size());
      if (random_.chance(0.5)) return {.within = WithinGang{gang, {}}};
      return {.within = WithinGang{gang, static_cast<uint32_t>(random_.below(bundles))}};
    }
    Affinity affinity{.selectors = some_selectors(), .preferred = some_selectors()};
    if (random_.chance(0.1) && !model_.nodes.empty()) affinity.preferred_node = some_node();
    return affinity;
  }
  std::vector<GangId> open_gangs() const {
    std::vector<GangId> gangs;
    for (const GangId& gang : known<GangId>())
      if (!model_.requests.at(gang).closed) gangs.push_back(gang);
    return gangs;
  }
  template <class IdType>
  std::vector<IdType> known() const {
    std::vector<IdType> ids;
    for (const auto& [id, request] : model_.requests)
      if (const auto* typed = std::get_if<IdType>(&id)) ids.push_back(*typed);
    return ids;
  }
  template <class T>
  const T& pick(const std::vector<T>& from) {
    return from[random_.below(from.size())];
  }

  Event next_event() {
    const uint64_t dice = random_.below(100);
    const auto priority = static_cast<int32_t>(random_.below(3));
    const JobId some_job = job(random_.below(4));
    const Strategy strategy = random_.chance(0.3) ? Strategy::spread : Strategy::pack;
    if (dice < 6 || model_.nodes.empty())
      return NodeAdded{make_id<NodeId>(next_++), some_total(), some_labels()};
    if (dice < 9) return NodeRemoved{some_node()};
    if (dice < 11) return NodeDraining{some_node()};
    if (dice < 31)
      return LeaseRequested{.lease = make_id<LeaseId>(next_++),
                            .job = some_job,
                            .demand = some_demand(),
                            .slots = static_cast<uint32_t>(1 + random_.below(6)),
                            .priority = priority,
                            .affinity = some_affinity(),
                            .strategy = strategy};
    if (dice < 43)
      return ActorRequested{.actor = make_id<ActorId>(next_++),
                            .job = some_job,
                            .demand = some_demand(),
                            .priority = priority,
                            .restart = random_.chance(0.2),
                            .affinity = some_affinity(),
                            .strategy = strategy};
    if (dice < 51)
      return GangRequested{
          .gang = make_id<GangId>(next_++),
          .job = some_job,
          .bundles = std::vector<ResourceVector>(2 + random_.below(4), some_demand()),
          .strategy = static_cast<GangStrategy>(random_.below(4)),
          .priority = priority,
          .affinity = {.selectors = some_selectors(), .preferred = some_selectors()}};
    if (dice < 53) return JobRemoved{some_job};
    if (dice < 57 && !model_.requests.empty()) {
      auto it = model_.requests.begin();
      std::advance(it, random_.below(model_.requests.size()));
      return Cancelled{it->first};
    }
    const auto leases = known<LeaseId>();
    const auto actors = known<ActorId>();
    const auto gangs = known<GangId>();
    if (dice < 65 && !actors.empty()) return ActorReleased{pick(actors)};
    if (dice < 71 && !gangs.empty()) return GangReleased{pick(gangs)};
    if (leases.empty()) return TimePassed{};
    const LeaseId lease = pick(leases);
    const auto& held = model_.requests.at(lease).held;
    if (dice < 77) return LeaseRenewed{lease};
    if (dice < 81) return LeaseReturned{lease, {}};
    if (held.empty()) return TimePassed{};
    if (dice < 85) return SlotLost{lease, held.begin()->first};
    if (dice < 93) return SlotWaits{lease, held.begin()->first, random_.chance(0.6)};
    return LeaseReturned{lease, {held.begin()->first}};
  }
  NodeId some_node() {
    auto it = model_.nodes.begin();
    std::advance(it, random_.below(model_.nodes.size()));
    return it->first;
  }

  void apply(const Event& event) {
    std::visit([this](const auto& typed) { before(typed); }, event);
    steps_.push_back({event, now_});
    const Decisions decisions = scheduler_.apply(event, now_);
    for (const NodeView& node : scheduler_.nodes())
      if (node.kept) model_.kept.insert(node.node);
    // What the event itself frees, after what time has freed.
    size_t first = 0;
    for (; first < decisions.size(); ++first) {
      const auto* revoked = std::get_if<Revoked>(&decisions[first]);
      if (revoked == nullptr || revoked->reason != RevokeReason::lease_expired) break;
    }
    model_.take({decisions.begin(), decisions.begin() + static_cast<ptrdiff_t>(first)});
    std::visit([this](const auto& typed) { meant(typed); }, event);
    const Decisions rest(decisions.begin() + static_cast<ptrdiff_t>(first), decisions.end());
    if (const auto* lost = std::get_if<NodeRemoved>(&event)) {
      Decisions revoked;
      Decisions others;
      for (const Decision& decision : rest) {
        const auto* typed = std::get_if<Revoked>(&decision);
        (typed != nullptr ? revoked : others).push_back(decision);
      }
      model_.take(revoked);
      model_.nodes.erase(lost->node);
      model_.take(others);
    } else {
      model_.take(rest);
    }
    if (const auto* removed = std::get_if<JobRemoved>(&event)) {
      // Those that held something were revoked; those that waited go silently.
      for (const RequestId& id : jobs_[removed->job]) model_.drop(id);
      jobs_.erase(removed->job);
    }
    for (const Decision& decision : decisions) log_ += to_string(decision) + "\n";
  }

  // What must be known before the decisions of an event.
  template <class T>
  void before(const T&) {}
  void before(const LeaseRequested& event) {
    model_.requests[event.lease] = {
        .bundles = {event.demand}, .wanted = event.slots, .affinity = event.affinity};
    jobs_[event.job].push_back(event.lease);
  }
  void before(const ActorRequested& event) {
    model_.requests[event.actor] = {
        .bundles = {event.demand}, .wanted = 1, .affinity = event.affinity};
    jobs_[event.job].push_back(event.actor);
  }
  void before(const GangRequested& event) {
    model_.requests[event.gang] = {.bundles = event.bundles,
                                   .wanted = static_cast<uint32_t>(event.bundles.size()),
                                   .affinity = event.affinity};
    jobs_[event.job].push_back(event.gang);
  }
  void before(const NodeAdded& event) {
    model_.nodes[event.node] = ModelNode(event.total, event.labels);
  }

  // What an event does of itself, if its subject has not expired under it.
  template <class T>
  void meant(const T&) {}
  void meant(const NodeDraining& event) { model_.nodes.at(event.node).draining = true; }
  void meant(const LeaseReturned& event) {
    const auto it = model_.requests.find(event.lease);
    if (it == model_.requests.end()) return;
    if (event.slots.empty()) return model_.drop(event.lease);
    for (const uint32_t slot : event.slots) {
      model_.free(event.lease, slot);
      if (--it->second.wanted == 0) return model_.drop(event.lease);
    }
  }
  void meant(const SlotLost& event) {
    if (model_.requests.count(event.lease) != 0) model_.free(event.lease, event.slot);
  }
  void meant(const SlotWaits& event) {
    if (model_.requests.count(event.lease) != 0)
      model_.lend(event.lease, event.slot, event.waiting);
  }
  void meant(const ActorReleased& event) { model_.drop(event.actor); }
  void meant(const GangReleased& event) { model_.drop(event.gang); }
  void meant(const Cancelled& event) {
    const auto it = model_.requests.find(event.id);
    if (it == model_.requests.end()) return;
    if (it->second.held.empty()) return model_.drop(event.id);
    if (!it->second.gang()) it->second.wanted = static_cast<uint32_t>(it->second.held.size());
  }

  // After every event.
  void check() {
    std::set<NodeId>& kept = model_.kept;
    kept.clear();
    for (const NodeView& node : scheduler_.nodes()) {
      const ModelNode& model = model_.nodes.at(node.node);
      ASSERT_EQ(node.available, model.left);
      ASSERT_EQ(node.device_free_milli, model.device_left);
      ASSERT_EQ(node.draining, model.draining);
      if (node.kept) kept.insert(node.node);
    }
    uint64_t waiting = 0;
    for (const auto& [id, request] : model_.requests) {
      SCOPED_TRACE(to_string(id));
      const Explanation why = scheduler_.explain(id);
      ASSERT_EQ(why.units_held, request.held.size());
      const uint64_t missing = request.broken || request.closed
                                   ? 0
                                   : request.wanted - static_cast<uint32_t>(request.held.size());
      ASSERT_EQ(why.units_pending, missing) << "lost or duplicated";
      waiting += missing;
      if (missing > 0 && request.affinity.within) {
        check_nothing_fits_within(request, why);
      } else if (missing > 0)
        check_nothing_fits(request, kept, why);
    }
    ASSERT_EQ(scheduler_.pending_units(), waiting);
  }

  // Work conserving: what waits fits no node that is not kept for another.
  void check_nothing_fits(const ModelRequest& request, const std::set<NodeId>& kept,
                          const Explanation& why) {
    const ResourceVector& demand = request.bundles[0];
    bool could = false;
    for (const auto& [id, node] : model_.nodes) {
      if (node.draining || !node.has_all(request.affinity.selectors)) continue;
      could = could || ModelNode(node.total).fits(demand);
      const bool closed = request.gang() || kept.count(id) != 0;
      ASSERT_TRUE(closed || !node.fits(demand)) << why.text;
    }
    if (request.gang()) return check_gang_does_not_fit(request, kept, why);
    ASSERT_EQ(why.state == RequestState::infeasible, !could) << why.text;
    ASSERT_EQ(request.infeasible_told > 0 || could, true);
  }
  // The same for what belongs in a gang: in none of its bundles.
  void check_nothing_fits_within(const ModelRequest& request, const Explanation& why) {
    const auto& [id, wanted] = *request.affinity.within;
    const auto found = model_.requests.find(id);
    const bool gone = found == model_.requests.end() || found->second.closed;
    bool could = false;
    for (uint32_t i = 0; !gone && i < found->second.bundles.size(); ++i)
      could = could || scheduler::could_fit(found->second.bundles[i], request.bundles[0]);
    ASSERT_EQ(why.state == RequestState::infeasible, !could) << why.text;
    if (gone || !found->second.open()) return;
    for (const auto& [bundle, room] : found->second.rooms) {
      const ModelNode& node = model_.nodes.at(found->second.held.at(bundle).node);
      if (node.draining || wanted.value_or(bundle) != bundle) continue;
      ASSERT_FALSE(room.fits(request.bundles[0])) << why.text;
    }
  }
  // The gangs here have equal bundles, so room adds up; only packs and spreads may use it freely.
  void check_gang_does_not_fit(const ModelRequest& request, const std::set<NodeId>& kept,
                               const Explanation& why) {
    if (why.text.empty() || !free_to_mix(request)) return;
    size_t room = 0;
    for (const auto& [id, node] : model_.nodes) {
      if (node.draining || kept.count(id) != 0 || !node.has_all(request.affinity.selectors))
        continue;
      ModelNode rest = node;
      while (room < request.bundles.size() && rest.fits(request.bundles[0])) {
        take_one(rest, request.bundles[0]);
        ++room;
      }
    }
    ASSERT_LT(room, request.bundles.size()) << why.text;
  }
  bool free_to_mix(const ModelRequest& request) const {
    for (const Step& step : steps_) {
      const auto* gang = std::get_if<GangRequested>(&step.event);
      if (gang == nullptr || &model_.requests.find(gang->gang)->second != &request) continue;
      return gang->strategy == GangStrategy::pack || gang->strategy == GangStrategy::spread;
    }
    return false;
  }
  static void take_one(ModelNode& node, const ResourceVector& demand) {
    Devices devices;
    int64_t missing = demand.gpu_milli;
    const bool fraction = missing > 0 && missing < 1000;
    std::vector<uint32_t> order(node.device_left.size());
    for (uint32_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return node.device_left[a] < node.device_left[b];
    });
    for (const uint32_t i : order) {
      if (missing <= 0) break;
      const int64_t share = fraction ? missing : 1000;
      if (node.device_left[i] < share) continue;
      devices.push_back({i, share});
      missing -= share;
    }
    node.take(demand, devices);
  }

  SeededRandom random_;
  Scheduler scheduler_;
  Model model_;
  std::map<JobId, std::vector<RequestId>> jobs_;
  uint64_t next_ = 1;
  Instant now_{seconds(1)};
  std::vector<Step> steps_;
  std::string log_;
};

std::string replay(const std::vector<Step>& steps, uint64_t hash_seed) {
  Scheduler scheduler({.lease_term = seconds(20), .patience = seconds(3), .hash_seed = hash_seed});
  std::string log;
  for (const Step& step : steps)
    for (const Decision& decision : scheduler.apply(step.event, step.now))
      log += to_string(decision) + "\n";
  return log;
}

std::string first_difference(const std::string& a, const std::string& b) {
  const auto [in_a, in_b] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  const auto line = [](const std::string& text, auto at) {
    const auto offset = static_cast<size_t>(at - text.begin());
    const size_t start = offset == 0 ? 0 : text.rfind('\n', offset - 1) + 1;
    return text.substr(start, text.find('\n', offset) - start);
  };
  return line(a, in_a) + "\nagainst\n" + line(b, in_b);
}

TEST(SchedulerProperty, AccountsAreExactAndWorkIsConservedAndAllIsFreed) {
  for (const uint64_t seed : seeds(150)) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    History history(seed, seed);
    history.run(200);
    if (!testing::Test::HasFailure()) history.finish();
    ASSERT_FALSE(testing::Test::HasFailure());
  }
}

TEST(SchedulerProperty, EqualEventsGiveEqualDecisionsByteForByte) {
  for (const uint64_t seed : seeds(40)) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    History history(seed, 0);
    history.run(200);
    ASSERT_GT(history.log().size(), 1000u);
    ASSERT_TRUE(replay(history.steps(), 0) == history.log());
    ASSERT_TRUE(replay(history.steps(), seed * 0x9e3779b97f4a7c15) == history.log());
  }
}

// A request that waits in vain and is cancelled leaves no trace, unless nodes were kept for it.
TEST(SchedulerProperty, ACancelledRequestThatHeldNothingLeavesNoTrace) {
  uint64_t tested = 0;
  for (const uint64_t seed : seeds(150)) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    SeededRandom random(seed);
    History history(seed, 0);
    history.run(150);
    std::vector<Step> steps = history.steps();
    const size_t from = random.below(steps.size() - 2);
    const size_t until = from + 1 + random.below(std::min<size_t>(12, steps.size() - from - 1));
    const LeaseId ghost = make_id<LeaseId>(1'000'000);
    const LeaseRequested request{.lease = ghost,
                                 .job = make_id<JobId>(99),
                                 .demand = random.chance(0.5) ? gpus(3000, 1) : cpus(5),
                                 .slots = 2,
                                 .priority = 2};
    const Step cancel{Cancelled{ghost}, steps[until].now};
    const Step ask{request, steps[from].now};
    if (cancel.now - ask.now >= seconds(3)) continue;  // Nodes may have been kept.
    steps.insert(steps.begin() + static_cast<ptrdiff_t>(until) + 1, cancel);
    steps.insert(steps.begin() + static_cast<ptrdiff_t>(from) + 1, ask);
    const std::string log = replay(steps, 0);
    if (log.find("granted lease " + ghost.to_string()) != log.npos) continue;
    std::string without;
    for (size_t at = 0; at < log.size();) {
      const size_t end = log.find('\n', at) + 1;
      const std::string line = log.substr(at, end - at);
      if (line.find(ghost.to_string()) == line.npos) without += line;
      at = end;
    }
    ASSERT_TRUE(without == history.log()) << first_difference(without, history.log());
    ++tested;
  }
  // A single seed may well be one of those passed over.
  EXPECT_TRUE(tested > 0 || std::getenv("TROUPE_SEED") != nullptr);
}

// Whatever streams of small work there are, the largest request starts within its patience and
// one lease term, for leases are what keeps it out.
TEST(SchedulerProperty, TheWaitOfTheLargestIsBounded) {
  for (const uint64_t seed : seeds(50)) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    SeededRandom random(seed);
    Scenario cluster({.lease_term = seconds(5), .patience = seconds(3)});
    const uint64_t nodes = 1 + random.below(4);
    for (uint64_t n = 1; n <= nodes; ++n) cluster.node(n, gpus(4000, 8));
    uint64_t next = 10;
    const auto small = [&] {
      cluster.lease(next++, random.chance(0.5) ? gpus(1000, 1) : cpus(1),
                    static_cast<uint32_t>(1 + random.below(4)));
    };
    while (cluster.scheduler.pending_units() == 0) small();
    cluster.apply(Cancelled{make_id<LeaseId>(next - 1)});  // Nothing more senior waits.
    cluster.gang(1, std::vector<ResourceVector>(nodes, gpus(4000, 8)));
    const Instant asked = cluster.now;
    while (cluster.scheduler.held(make_id<GangId>(1)).empty()) {
      ASSERT_LE(cluster.now - asked, seconds(9)) << cluster.why(make_id<GangId>(1));
      cluster.pass(milliseconds(100));
      small();
    }
  }
}

}  // namespace
}  // namespace troupe::scheduler
