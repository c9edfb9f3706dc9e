#include "troupe/actor_pool.h"

#include <mutex>
#include <set>

#include "base/log.h"
#include "client/call_pool.h"
#include "submitting.h"
#include "waiting.h"

namespace troupe::detail {
namespace {

constexpr Duration kill_budget = std::chrono::seconds(30);

Async<void> kill_all(client::Client& client, std::vector<ActorId> actors) {
  protocol::ActorIds request{std::move(actors), "its pool was destroyed"};
  auto killed = co_await client.ask_head<protocol::Empty>(transport::Method::kill_actors,
                                                          std::move(request), kill_budget);
  if (!killed) log::warning("pool_not_ended", {{"why", killed.error().to_string()}});
}

class PoolCoreImpl final : public PoolCore {
 public:
  PoolCoreImpl(std::shared_ptr<SessionImpl> session, const PoolOptions& options)
      : session_(std::move(session)),
        pool_(std::make_shared<client::CallPool>(session_->client(), options.calls_per_actor)) {}
  PoolCoreImpl(const PoolCoreImpl&) = delete;
  PoolCoreImpl& operator=(const PoolCoreImpl&) = delete;
  ~PoolCoreImpl() override {
    pool_->close();
    if (owned_.empty()) return;
    session_->post([client = &session_->client(),
                    actors = std::vector<ActorId>{owned_.begin(), owned_.end()}]() mutable {
      spawn(client->scope(), kill_all(*client, std::move(actors)));
    });
  }

  bool add(ActorId actor) override { return pool_->add(actor); }
  void own(ActorId actor) override {
    const std::lock_guard lock{mutex_};
    owned_.insert(actor);
  }
  std::optional<ActorId> take_idle() override {
    const auto actor = pool_->take_idle();
    if (actor) {
      const std::lock_guard lock{mutex_};
      owned_.erase(*actor);
    }
    return actor;
  }
  std::shared_ptr<RefHandle> submit(std::string_view method, uint64_t signature,
                                    std::vector<ArgumentValue> arguments,
                                    const CallOptions& options, int max_call_retries) override {
    if (auto stored = store_large_arguments(session_, arguments); !stored) {
      return make_failed(session_, std::move(stored).error());
    }
    CallExtras extras;
    extras.max_call_retries = max_call_retries;
    extras.route = pool_;
    auto spec = to_call_spec(method, signature, arguments, options, std::move(extras));
    auto object = pool_->submit(std::move(spec), nullptr);
    note_child(session_, object);
    return detail::own(session_, std::move(object));
  }
  PoolStatus status() const override {
    const auto counts = pool_->counts();
    return {counts.members, counts.reached, counts.idle, counts.unfinished, counts.queued};
  }
  std::vector<ActorId> actors() const override { return pool_->members(); }
  const std::shared_ptr<SessionImpl>& session() const override { return session_; }

 private:
  const std::shared_ptr<SessionImpl> session_;
  const std::shared_ptr<client::CallPool> pool_;
  std::mutex mutex_;
  std::set<ActorId> owned_;  // Guarded.
};

class CompletionsImpl final : public Completions,
                              public client::ReadyHook,
                              public std::enable_shared_from_this<CompletionsImpl> {
 public:
  explicit CompletionsImpl(std::weak_ptr<SessionImpl> session) : session_(std::move(session)) {}

  void add(const RefHandle& ref, uint32_t number) override {
    if (!ref.object()->add_hook(shared_from_this(), number)) ready(number);
  }
  void ready(uint32_t number) override {
    const std::lock_guard lock{mutex_};
    ready_.push_back(number);
    if (waiter_ != nullptr) waiter_->signal();
  }
  std::optional<uint32_t> next(std::chrono::nanoseconds timeout) override {
    if (const auto there = take()) return there;
    const auto session = session_.lock();
    if (!session) return std::nullopt;
    const auto& environment = session->client().environment();
    transport::RingPort::Waiter waiter{*environment.rings};
    const Instant deadline = environment.clock.now() + timeout;
    const auto facts = [deadline] {
      return client::WaitFacts{
          "wait for a pool's results", {}, client::WaitFacts::Needs::unknown, deadline};
    };
    // One that failed gives nothing, as one that was in vain.
    (void)wait_in_rings(
        *session, waiter, deadline, [this] { return has_some(); }, [&] { set_waiter(&waiter); },
        facts);
    set_waiter(nullptr);
    return take();
  }

 private:
  bool has_some() {
    const std::lock_guard lock{mutex_};
    return !ready_.empty();
  }
  void set_waiter(transport::RingPort::Waiter* waiter) {
    const std::lock_guard lock{mutex_};
    waiter_ = waiter;
  }
  std::optional<uint32_t> take() {
    const std::lock_guard lock{mutex_};
    if (ready_.empty()) return std::nullopt;
    const uint32_t number = ready_.front();
    ready_.pop_front();
    return number;
  }

  const std::weak_ptr<SessionImpl> session_;
  std::mutex mutex_;  // Guards what follows.
  std::deque<uint32_t> ready_;
  transport::RingPort::Waiter* waiter_ = nullptr;
};

}  // namespace

std::shared_ptr<PoolCore> PoolCore::make(std::shared_ptr<SessionImpl> session,
                                         const PoolOptions& options) {
  return std::make_shared<PoolCoreImpl>(std::move(session), options);
}

std::shared_ptr<Completions> Completions::make(std::shared_ptr<SessionImpl> session) {
  return std::make_shared<CompletionsImpl>(session);
}

}  // namespace troupe::detail
