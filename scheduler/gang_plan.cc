#include "scheduler/gang_plan.h"

#include <algorithm>
#include <numeric>

namespace troupe::scheduler {
namespace {

constexpr int64_t backtracks_max = 4096;

// Larger bundles are harder to place, so they go first. GPUs are the scarcest.
bool goes_before(const ResourceVector& a, const ResourceVector& b) {
  return std::tie(b.gpu_milli, b.cpu_milli, b.memory_mib, b.custom) <
         std::tie(a.gpu_milli, a.cpu_milli, a.memory_mib, a.custom);
}

// The ledger packs fractions on devices by best fit, which is exact for fractions of one size only.
bool at_most_one_fraction(const std::vector<ResourceVector>& bundles) {
  int64_t seen_milli = 0;
  for (const ResourceVector& bundle : bundles) {
    const int64_t milli = bundle.gpu_milli;
    if (milli == 0 || milli >= whole_gpu_milli) continue;
    if (seen_milli != 0 && seen_milli != milli) return false;
    seen_milli = milli;
  }
  return true;
}

// Depth-first over bundles, first fit over nodes. Its first descent is the greedy plan.
class Search {
 public:
  enum class Order : uint8_t { first_fit, each_its_own, fewest_first };

  Search(const std::vector<ResourceVector>& bundles, std::vector<GangNode>& nodes, Order order)
      : bundles_(bundles),
        nodes_(nodes),
        order_(order),
        sequence_(bundles.size()),
        chosen_(bundles.size()),
        used_(nodes.size(), 0) {
    std::iota(sequence_.begin(), sequence_.end(), size_t{0});
    std::stable_sort(sequence_.begin(), sequence_.end(),
                     [&](size_t a, size_t b) { return goes_before(bundles[a], bundles[b]); });
    all_equal_ = bundles[sequence_.front()] == bundles[sequence_.back()];
    devices_exact_ = at_most_one_fraction(bundles);
  }

  GangPlan run() {
    GangPlan plan;
    const bool found = descend();
    if (found) {
      plan.outcome = GangPlan::Outcome::found;
      plan.places.resize(bundles_.size());
      for (size_t depth = 0; depth < chosen_.size(); ++depth)
        plan.places[sequence_[depth]] = {nodes_[chosen_[depth].position].node,
                                         chosen_[depth].devices};
    } else {
      const bool sure = !gave_up_ && devices_exact_;
      plan.outcome = sure ? GangPlan::Outcome::impossible : GangPlan::Outcome::unsure;
    }
    while (depth_ > 0) undo();
    return plan;
  }

 private:
  struct Choice {
    size_t position = 0;
    Devices devices;
  };

  // Iterative: a gang may have thousands of bundles.
  bool descend() {
    size_t from = 0;
    while (depth_ < bundles_.size()) {
      const std::optional<size_t> position = next_fit(from);
      if (position) {
        take(*position);
        from = first_position();
        continue;
      }
      // With equal bundles first fit is exact: no other choice would leave more room.
      if (depth_ == 0 || all_equal_) return false;
      if (++backtracks_ > backtracks_max) {
        gave_up_ = true;
        return false;
      }
      // The search by fewest bundles has no fixed order to go on from.
      if (order_ == Order::fewest_first) {
        gave_up_ = true;
        return false;
      }
      from = undo() + 1;
    }
    return true;
  }

  const ResourceVector& demand() const { return bundles_[sequence_[depth_]]; }

  // Equal bundles are interchangeable, so one never goes before its twin.
  size_t first_position() const {
    if (order_ == Order::fewest_first || depth_ == 0 || depth_ == bundles_.size()) return 0;
    if (demand() != bundles_[sequence_[depth_ - 1]]) return 0;
    return chosen_[depth_ - 1].position;
  }

  std::optional<size_t> next_fit(size_t from) const {
    std::optional<size_t> best;
    for (size_t i = from; i < nodes_.size(); ++i) {
      if (order_ == Order::each_its_own && used_[i] > 0) continue;
      if (best && used_[i] >= used_[*best]) continue;
      if (!nodes_[i].ledger.fits(demand())) continue;
      if (order_ != Order::fewest_first || used_[i] == 0) return i;
      best = i;
    }
    return best;
  }

  void take(size_t position) {
    auto devices = nodes_[position].ledger.take(demand());
    chosen_[depth_] = {position, std::move(*devices)};
    ++used_[position];
    ++depth_;
  }

  size_t undo() {
    --depth_;
    const Choice& choice = chosen_[depth_];
    nodes_[choice.position].ledger.give_back(demand(), choice.devices);
    --used_[choice.position];
    return choice.position;
  }

  const std::vector<ResourceVector>& bundles_;
  std::vector<GangNode>& nodes_;
  Order order_;
  std::vector<size_t> sequence_;
  std::vector<Choice> chosen_;
  std::vector<uint32_t> used_;
  size_t depth_ = 0;
  int64_t backtracks_ = 0;
  bool all_equal_ = false;
  bool devices_exact_ = false;
  bool gave_up_ = false;
};

GangPlan plan_on_one_node(const std::vector<ResourceVector>& bundles,
                          std::vector<GangNode>& nodes) {
  GangPlan last;
  for (GangNode& node : nodes) {
    std::vector<GangNode> one{node};
    last = Search(bundles, one, Search::Order::first_fit).run();
    if (last.outcome == GangPlan::Outcome::found) return last;
  }
  return last;
}

}  // namespace

GangPlan plan_gang(const std::vector<ResourceVector>& bundles, GangStrategy strategy,
                   std::vector<GangNode>& nodes) {
  switch (strategy) {
    case GangStrategy::strict_pack:
      return plan_on_one_node(bundles, nodes);
    case GangStrategy::strict_spread:
      return Search(bundles, nodes, Search::Order::each_its_own).run();
    case GangStrategy::spread: {
      GangPlan plan = Search(bundles, nodes, Search::Order::each_its_own).run();
      if (plan.outcome != GangPlan::Outcome::found)
        plan = Search(bundles, nodes, Search::Order::fewest_first).run();
      if (plan.outcome == GangPlan::Outcome::found) return plan;
      break;  // Any plan is better than none.
    }
    case GangStrategy::pack:
      break;
  }
  return Search(bundles, nodes, Search::Order::first_fit).run();
}

ResourceVector sum_floor(const std::vector<ResourceVector>& bundles) {
  ResourceVector sum;
  int64_t whole_milli = 0;
  int64_t fraction_milli = 0;
  for (const ResourceVector& bundle : bundles) {
    TROUPE_ASSERT(add(sum, bundle), "amounts and counts are bounded");
    if (bundle.gpu_milli >= whole_gpu_milli) {
      whole_milli += bundle.gpu_milli;
    } else {
      fraction_milli = std::max(fraction_milli, bundle.gpu_milli);
    }
  }
  sum.gpu_milli = whole_milli > 0 ? whole_milli : fraction_milli;
  return sum;
}

GangNodes::GangNodes(const std::vector<ResourceVector>& bundles) {
  for (const ResourceVector& bundle : bundles) {
    const bool known = std::any_of(kinds_.begin(), kinds_.end(),
                                   [&](const Kind& kind) { return *kind.demand == bundle; });
    if (!known) kinds_.push_back({&bundle, bundles.size()});
  }
  wanting_ = kinds_.size();
}

void GangNodes::offer(NodeIndex index, const NodeLedger& ledger) {
  bool needed = false;
  for (Kind& kind : kinds_) {
    if (!ledger.fits(*kind.demand)) continue;
    if (kind.missing == 0) continue;
    needed = true;
    if (--kind.missing == 0) --wanting_;
  }
  if (needed) nodes_.push_back({index, ledger});
}

}  // namespace troupe::scheduler
