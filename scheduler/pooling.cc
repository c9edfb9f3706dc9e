// What pools use, and what waits for them to use less.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "scheduler/impl.h"

namespace troupe::scheduler {

Result<PoolIndex> Scheduler::Impl::read_pool(const std::string& name) const {
  const auto pool = pools.find(name);
  if (!pool) return error(Code::not_found, fmt::format("there is no pool '{}'", name));
  if (pools.has_pools(*pool))
    return error(Code::invalid, fmt::format("pool '{}' has pools in it: name one of them", name));
  return *pool;
}

Amounts Scheduler::Impl::amounts_of(const Needs& needs) {
  Amounts sum{};
  for (const ResourceVector& bundle : needs.bundles) {
    const Amounts amounts = scheduler::amounts_of(bundle);
    for (size_t r = 0; r < sum.size(); ++r) sum[r] += amounts[r];
  }
  return sum;
}

std::optional<PoolIndex> Scheduler::Impl::obstacle(const Shape& shape) {
  const Needs& needs = *shape.needs;
  if (!pools.has_caps() || !is_shared_out(needs)) return std::nullopt;
  const bool has_kept = &shape == keeper && kept_share;
  if (has_kept) pools.remove(needs.pool, *kept_share);
  const auto by = pools.obstacle(needs.pool, amounts_of(needs));
  if (has_kept) pools.add(needs.pool, *kept_share);
  return by;
}

void Scheduler::Impl::take_share(const Request& request, uint32_t unit) {
  const Needs& needs = *request.shape->needs;
  if (is_shared_out(needs)) pools.add(needs.pool, scheduler::amounts_of(request.demand_of(unit)));
}

void Scheduler::Impl::give_share_back(const Request& request, uint32_t unit) {
  const Needs& needs = *request.shape->needs;
  if (!is_shared_out(needs)) return;
  pools.remove(needs.pool, scheduler::amounts_of(request.demand_of(unit)));
  share_freed(needs.pool);
}

void Scheduler::Impl::share_freed(PoolIndex of) {
  if (queue.all_fit_their_pools()) return;
  // Up to the cluster, though a reserve may hide it from those above: what a pool then wants of
  // them is less.
  for (PoolIndex pool = of;; pool = pools.parent(pool)) {
    caps_freed.insert(pool);
    if (pool == Pools::cluster) return;
  }
}

// While some leave for one that claimed their room, what they give back is kept for it.
void Scheduler::Impl::refill_pools() {
  if (leaving > 0 || caps_freed.empty()) return;
  if (keeper != nullptr && keeper->state == Shape::State::capped) place_capped(*keeper);
  for (const PoolIndex pool : std::exchange(caps_freed, {})) refill_pool(pool);
}

void Scheduler::Impl::refill_pool(PoolIndex by) {
  std::vector<Shape*> elsewhere;  // That another limit, or a lack of room, keeps waiting now.
  // Without reserves whatever is wanted below counts here in full.
  const auto viable = [&](const Shape& shape) {
    return pools.has_reserves() || pools.has_left(by, amounts_of(*shape.needs));
  };
  queue.for_each_capped(by, viable, [&](Shape& shape) {
    if (const auto obstacle = this->obstacle(shape)) {
      if (*obstacle != by) elsewhere.push_back(&shape);
      return false;
    }
    Request* request = shape.head();
    const uint32_t before = request->units_pending;
    const bool done = shape.needs->gang ? place_gang(request) : place_units(request);
    if (!done) elsewhere.push_back(&shape);
    return done || request->units_pending < before;
  });
  for (Shape* shape : elsewhere)
    if (shape->state == Shape::State::capped) set_aside(shape);
}

void Scheduler::Impl::place_capped(Shape& shape) {
  if (obstacle(shape)) return;
  Request* request = shape.head();
  const bool done = shape.needs->gang ? place_gang(request) : place_units(request);
  if (!done) set_aside(&shape);
}

std::string Scheduler::Impl::cap_text(const Shape& shape) const {
  const Amounts wanted = amounts_of(*shape.needs);
  const auto by = pools.obstacle(shape.needs->pool, wanted);
  if (!by) return "its pool has room again";
  const PoolSpec& spec = pools.spec(*by);
  if (*by == Pools::cluster)
    return "the rest of the cluster is reserved for pools that do not lend";
  std::string text;
  for (size_t r = 0; r < wanted.size(); ++r) {
    if (wanted[r] == 0 || wanted[r] <= spec.limit[r] - pools.used(*by)[r]) continue;
    const auto amount = [&](int64_t value) {
      return amount_names[r] == "memory" ? fmt::format("{}MiB", value) : milli_to_string(value);
    };
    text += fmt::format("{}{} (needs {}, {} of at most {} in use)", text.empty() ? "" : ", ",
                        amount_names[r], amount(wanted[r]), amount(pools.used(*by)[r]),
                        amount(spec.limit[r]));
  }
  return fmt::format("pool '{}' has no more {}", spec.name, text);
}

void Scheduler::Impl::on(const PoolsSet& event) {
  const auto refuse = [&](Error why) {
    decisions.emplace_back(Rejected{NodeId{}, std::move(why)});
  };
  auto next = pools.replaced_by(event.pools, [&](PoolIndex pool) {
    return pool < requests_in.size() && requests_in[pool] > 0;
  });
  if (!next) return refuse(next.error());
  std::vector<const Policy*> by_pool(next->size(), options.policy.get());
  std::vector<std::unique_ptr<Policy>> own;
  for (PoolIndex pool = 0; pool < next->size(); ++pool) {
    const std::string& name = next->spec(pool).policy;
    if (!next->is_there(pool) || name.empty()) continue;
    auto policy = make_policy(name);
    if (!policy)
      return refuse(policy.error().context(fmt::format("pool '{}'", next->spec(pool).name)));
    own.push_back(std::move(*policy));
    by_pool[pool] = own.back().get();
  }
  std::vector<Request*> all;
  for (auto& [id, job] : jobs)
    for (Request* request = job.first; request != nullptr; request = request->job_after)
      all.push_back(request);
  // Out of all order while the old policies hold, and back in under the new ones.
  for (Request* request : all)
    if (request->is_victim && !request->is_leaving) remove_victim(request);
  pools = std::move(*next);
  policies = std::move(by_pool);
  const auto old_policies = std::exchange(own_policies, std::move(own));
  victims.resize(pools.size());
  requests_in.resize(pools.size());
  virtual_times.resize(pools.size());
  for (Request* request : all)
    if (!request->is_leaving) rank_anew(request);
  for (Request* request : all)
    if (request->standing.runs && !request->is_leaving && !request->is_victim) add_victim(request);
  for (Shape* shape : queue.unplaced()) queue.set_state(shape, Shape::State::ready);
  for (Shape* shape : queue.all_capped()) queue.set_state(shape, Shape::State::ready);
  ++claims_version;
}

}  // namespace troupe::scheduler
