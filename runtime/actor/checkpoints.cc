#include "actor/checkpoints.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <filesystem>

#include "base/log.h"
#include "packages/archive.h"

namespace troupe::actor {
namespace fs = std::filesystem;

using transport::Method;

namespace {
// The head may be away, and the state large.
constexpr Duration store_budget = std::chrono::minutes(10);
}  // namespace

CheckpointPlan Checkpoints::plan(const protocol::AssignActor& assignment, const Find& hosted) {
  const ActorId actor = assignment.spec.actor;
  const uint32_t incarnation = assignment.incarnation;
  CheckpointPlan plan;
  if (actor.is_nil()) return plan;
  plan.folder = assignment.checkpoint_folder;
  plan.restore_from = assignment.restore_from;
  plan.number = assignment.checkpoint.number;
  plan.is_regular = assignment.spec.checkpoint_interval_us != 0;
  if (!hosted) return plan;
  const Executor loop = client_.environment().loop;
  plan.saved = [this, loop, actor, incarnation, hosted](std::string path,
                                                        std::function<void(Result<Bytes>)> done) {
    boost::asio::post(loop, [this, actor, incarnation, hosted,
                             state = State{std::move(path), std::move(done)}]() mutable {
      if (auto instance = hosted()) {
        saved({actor, incarnation}, std::move(instance), std::move(state));
      } else {
        spawn(client_.scope(), remove(std::move(state.path)));
      }
    });
  };
  plan.wished = [this, loop, actor, hosted] {
    boost::asio::post(loop, [this, actor, hosted] {
      if (auto instance = hosted()) spawn(client_.scope(), take(actor, std::move(instance)));
    });
  };
  return plan;
}

void Checkpoints::begin(const protocol::ActorSpec& spec,
                        const std::shared_ptr<Instance>& instance) {
  if (spec.checkpoint_interval_us == 0) return;
  constexpr uint64_t longest_us = 1'000'000ull * 3600 * 24 * 365;
  const Duration interval =
      std::chrono::microseconds(std::min(spec.checkpoint_interval_us, longest_us));
  spawn(client_.scope(), take_regularly(spec.actor, instance, interval));
}

// --- To the worker

void Checkpoints::saved(Key key, std::shared_ptr<Instance> instance, State state) {
  Queue& queue = queues_[key];
  if (!queue.path.empty()) spawn(client_.scope(), remove(std::move(queue.path)));
  queue.path = std::move(state.path);
  queue.waiting.push_back(std::move(state.done));
  if (std::exchange(queue.storing, true)) return;
  spawn(client_.scope(), store_all(key, std::move(instance)));
}

Async<void> Checkpoints::store_all(Key key, std::shared_ptr<Instance> instance) {
  while (!queues_[key].waiting.empty()) {
    const auto permit = co_await stores_.acquire();
    // Taken only now: what came while this one waited replaced it.
    const auto waiting = std::exchange(queues_[key].waiting, {});
    const auto outcome = co_await store(key);
    for (const auto& done : waiting) done(outcome);
  }
  queues_.erase(key);
  instance.reset();
  stored_.pulse();
}

Async<bool> Checkpoints::wait_stored(ActorId actor, uint32_t incarnation, Instant deadline) {
  const Key key{actor, incarnation};
  while (queues_.contains(key)) {
    const bool in_time = co_await wait_until(client_.environment().clock, deadline, stored_);
    if (!in_time) co_return false;
  }
  co_return true;
}

Async<void> Checkpoints::remove(std::string path) {
  auto remove = [path] {
    std::error_code ignored;
    return fs::remove_all(path, ignored);
  };
  co_await transport::run_blocking(client_.environment(), std::move(remove));
}

Async<Result<packages::PackageFilePointer>> Checkpoints::pack(std::string path) {
  auto pack = [path] {
    auto archive =
        packages::pack(path, packages::checkpoint_archive(fs::path{path}.parent_path().string()));
    std::error_code ignored;
    fs::remove_all(path, ignored);
    return archive;
  };
  co_return co_await transport::run_blocking(client_.environment(), std::move(pack));
}

Async<Result<Bytes>> Checkpoints::store(Key key) {
  std::string path = std::exchange(queues_[key].path, {});
  TROUPE_CO_TRY(const auto archive, co_await pack(std::move(path)));
  FileDescriptor file{::fcntl(archive->file.get(), F_DUPFD_CLOEXEC, 0)};
  if (!file.is_open()) co_return packages::file_error("send a checkpoint", errno);
  protocol::StoreCheckpoint request;
  request.actor = key.first;
  request.incarnation = key.second;
  request.hash = archive->hash;
  request.size_bytes = archive->size_bytes;
  transport::Message message{protocol::encode(request), {}};
  message.descriptors.push_back(std::move(file));
  const auto worker = client_.worker();
  auto stored = co_await worker->call(Method::store_checkpoint, std::move(message), store_budget);
  if (!stored) co_return std::move(stored).error();
  co_return std::move(stored->body);
}

// --- When

Async<void> Checkpoints::take_regularly(ActorId actor, std::weak_ptr<Instance> instance,
                                        Duration interval) {
  // Many that were created at once are not to be written at once for ever.
  const auto early = static_cast<Duration::rep>(
      client_.environment().random.below(static_cast<uint64_t>(interval.count() / 2 + 1)));
  Duration pause = interval - Duration{early};
  for (;;) {
    co_await sleep_for(client_.environment().clock, pause);
    pause = interval;
    auto present = instance.lock();
    if (!present || present->ended().is_set()) co_return;
    if (present->has_changed()) co_await take(actor, std::move(present));
  }
}

Async<void> Checkpoints::take(ActorId actor, std::shared_ptr<Instance> instance) {
  CallRequest request;
  request.method = TROUPE_CHECKPOINT_METHOD;
  const auto nobody_gives_up = std::make_shared<transport::CancelEvent>(client_.environment().loop);
  const auto call = instance->make_call(std::move(request), nobody_gives_up);
  Result<Bytes> outcome = Bytes{};
  if (auto taken = instance->submit_own(call); !taken) {
    outcome = std::move(taken).error();
  } else {
    outcome = co_await call->outcome();
  }
  if (!outcome && !instance->ended().is_set()) {
    log::warning("checkpoint_failed", {{"actor", actor}, {"why", outcome.error()}});
  }
}

}  // namespace troupe::actor
