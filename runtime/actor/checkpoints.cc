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
        saved(actor, incarnation, std::move(instance), std::move(state));
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

void Checkpoints::saved(ActorId actor, uint32_t incarnation, std::shared_ptr<Instance> instance,
                        State state) {
  Queue& queue = queues_[actor];
  queue.waiting.push_back(std::move(state));
  if (std::exchange(queue.storing, true)) return;
  spawn(client_.scope(), store_all(actor, incarnation, std::move(instance)));
}

Async<void> Checkpoints::store_all(ActorId actor, uint32_t incarnation,
                                   std::shared_ptr<Instance> instance) {
  while (!queues_[actor].waiting.empty()) {
    const auto states = std::exchange(queues_[actor].waiting, {});
    std::vector<std::string> paths;
    for (const State& state : states) paths.push_back(state.path);
    const auto outcome = co_await store(actor, incarnation, std::move(paths));
    for (const State& state : states) state.done(outcome);
  }
  queues_.erase(actor);
  instance.reset();
}

Async<Result<Bytes>> Checkpoints::store(ActorId actor, uint32_t incarnation,
                                        std::vector<std::string> paths) {
  auto pack = [paths] {
    const std::string& newest = paths.back();
    auto archive = packages::pack(
        newest, packages::checkpoint_archive(fs::path{newest}.parent_path().string()));
    std::error_code ignored;
    for (const std::string& path : paths) fs::remove_all(path, ignored);
    return archive;
  };
  TROUPE_CO_TRY(const auto archive,
                co_await transport::run_blocking(client_.environment(), std::move(pack)));
  FileDescriptor file{::fcntl(archive->file.get(), F_DUPFD_CLOEXEC, 0)};
  if (!file.is_open()) co_return packages::file_error("send a checkpoint", errno);
  protocol::StoreCheckpoint request;
  request.actor = actor;
  request.incarnation = incarnation;
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
  for (;;) {
    co_await sleep_for(client_.environment().clock, interval);
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
  if (auto taken = instance->submit(call); !taken) {
    outcome = std::move(taken).error();
  } else {
    outcome = co_await call->outcome();
  }
  if (!outcome && !instance->ended().is_set()) {
    log::warning("checkpoint_failed", {{"actor", actor}, {"why", outcome.error()}});
  }
}

}  // namespace troupe::actor
