#include "gateway/cluster_backend.h"

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>

#include "base/log.h"
#include "gateway/engine_json.h"

namespace troupe::gateway {

using protocol::Method;

namespace {

constexpr Duration retry_first = std::chrono::milliseconds(50);
constexpr Duration retry_most = std::chrono::seconds(2);
constexpr Duration head_budget = std::chrono::seconds(5);
// To reach a replica that the head calls alive; another one is tried after that.
constexpr Duration reach_budget = std::chrono::seconds(2);

bool replica_lost(const Error& failure) {
  return failure.code() == Code::unavailable || failure.code() == Code::outcome_unknown ||
         failure.code() == Code::conflict;
}

}  // namespace

class ClusterBackend::Running final : public Generation {
 public:
  Running(std::shared_ptr<Shared> shared, std::string model, std::string key,
          std::shared_ptr<Lost> lost)
      : shared_(std::move(shared)),
        model_(std::move(model)),
        key_(std::move(key)),
        lost_(std::move(lost)) {}
  ~Running() override { shared_->replicas.ended(key_, shared_->environment.clock.now()); }

  void set_stream(std::shared_ptr<transport::IncomingStream> stream) {
    stream_ = std::move(stream);
  }
  void note(const Error& failure) {
    if (!replica_lost(failure)) return;
    shared_->replicas.failed(model_, key_, shared_->environment.clock.now());
  }

  Async<Result<std::optional<Chunk>>> next() override {
    using namespace boost::asio::experimental::awaitable_operators;
    auto raced = co_await (stream_->next() || lost_->event.wait());
    if (raced.index() == 1) {
      co_return error(Code::unavailable, "the replica that generated this is gone");
    }
    auto item = std::get<0>(std::move(raced));
    if (!item) {
      note(item.error());
      co_return std::move(item).error();
    }
    if (!item->has_value()) co_return std::optional<Chunk>{};
    if (!std::exchange(heard_, true)) {
      shared_->replicas.worked(model_, key_, shared_->environment.clock.now());
    }
    TROUPE_CO_TRY(auto chunk, parse_chunk(as_text(**item)));
    co_return std::optional<Chunk>{std::move(chunk)};
  }
  const std::string& replica() const override { return key_; }

 private:
  std::shared_ptr<Shared> shared_;
  std::string model_;
  std::string key_;
  std::shared_ptr<Lost> lost_;
  std::shared_ptr<transport::IncomingStream> stream_;
  bool heard_ = false;
};

ClusterBackend::ClusterBackend(client::Client& client)
    : client_(client),
      shared_(std::make_shared<Shared>(client.environment())),
      changed_(client.environment().loop),
      scope_(client.environment().loop) {}

ClusterBackend::~ClusterBackend() = default;

void ClusterBackend::start() {
  spawn(scope_, watch());
}

Async<void> ClusterBackend::stop() {
  co_await scope_.stop();
}

std::vector<ModelInfo> ClusterBackend::models() const {
  return shared_->replicas.models(client_.environment().clock.now());
}

Async<bool> ClusterBackend::wait_change(Instant deadline) {
  co_return co_await wait_until(client_.environment().clock, deadline, changed_);
}

Async<void> ClusterBackend::watch() {
  TimerClock& clock = client_.environment().clock;
  Duration delay = retry_first;
  for (;;) {
    bool heard = false;
    auto ended = co_await watch_once(heard);
    if (heard) delay = retry_first;
    // What is known of the replicas stays in use: a head that restarts interrupts no request.
    if (!ended) log::info("deployments_watch_lost", {{"why", ended.error()}});
    co_await sleep_for(clock, delay);
    delay = std::min(delay * 2, retry_most);
  }
}

Async<Status> ClusterBackend::watch_once(bool& heard) {
  TimerClock& clock = client_.environment().clock;
  TROUPE_CO_TRY(auto head, co_await client_.head(clock.now() + head_budget));
  transport::Message request{protocol::encode(protocol::Empty{}), {}};
  TROUPE_CO_TRY(auto stream, head->open_stream(Method::watch_deployments, std::move(request), {}));
  for (;;) {
    TROUPE_CO_TRY(auto item, co_await stream->next());
    if (!item) co_return ok();
    TROUPE_CO_TRY(const auto list, protocol::decode<protocol::DeploymentList>(*item));
    heard = true;
    for (const std::string& key : shared_->replicas.update(list, clock.now())) {
      const auto found = shared_->lost.find(key);
      if (found == shared_->lost.end()) continue;
      if (const auto lost = found->second.lock()) lost->event.set();
      shared_->lost.erase(found);
    }
    std::erase_if(shared_->lost, [](const auto& entry) { return entry.second.expired(); });
    changed_.pulse();
  }
}

Async<Result<std::unique_ptr<Generation>>> ClusterBackend::begin(GenerateRequest request,
                                                                 std::set<std::string> excluded,
                                                                 std::string& tried) {
  const transport::Environment environment = client_.environment();
  TROUPE_CO_TRY(
      const auto choice,
      shared_->replicas.pick(request.model, excluded, environment.clock.now(), environment.random));
  tried = choice.key;
  auto lost = shared_->lost[choice.key].lock();
  if (!lost) {
    lost = std::make_shared<Lost>(environment.loop);
    shared_->lost[choice.key] = lost;
  }
  // From here on the replica counts as busier by one until this goes.
  auto running = std::make_unique<Running>(shared_, request.model, choice.key, std::move(lost));
  client::ActorCallSpec spec;
  spec.actor = choice.actor;
  spec.method = engine_method;
  spec.arguments.push_back({to_bytes(request.arguments), {}, {}});
  spec.budget = request.budget;
  const Instant deadline =
      environment.clock.now() + std::min<Duration>(reach_budget, request.budget);
  auto stream =
      co_await with_deadline(environment.clock, deadline, client_.stream_actor(std::move(spec)));
  if (!stream) {
    Error failure = std::move(stream).error();
    // Not reached in time or no longer known: for the caller that is a lost replica.
    if (failure.code() == Code::deadline_exceeded || failure.code() == Code::not_found) {
      failure = error(Code::unavailable, failure.message());
    }
    running->note(failure);
    co_return failure;
  }
  running->set_stream(std::move(*stream));
  co_return std::unique_ptr<Generation>{std::move(running)};
}

}  // namespace troupe::gateway
