// Reads the state for people: why something waits, what there is, who holds what.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "scheduler/impl.h"

namespace troupe::scheduler {
namespace {

// One resource of a demand, and how much of it a node offers to a single taker.
struct Dimension {
  std::string name;
  int64_t needed = 0;
};

std::vector<Dimension> dimensions(const ResourceVector& demand) {
  std::vector<Dimension> result;
  if (demand.gpu_milli > 0) result.push_back({"gpu", demand.gpu_milli});
  if (demand.cpu_milli > 0) result.push_back({"cpu", demand.cpu_milli});
  if (demand.memory_mib > 0) result.push_back({"memory", demand.memory_mib});
  for (const CustomAmount& amount : demand.custom)
    if (amount.milli > 0) result.push_back({amount.name, amount.milli});
  return result;
}

int64_t offered(const NodeLedger& ledger, const Dimension& dimension, bool when_empty) {
  const ResourceVector& from = when_empty ? ledger.total() : ledger.available();
  if (dimension.name == "cpu") return from.cpu_milli;
  if (dimension.name == "memory") return from.memory_mib;
  if (dimension.name != "gpu") return from.custom_milli(dimension.name);
  if (when_empty) return from.gpu_milli;
  if (dimension.needed >= whole_gpu_milli) return ledger.whole_gpus_free() * whole_gpu_milli;
  return ledger.whole_gpus_free() > 0 ? whole_gpu_milli : ledger.largest_partial_milli();
}

std::string amount_text(std::string_view resource, int64_t amount) {
  return resource == "memory" ? fmt::format("{}MiB", amount) : milli_to_string(amount);
}

std::string needs_text(const Needs& needs) {
  if (!needs.gang) return needs.bundles.front().to_string();
  std::string text = fmt::format("{} bundles of", needs.bundles.size());
  for (size_t i = 0; i < needs.bundles.size();) {
    size_t end = i;
    while (end < needs.bundles.size() && needs.bundles[end] == needs.bundles[i]) ++end;
    text += fmt::format(" {}x{}", end - i, needs.bundles[i].to_string());
    i = end;
  }
  return text;
}

// "; only where zone in (a)" or nothing.
std::string affinity_text(const Affinity& affinity) {
  std::string text;
  const auto put = [&](const std::string& part) {
    text += (text.empty() ? "; only where " : " and ") + part;
  };
  if (affinity.node) put("the node is " + affinity.node->to_string());
  for (const LabelSelector& selector : affinity.selectors) put(to_string(selector));
  return text;
}

}  // namespace

std::string to_string(const std::vector<Shortage>& shortages, std::string_view free_word) {
  std::string text;
  for (const Shortage& shortage : shortages) {
    if (!text.empty()) text += ", ";
    text += fmt::format("{} on {} of them (needs {}, at most {} {})", shortage.resource,
                        shortage.nodes, amount_text(shortage.resource, shortage.needed),
                        amount_text(shortage.resource, shortage.most_available), free_word);
  }
  return text;
}

std::vector<Shortage> Scheduler::Impl::shortages(const ResourceVector& demand,
                                                 const Affinity& affinity, bool when_empty) const {
  std::vector<Shortage> result;
  for (const Dimension& dimension : dimensions(demand)) {
    Shortage shortage{.resource = dimension.name, .needed = dimension.needed};
    cluster.for_each([&](NodeIndex, const Node& node) {
      if (!node.eligible(affinity)) return true;
      const int64_t amount = offered(node.ledger, dimension, when_empty);
      shortage.most_available = std::max(shortage.most_available, amount);
      if (amount < dimension.needed) ++shortage.nodes;
      return true;
    });
    if (shortage.nodes > 0) result.push_back(std::move(shortage));
  }
  std::stable_sort(result.begin(), result.end(),
                   [](const Shortage& a, const Shortage& b) { return a.nodes > b.nodes; });
  return result;
}

std::string Scheduler::Impl::infeasible_text(const Shape& shape) const {
  const Needs& needs = *shape.needs;
  if (needs.affinity.within) return why_not_within(shape);
  size_t eligible = 0;
  cluster.for_each([&](NodeIndex, const Node& node) {
    eligible += node.eligible(needs.affinity) ? 1 : 0;
    return true;
  });
  if (is_shared_out(needs) && !pools.feasible(needs.pool, amounts_of(needs)))
    return fmt::format("{} is more than pool '{}' may ever use", needs_text(needs),
                       pools.spec(needs.pool).name);
  std::string text =
      fmt::format("{} fits no node, were it empty: {} of {} nodes are eligible{}",
                  needs_text(needs), eligible, cluster.size(), affinity_text(needs.affinity));
  for (const ResourceVector& bundle : needs.bundles) {
    const std::vector<Shortage> lacking = shortages(bundle, needs.affinity, /*when_empty=*/true);
    if (eligible == 0 || lacking.empty() || lacking.front().nodes < eligible) continue;
    return text + "; short of " + to_string(lacking, "in all");
  }
  if (needs.gang && eligible > 0) {
    const std::string_view how = gang_strategy_name(needs.gang_strategy);
    text += fmt::format("; each bundle alone would fit, not all of them as {}", how);
  }
  return text;
}

Explanation Scheduler::explain(const RequestId& id) const {
  Explanation result;
  const Request* request = impl_->find(id);
  if (request == nullptr) {
    result.text = to_string(id) + ": unknown";
    return result;
  }
  const Shape& shape = *request->shape;
  const Needs& needs = *shape.needs;
  result.units_held = static_cast<uint32_t>(request->held().size());
  result.units_pending = request->units_pending;
  result.text = fmt::format("{}: {} held, {} pending of {}", to_string(id), result.units_held,
                            result.units_pending, needs_text(needs));
  if (request->units_pending == 0) {
    result.state = RequestState::placed;
    return result;
  }
  const bool infeasible = shape.state == Shape::State::infeasible;
  result.state = infeasible ? RequestState::infeasible : RequestState::pending;
  const auto place = shape.waiting.find(request->seniority);
  result.ahead = static_cast<uint64_t>(std::distance(shape.waiting.begin(), place));
  if (result.ahead > 0) result.behind = std::prev(place)->second->id();
  const std::string line = result.behind
                               ? fmt::format("; {} of the same needs go first, next before it {}",
                                             result.ahead, to_string(*result.behind))
                               : "";
  if (shape.state == Shape::State::capped) {
    result.text += "; " + impl_->cap_text(shape) + line;
    return result;
  }
  if (needs.affinity.within) {
    result.text += (infeasible ? "; infeasible: " : "; ") + impl_->why_not_within(shape) + line;
    return result;
  }
  // Of a gang, the first bundle that has no room now is the obstacle to name; if each has room
  // for itself, they lack it together.
  const ResourceVector* obstacle = &needs.bundles.front();
  for (const ResourceVector& bundle : needs.bundles) {
    bool room = false;
    impl_->cluster.for_each([&](NodeIndex, const Node& node) {
      room = node.eligible(needs.affinity) && node.open_to(&shape) && node.ledger.fits(bundle);
      return !room;
    });
    if (room) continue;
    obstacle = &bundle;
    break;
  }
  impl_->cluster.for_each([&](NodeIndex, const Node& node) {
    if (!node.eligible(needs.affinity)) return true;
    ++result.nodes_eligible;
    if (!node.ledger.could_fit(*obstacle)) return true;
    ++result.nodes_feasible;
    if (!node.open_to(&shape)) ++result.nodes_kept;
    return true;
  });
  result.shortages = impl_->shortages(*obstacle, needs.affinity, infeasible);
  if (infeasible) {
    result.text += "; infeasible: " + impl_->infeasible_text(shape);
  } else {
    result.text +=
        fmt::format("; {} of {} eligible nodes could hold {} if empty{}", result.nodes_feasible,
                    result.nodes_eligible, obstacle->to_string(), affinity_text(needs.affinity));
    if (!result.shortages.empty())
      result.text += "; short of " + to_string(result.shortages, "free");
    if (result.nodes_kept > 0)
      result.text += fmt::format("; {} kept for {}", result.nodes_kept,
                                 to_string(impl_->keeper->head()->id()));
    if (impl_->keeper == &shape)
      result.text += fmt::format("; {} nodes are kept for it", impl_->kept.size());
  }
  result.text += line;
  return result;
}

std::vector<NodeView> Scheduler::nodes() const {
  std::vector<NodeView> result;
  result.reserve(impl_->cluster.size());
  impl_->cluster.for_each([&](NodeIndex, const Node& node) {
    const auto devices = node.ledger.device_free_milli();
    result.push_back({.node = node.id,
                      .draining = node.draining,
                      .kept = node.kept_for != nullptr,
                      .total = node.ledger.total(),
                      .available = node.ledger.available(),
                      .device_free_milli = {devices.begin(), devices.end()},
                      .labels = node.labels});
    return true;
  });
  std::sort(result.begin(), result.end(),
            [](const NodeView& a, const NodeView& b) { return a.node < b.node; });
  return result;
}

std::vector<Placed> Scheduler::held(const RequestId& id) const {
  const Request* request = impl_->find(id);
  return request != nullptr ? impl_->placed(*request) : std::vector<Placed>{};
}

std::vector<RequestId> Scheduler::holders(const NodeId& id) const {
  std::vector<RequestId> result;
  const auto index = impl_->cluster.find(id);
  if (!index) return result;
  for (const auto& [holder, arrival_number, units] : impl_->cluster[*index].holders) {
    result.push_back(holder->id());
    if (!holder->is_gang()) continue;
    for (const Request::Unit& unit : holder->held()) {
      if (unit.node != *index) continue;
      for (const auto& [member, number, parts] : impl_->cluster[unit.bundle].holders)
        result.push_back(member->id());
    }
  }
  return result;
}

std::vector<RequestId> Scheduler::members(const GangId& id) const {
  std::vector<RequestId> result;
  const Request* gang = impl_->find(RequestId{id});
  if (gang == nullptr) return result;
  for (const auto& [arrival_number, member] : impl_->members_of(*gang))
    result.push_back(member->id());
  return result;
}

std::vector<PendingView> Scheduler::pending() const {
  std::vector<PendingView> result;
  impl_->queue.for_each_shape([&](const Shape& shape) {
    if (shape.waiting.empty()) return;
    const Needs& needs = *shape.needs;
    PendingView view{.bundles = needs.gang ? static_cast<uint32_t>(needs.bundles.size()) : 0,
                     .requests = shape.waiting.size(),
                     .units = shape.units_waiting,
                     .infeasible = shape.state == Shape::State::infeasible};
    for (const ResourceVector& bundle : needs.bundles)
      TROUPE_ASSERT(add(view.demand, bundle), "amounts and counts are bounded");
    result.push_back(std::move(view));
  });
  return result;
}

std::vector<PoolView> Scheduler::pools() const {
  std::vector<PoolView> result;
  for (PoolIndex pool = 1; pool < impl_->pools.size(); ++pool) {
    if (!impl_->pools.is_there(pool)) continue;
    result.push_back({.spec = impl_->pools.spec(pool),
                      .used = impl_->pools.used(pool),
                      .requests = impl_->requests_in[pool],
                      .policy = std::string(impl_->policies[pool]->name())});
  }
  std::ranges::sort(result, {}, [](const PoolView& view) { return view.spec.name; });
  return result;
}

uint64_t Scheduler::pending_units() const {
  return impl_->queue.units_waiting();
}

}  // namespace troupe::scheduler
