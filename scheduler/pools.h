// Pools: whose requests may use how much of the cluster, and whose turn it is.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {

// Of what pools account: CPU in milli, memory in MiB, GPUs in milli. Custom resources are not
// shared out by pools.
using Amounts = std::array<int64_t, 3>;
inline constexpr int64_t unlimited = INT64_MAX;
inline constexpr Amounts no_limit{unlimited, unlimited, unlimited};
inline constexpr std::array<std::string_view, 3> amount_names{"cpu", "memory", "gpu"};

Amounts amounts_of(const ResourceVector& resources);

// A pool takes what it needs of its parent's, down from the cluster.
struct PoolSpec {
  std::string name;    // Unique, not empty.
  std::string parent;  // Empty: the cluster.
  int64_t weight = 1;  // Its share beside its siblings.
  // Guaranteed: whoever borrows it gives it back when it is needed.
  Amounts quota{};
  Amounts limit = no_limit;  // The most that it ever uses, borrowed or not.
  Amounts lends = no_limit;  // What others may use of its quota while it does not; the rest idles.
  std::string policy;        // As make_policy() knows it. Empty: the scheduler's default.
  bool operator==(const PoolSpec&) const = default;
};

// Stays a pool's for as long as the scheduler lives.
using PoolIndex = uint32_t;

// The tree, and what each pool uses. Requests lie in pools that have none in them. What a pool
// counts for with its parent is what it uses, or the part of its quota that it does not lend if
// that is more.
class Pools {
 public:
  static constexpr PoolIndex cluster = 0;  // The root, without a name.
  // Of requests that name none. There always is one.
  static constexpr std::string_view default_name = "default";

  Pools();  // The default one alone.
  // In place of these pools others, under the same indexes as far as they have the same names, and
  // with what is used in them. `has_requests(PoolIndex)` says which ones may not go, nor have pools
  // in them. Errors: invalid (no name, twice the same, an unknown parent, a cycle, a weight below
  // 1, an amount below 0, a limit below the quota or the reserves within), conflict (has_requests).
  Result<Pools> replaced_by(std::vector<PoolSpec> specs,
                            const std::function<bool(PoolIndex)>& has_requests) const;

  // Empty: the default one.
  std::optional<PoolIndex> find(std::string_view name) const;
  const PoolSpec& spec(PoolIndex pool) const { return nodes_[pool].spec; }
  // Those that went count, too.
  size_t size() const { return nodes_.size(); }
  bool is_there(PoolIndex pool) const { return pool == cluster || !nodes_[pool].spec.name.empty(); }
  bool has_pools(PoolIndex pool) const { return nodes_[pool].children > 0; }
  PoolIndex parent(PoolIndex pool) const { return nodes_[pool].parent; }
  const Amounts& used(PoolIndex pool) const { return nodes_[pool].used; }
  // What the cluster has. Shares are of it, and no more than that is given out while some of it
  // is reserved for a pool that does not lend.
  void set_total(const Amounts& total);
  const Amounts& total() const { return nodes_[cluster].spec.limit; }

  // The pool, it or one above, whose limit or reserve is in the way; nothing if none is.
  std::optional<PoolIndex> obstacle(PoolIndex pool, const Amounts& more) const;
  // Its own limit alone.
  bool has_left(PoolIndex pool, const Amounts& more) const;
  bool has_reserves() const { return has_reserves_; }
  // Without them nothing is ever in the way.
  bool has_caps() const { return has_caps_; }
  bool has_quotas() const { return has_quotas_; }
  // Whether it would stay within its quota of all that it wants.
  bool has_quota_left(PoolIndex pool, const Amounts& more) const;
  // Below the pool that both are in: whether `borrower` is over its quota of what the other one
  // wants, which stays within its own.
  bool owes(PoolIndex borrower, PoolIndex other, const Amounts& wanted) const;
  // Could it ever be, with nothing else in use?
  bool feasible(PoolIndex pool, const Amounts& amounts) const;
  void add(PoolIndex pool, const Amounts& amounts);
  void remove(PoolIndex pool, const Amounts& amounts);

  // Whether the first goes before the second: below the pool that both are in, the one that is
  // within its quota, then the one with the smaller dominant share by weight (Ghodsi et al., DRF,
  // NSDI 2011, at each level of the tree). Neither if they are equal.
  bool before(PoolIndex a, PoolIndex b) const;

 private:
  struct Node {
    PoolSpec spec;
    PoolIndex parent = cluster;
    uint32_t depth = 0;
    uint32_t children = 0;
    Amounts reserved{};  // Of its quota, what it does not lend.
    Amounts used{};      // As its parent would count it without the reserve.
    // Follow from the above.
    bool is_over_quota = false;
    double share = 0;  // The dominant one, by weight.
  };
  static int64_t counted(const Node& node, size_t resource) {
    return std::max(node.used[resource], node.reserved[resource]);
  }
  Status link(PoolIndex index);
  std::vector<PoolIndex> deepest_first() const;
  Status check_reserves() const;
  void count_from(const Pools& before);
  void weigh(Node& node) const;
  // Those just below the pool that both are in.
  std::pair<PoolIndex, PoolIndex> siblings(PoolIndex a, PoolIndex b) const;

  std::vector<Node> nodes_;
  std::map<std::string, PoolIndex, std::less<>> by_name_;
  bool has_reserves_ = false;
  bool has_caps_ = false;  // Limits or reserves.
  bool has_quotas_ = false;
};

}  // namespace troupe::scheduler
