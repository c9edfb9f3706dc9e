#include "troupe/placement.h"

#include <cmath>

#include "placement_lowering.h"
#include "session_impl.h"
#include "waiting.h"

namespace troupe {
namespace detail {

using transport::Method;

namespace {

constexpr Duration control_budget = std::chrono::seconds(30);
// Of one question of a wait, which is asked again while time is left.
constexpr Duration wait_budget = std::chrono::seconds(30);
constexpr size_t batch_max = 1000;
constexpr size_t requests_max = 8;

std::vector<protocol::LabelSelector> to_selectors(const std::vector<LabelSelector>& labels) {
  std::vector<protocol::LabelSelector> selectors;
  for (const LabelSelector& label : labels) {
    selectors.push_back({label.key, label.test, label.values, label.preferred});
  }
  return selectors;
}

std::string strategy_name(GroupStrategy strategy) {
  switch (strategy) {
    case GroupStrategy::pack:
      return "pack";
    case GroupStrategy::spread:
      return "spread";
    case GroupStrategy::strict_pack:
      return "strict_pack";
    case GroupStrategy::strict_spread:
      return "strict_spread";
  }
  return "unknown";
}

PlacementGroupStatus to_status(protocol::PlacementGroupInfo info) {
  PlacementGroupStatus status;
  status.state = std::move(info.state);
  status.reason = std::move(info.reason);
  status.grant = info.grant;
  for (auto& place : info.places) status.places.push_back({place.node, std::move(place.devices)});
  return status;
}

}  // namespace

std::vector<protocol::ResourceAmount> to_demand(const Resources& resources) {
  std::vector<protocol::ResourceAmount> demand;
  const auto add = [&](const std::string& name, double amount) {
    if (amount > 0) demand.push_back({name, std::llround(amount * 1000)});
  };
  add("cpu", resources.cpu);
  add("gpu", resources.gpu);
  add("memory", resources.memory_mib);
  for (const auto& [name, amount] : resources.custom) add(name, amount);
  return demand;
}

protocol::PlacementSpec to_spec(const Placement& placement) {
  protocol::PlacementSpec spec;
  spec.selectors = to_selectors(placement.labels);
  spec.node = placement.node;
  spec.node_soft = placement.node_preferred;
  spec.group = placement.group;
  spec.bundle = placement.bundle ? *placement.bundle + 1 : 0;
  spec.outside = placement.outside;
  return spec;
}

protocol::PlacementGroupSpec to_spec(const PlacementGroupOptions& options) {
  protocol::PlacementGroupSpec spec;
  spec.name = options.name;
  for (const Resources& bundle : options.bundles) spec.bundles.push_back({to_demand(bundle)});
  spec.strategy = strategy_name(options.strategy);
  spec.priority = options.priority;
  spec.detached = options.detached;
  spec.capture = options.capture;
  spec.selectors = to_selectors(options.labels);
  return spec;
}

// Sends what comes at once, and gathers what comes while several requests are on their way: the
// head writes all that it has got in one go. Everything runs on the client's loop.
class GroupBatches {
 public:
  explicit GroupBatches(client::Client& client) : client_(client) {}

  using Made = std::promise<Status>;
  static void create(std::shared_ptr<GroupBatches> self, protocol::PlacementGroupSpec spec,
                     std::shared_ptr<Made> made) {
    self->creates_.push_back({std::move(spec), std::move(made)});
    if (self->creating_ < requests_max) spawn(self->client_.scope(), send_creates(self));
  }
  static void remove(std::shared_ptr<GroupBatches> self, PlacementGroupId group,
                     std::shared_ptr<Made> done) {
    self->removes_.push_back({group, std::move(done)});
    if (self->removing_ < requests_max) spawn(self->client_.scope(), send_removes(self));
  }

 private:
  template <class T>
  struct Entry {
    T what;
    std::shared_ptr<Made> made;
  };
  template <class T>
  static std::vector<Entry<T>> take(std::vector<Entry<T>>& from) {
    std::vector<Entry<T>> taken;
    const auto end = from.begin() + static_cast<ptrdiff_t>(std::min(from.size(), batch_max));
    taken.assign(std::make_move_iterator(from.begin()), std::make_move_iterator(end));
    from.erase(from.begin(), end);
    return taken;
  }

  static Async<void> send_creates(std::shared_ptr<GroupBatches> self) {
    ++self->creating_;
    while (!self->creates_.empty()) {
      auto batch = take(self->creates_);
      protocol::PlacementGroupSpecs request;
      for (auto& entry : batch) request.items.push_back(std::move(entry.what));
      auto results = co_await self->client_.ask_head<protocol::PlacementGroupResults>(
          Method::create_placement_groups, std::move(request), control_budget);
      for (size_t i = 0; i < batch.size(); ++i) {
        if (!results) {
          batch[i].made->set_value(results.error());
        } else if (i < results->items.size() && results->items[i].code == 0) {
          batch[i].made->set_value(ok());
        } else {
          batch[i].made->set_value(i < results->items.size()
                                       ? protocol::from_info(results->items[i])
                                       : error(Code::internal, "the head forgot a group"));
        }
      }
    }
    --self->creating_;
  }

  static Async<void> send_removes(std::shared_ptr<GroupBatches> self) {
    ++self->removing_;
    while (!self->removes_.empty()) {
      auto batch = take(self->removes_);
      protocol::RemovePlacementGroups request;
      for (const auto& entry : batch) request.groups.push_back(entry.what);
      auto removed = co_await self->client_.ask_head<protocol::Empty>(
          Method::remove_placement_groups, std::move(request), control_budget);
      for (auto& entry : batch) {
        entry.made->set_value(removed ? ok() : Status{removed.error()});
      }
    }
    --self->removing_;
  }

  client::Client& client_;
  std::vector<Entry<protocol::PlacementGroupSpec>> creates_;
  std::vector<Entry<PlacementGroupId>> removes_;
  size_t creating_ = 0;  // Requests on their way.
  size_t removing_ = 0;
};

namespace {

// A promise that is kept also when the session goes before it could be.
std::shared_ptr<GroupBatches::Made> promise_of(std::future<Status>& future) {
  const auto keep = [](GroupBatches::Made* made) {
    try {
      made->set_value(error(Code::cancelled, "the session was closed"));
    } catch (const std::future_error&) {  // It was kept.
    }
    delete made;
  };
  std::shared_ptr<GroupBatches::Made> made{new GroupBatches::Made, keep};
  future = made->get_future();
  return made;
}

std::shared_ptr<GroupBatches> batches_of(SessionImpl& session) {
  auto& batches = session.group_batches();
  if (!batches) batches = std::make_shared<GroupBatches>(session.client());
  return batches;
}

Result<protocol::PlacementGroupInfo> ask(SessionImpl& session, protocol::GetPlacementGroup request,
                                         Duration budget) {
  client::Client& client = session.client();
  const auto question = [&client, request, budget] {
    return client.ask_head<protocol::PlacementGroupInfo>(Method::get_placement_group, request,
                                                         budget);
  };
  if (!request.wait) return session.run<protocol::PlacementGroupInfo>(question);
  const Instant deadline = client.environment().clock.now() + budget;
  const auto facts = [&] {
    return client::WaitFacts{"wait",
                             {{"placement group", request.group, {}, {}}},
                             client::WaitFacts::Needs::all,
                             deadline};
  };
  return run_blocked<protocol::PlacementGroupInfo>(session, facts, question);
}

}  // namespace

std::future<Result<PlacementGroup>> create_group(const std::shared_ptr<SessionImpl>& session,
                                                 PlacementGroupOptions options) {
  SystemRandom random;
  protocol::PlacementGroupSpec spec = to_spec(options);
  spec.group = PlacementGroupId::random(random);
  spec.job = session->client().job();
  spec.name_space = session->name_space();
  const PlacementGroupId id = spec.group;
  std::future<Status> promised;
  auto made = promise_of(promised);
  SessionImpl* raw = session.get();
  session->post([raw, spec = std::move(spec), made = std::move(made)]() mutable {
    GroupBatches::create(batches_of(*raw), std::move(spec), std::move(made));
  });
  return std::async(
      std::launch::deferred,
      [session, id, outcome = std::move(promised)]() mutable -> Result<PlacementGroup> {
        TROUPE_CHECK(outcome.get());
        return PlacementGroup{session, id};
      });
}

Result<PlacementGroup> find_group(const std::shared_ptr<SessionImpl>& session,
                                  std::string_view name, std::string_view name_space) {
  protocol::GetPlacementGroup request;
  request.name = name;
  request.name_space = name_space.empty() ? session->name_space() : std::string(name_space);
  TROUPE_TRY(const auto info, ask(*session, std::move(request), control_budget));
  return PlacementGroup{session, info.spec.group};
}

NodeId node_of(const std::shared_ptr<SessionImpl>& session) {
  return session->client().attached().node;
}

}  // namespace detail

Result<PlacementGroupStatus> PlacementGroup::status() const {
  if (!session_) return error(Code::invalid, "this names no placement group");
  protocol::GetPlacementGroup request;
  request.group = id_;
  TROUPE_TRY(auto info, detail::ask(*session_, std::move(request), detail::control_budget));
  return detail::to_status(std::move(info));
}

Result<bool> PlacementGroup::ready() const {
  TROUPE_TRY(const auto now, status());
  return now.state == "placed";
}

Result<std::vector<BundlePlace>> PlacementGroup::places() const {
  TROUPE_TRY(auto now, status());
  if (now.state == "placed") return std::move(now.places);
  return error(Code::unavailable, "the placement group is " + now.state + ": " + now.reason);
}

Result<PlacementGroupStatus> PlacementGroup::wait(std::chrono::nanoseconds timeout) const {
  if (!session_) return error(Code::invalid, "this names no placement group");
  const auto begun = std::chrono::steady_clock::now();
  for (;;) {
    const auto left = timeout - (std::chrono::steady_clock::now() - begun);
    protocol::GetPlacementGroup request;
    request.group = id_;
    request.wait = true;
    const auto budget =
        std::clamp<Duration>(left, std::chrono::milliseconds(1), detail::wait_budget);
    auto info = detail::ask(*session_, std::move(request), budget);
    if (info) return detail::to_status(std::move(*info));
    const bool again = info.error().retriable() && left > budget;
    if (!again) return std::move(info).error();
  }
}

std::future<Status> PlacementGroup::remove_async() const {
  std::future<Status> promised;
  auto done = detail::promise_of(promised);
  if (!session_) {
    done->set_value(error(Code::invalid, "this names no placement group"));
    return promised;
  }
  detail::SessionImpl* raw = session_.get();
  session_->post([raw, id = id_, done = std::move(done)]() mutable {
    detail::GroupBatches::remove(detail::batches_of(*raw), id, std::move(done));
  });
  return promised;
}

}  // namespace troupe
