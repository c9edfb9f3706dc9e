#include "scheduler/pools.h"

#include <fmt/format.h>

#include <algorithm>
#include <tuple>

namespace troupe::scheduler {
namespace {

constexpr size_t pools_max = 100'000;

Status check(const PoolSpec& spec) {
  const auto refuse = [&](std::string_view why) {
    return error(Code::invalid, fmt::format("pool '{}': {}", spec.name, why));
  };
  if (spec.name.empty()) return refuse("a pool needs a name");
  if (spec.weight < 1 || spec.weight > 1'000'000) return refuse("its weight is 1 to 1,000,000");
  for (size_t i = 0; i < spec.quota.size(); ++i) {
    const auto in_range = [](int64_t amount) {
      return amount == unlimited || (amount >= 0 && amount <= amount_max);
    };
    if (spec.quota[i] < 0 || spec.quota[i] > amount_max || !in_range(spec.limit[i]) ||
        !in_range(spec.lends[i]))
      return refuse(fmt::format("its amount of {} is out of range", amount_names[i]));
    if (spec.limit[i] < spec.quota[i])
      return refuse(fmt::format("its limit of {} is below its quota", amount_names[i]));
  }
  return ok();
}

}  // namespace

Amounts amounts_of(const ResourceVector& resources) {
  return {resources.cpu_milli, resources.memory_mib, resources.gpu_milli};
}

Pools::Pools() : nodes_(2) {
  nodes_[1].spec.name = default_name;
  nodes_[1].depth = 1;
  nodes_[cluster].children = 1;
  by_name_.emplace(default_name, 1);
}

Result<Pools> Pools::replaced_by(std::vector<PoolSpec> specs,
                                 const std::function<bool(PoolIndex)>& has_requests) const {
  if (specs.size() > pools_max)
    return error(Code::invalid, fmt::format("{} pools: at most {}", specs.size(), pools_max));
  if (std::ranges::find(specs, default_name, &PoolSpec::name) == specs.end())
    specs.push_back({.name = std::string(default_name)});
  Pools next;
  next.by_name_.clear();
  next.nodes_.assign(nodes_.size(), {});
  for (PoolSpec& spec : specs) {
    TROUPE_CHECK(check(spec));
    const auto known = by_name_.find(spec.name);
    const auto index =
        known != by_name_.end() ? known->second : static_cast<PoolIndex>(next.nodes_.size());
    if (!next.by_name_.emplace(spec.name, index).second)
      return error(Code::invalid, fmt::format("pool '{}' is there twice", spec.name));
    if (index == next.nodes_.size()) next.nodes_.emplace_back();
    next.nodes_[index].spec = std::move(spec);
  }
  for (const auto& [name, index] : next.by_name_) TROUPE_CHECK(next.link(index));
  for (const auto& [name, index] : next.by_name_) {
    Node& node = next.nodes_[index];
    for (PoolIndex above = index; above != cluster; above = next.nodes_[above].parent) {
      if (++node.depth > next.nodes_.size())
        return error(Code::invalid, fmt::format("pool '{}' lies within itself", name));
    }
  }
  for (PoolIndex i = 1; i < nodes_.size(); ++i) {
    if (!has_requests(i)) continue;
    if (!next.is_there(i))
      return error(Code::conflict, fmt::format("pool '{}' has requests", nodes_[i].spec.name));
    if (next.has_pools(i))
      return error(Code::conflict, fmt::format("pool '{}' has requests, and so no pools in it",
                                               nodes_[i].spec.name));
  }
  TROUPE_CHECK(next.check_reserves());
  next.count_from(*this);
  next.set_total(total());
  return next;
}

std::vector<PoolIndex> Pools::deepest_first() const {
  std::vector<PoolIndex> order;
  for (PoolIndex i = 1; i < nodes_.size(); ++i)
    if (is_there(i)) order.push_back(i);
  std::ranges::stable_sort(order, std::greater{}, [&](PoolIndex i) { return nodes_[i].depth; });
  return order;
}

Status Pools::check_reserves() const {
  std::vector<Amounts> within(nodes_.size(), Amounts{});
  for (const PoolIndex i : deepest_first()) {
    const Node& node = nodes_[i];
    for (size_t r = 0; r < within[i].size(); ++r) {
      if (within[i][r] > node.spec.limit[r])
        return error(Code::invalid,
                     fmt::format("pool '{}': the pools in it reserve more {} than its limit",
                                 node.spec.name, amount_names[r]));
      within[node.parent][r] += std::max(within[i][r], node.reserved[r]);
    }
  }
  return ok();
}

Status Pools::link(PoolIndex index) {
  Node& node = nodes_[index];
  if (!node.spec.parent.empty()) {
    const auto parent = by_name_.find(node.spec.parent);
    if (parent == by_name_.end())
      return error(Code::invalid, fmt::format("pool '{}' lies in '{}', which is no pool",
                                              node.spec.name, node.spec.parent));
    node.parent = parent->second;
  }
  ++nodes_[node.parent].children;
  for (size_t r = 0; r < node.reserved.size(); ++r) {
    node.reserved[r] = node.spec.quota[r] - std::min(node.spec.lends[r], node.spec.quota[r]);
    has_reserves_ = has_reserves_ || node.reserved[r] > 0;
    has_quotas_ = has_quotas_ || node.spec.quota[r] > 0;
    has_caps_ = has_caps_ || has_reserves_ || node.spec.limit[r] != unlimited;
  }
  return ok();
}

// What is used in the pools that have none in them, and all reserves; from below upwards.
void Pools::count_from(const Pools& before) {
  for (const PoolIndex i : deepest_first()) {
    Node& node = nodes_[i];
    if (!has_pools(i) && i < before.nodes_.size() && !before.has_pools(i))
      node.used = before.nodes_[i].used;
    for (size_t r = 0; r < node.used.size(); ++r) nodes_[node.parent].used[r] += counted(node, r);
  }
}

std::optional<PoolIndex> Pools::find(std::string_view name) const {
  const auto found = by_name_.find(name.empty() ? default_name : name);
  if (found == by_name_.end()) return std::nullopt;
  return found->second;
}

std::optional<PoolIndex> Pools::obstacle(PoolIndex pool, const Amounts& more) const {
  Amounts rest = more;
  for (PoolIndex i = pool;; i = nodes_[i].parent) {
    const Node& node = nodes_[i];
    if (i == cluster && !has_reserves_) return std::nullopt;  // The nodes say what there is.
    bool counts = false;
    for (size_t r = 0; r < rest.size(); ++r) {
      if (rest[r] == 0) continue;
      if (rest[r] > node.spec.limit[r] - node.used[r]) return i;
      rest[r] = std::max(node.used[r] + rest[r], node.reserved[r]) - counted(node, r);
      counts = counts || rest[r] > 0;
    }
    if (i == cluster || !counts) return std::nullopt;
  }
}

bool Pools::has_left(PoolIndex pool, const Amounts& more) const {
  const Node& node = nodes_[pool];
  for (size_t r = 0; r < more.size(); ++r)
    if (more[r] > 0 && more[r] > node.spec.limit[r] - node.used[r]) return false;
  return true;
}

bool Pools::feasible(PoolIndex pool, const Amounts& amounts) const {
  for (PoolIndex i = pool; i != cluster; i = nodes_[i].parent) {
    for (size_t r = 0; r < amounts.size(); ++r)
      if (amounts[r] > nodes_[i].spec.limit[r]) return false;
  }
  return true;
}

void Pools::add(PoolIndex pool, const Amounts& amounts) {
  Amounts rest = amounts;
  for (PoolIndex i = pool;; i = nodes_[i].parent) {
    Node& node = nodes_[i];
    for (size_t r = 0; r < rest.size(); ++r) {
      const int64_t before = counted(node, r);
      node.used[r] += rest[r];
      TROUPE_ASSERT(node.used[r] >= 0, "a pool gives back what it took");
      rest[r] = counted(node, r) - before;
    }
    weigh(node);
    if (i == cluster) return;
  }
}

void Pools::remove(PoolIndex pool, const Amounts& amounts) {
  Amounts less = amounts;
  for (int64_t& amount : less) amount = -amount;
  add(pool, less);
}

void Pools::weigh(Node& node) const {
  node.is_over_quota = false;
  node.share = 0;
  for (size_t r = 0; r < node.used.size(); ++r) {
    if (node.used[r] > node.spec.quota[r]) node.is_over_quota = true;
    const int64_t all = total()[r];
    if (all == 0 || all == unlimited) continue;
    const double share = static_cast<double>(node.used[r]) / static_cast<double>(all);
    node.share = std::max(node.share, share / static_cast<double>(node.spec.weight));
  }
}

void Pools::set_total(const Amounts& total) {
  nodes_[cluster].spec.limit = total;
  for (Node& node : nodes_) weigh(node);
}

std::pair<PoolIndex, PoolIndex> Pools::siblings(PoolIndex a, PoolIndex b) const {
  while (nodes_[a].depth > nodes_[b].depth) a = nodes_[a].parent;
  while (nodes_[b].depth > nodes_[a].depth) b = nodes_[b].parent;
  while (nodes_[a].parent != nodes_[b].parent) {
    a = nodes_[a].parent;
    b = nodes_[b].parent;
  }
  return {a, b};
}

bool Pools::has_quota_left(PoolIndex pool, const Amounts& more) const {
  const Node& node = nodes_[pool];
  for (size_t r = 0; r < more.size(); ++r)
    if (more[r] > 0 && node.used[r] + more[r] > node.spec.quota[r]) return false;
  return true;
}

bool Pools::owes(PoolIndex borrower, PoolIndex other, const Amounts& wanted) const {
  if (borrower == other) return false;
  const auto [its, others] = siblings(borrower, other);
  bool is_over = false;
  for (size_t r = 0; r < wanted.size(); ++r) {
    if (wanted[r] == 0) continue;
    if (nodes_[others].used[r] + wanted[r] > nodes_[others].spec.quota[r]) return false;
    is_over = is_over || nodes_[its].used[r] > nodes_[its].spec.quota[r];
  }
  return is_over;
}

bool Pools::before(PoolIndex a, PoolIndex b) const {
  if (a == b) return false;
  std::tie(a, b) = siblings(a, b);
  if (nodes_[a].is_over_quota != nodes_[b].is_over_quota) return nodes_[b].is_over_quota;
  return nodes_[a].share < nodes_[b].share;
}

}  // namespace troupe::scheduler
