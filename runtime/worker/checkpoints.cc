#include "worker/checkpoints.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/log.h"
#include "packages/names.h"

namespace troupe::worker {
namespace fs = std::filesystem;

using protocol::Checkpoint;
using transport::Method;

namespace {

constexpr Duration store_budget = std::chrono::minutes(10);  // Of one without a deadline.
constexpr Duration head_is_away_pause = std::chrono::milliseconds(100);

// For the head these mean that another start would fail as well: that the actor cannot be had back
// is for its limit of restarts to say.
Error unrestorable(Error failure) {
  switch (failure.code()) {
    case Code::invalid:
    case Code::not_found:
    case Code::denied:
    case Code::unimplemented:
      return error(Code::data_loss, failure.message());
    default:
      return failure;
  }
}

}  // namespace

Checkpoints::Checkpoints(transport::Environment environment, Scope& scope,
                         const WorkerOptions& options, const HeadLink& head, PackageCache& packages,
                         const ActorHost& actors)
    : environment_(environment),
      scope_(scope),
      options_(options),
      head_(head),
      packages_(packages),
      actors_(actors) {}

Async<Status> Checkpoints::start() {
  if (options_.checkpoint_folder.empty()) co_return ok();
  auto make = [path = options_.checkpoint_folder]() -> Status {
    std::error_code failed;
    fs::remove_all(path, failed);
    fs::create_directories(path, failed);
    if (!failed) fs::permissions(path, fs::perms::owner_all, failed);
    if (!failed) return ok();
    return packages::file_error("make the folder for checkpoints " + path, failed.value());
  };
  co_return co_await transport::run_blocking(environment_, std::move(make));
}

Async<Result<transport::Message>> Checkpoints::store(transport::Message message,
                                                     transport::CallContext call) {
  TROUPE_CO_TRY(auto request, protocol::decode<protocol::StoreCheckpoint>(message.body));
  const ProcessId process = call.peer->remote().address.process;
  if (!call.peer->identity().local || !actors_.hosts(request.actor, request.incarnation, process)) {
    co_return error(Code::denied, "this process hosts no such actor");
  }
  if (message.descriptors.size() != 1 || !packages::is_hash(request.hash)) {
    co_return error(Code::invalid, "a checkpoint comes as one file with its hash");
  }
  TROUPE_CO_TRY(auto file, packages::adopt(std::move(message.descriptors[0]), request.hash));
  request.node = options_.node;
  request.size_bytes = file->size_bytes;
  // The head asks for it back.
  struct Offer {
    std::multimap<std::string, packages::PackageFilePointer>& offered;
    std::multimap<std::string, packages::PackageFilePointer>::iterator place;
    ~Offer() { offered.erase(place); }
  } offer{offered_, offered_.emplace(request.hash, std::move(file))};
  const Instant deadline =
      call.deadline == Instant::max() ? environment_.clock.now() + store_budget : call.deadline;
  Error failure = error(Code::unavailable, "the head is away");
  while (environment_.clock.now() < deadline && !call.cancelled->is_set()) {
    const auto head = head_.peer();
    if (head && head->is_open() && head_.is_registered()) {
      request.epoch = head_.epoch();
      const Duration left = deadline - environment_.clock.now();
      auto stored =
          co_await transport::call<Checkpoint>(head, Method::store_checkpoint, request, left);
      if (stored) {
        transport::Message reply{protocol::encode(*stored), {}};
        co_return reply;
      }
      failure = std::move(stored).error();
      // It takes the same state twice as it takes it once.
      const bool asks_again =
          failure.code() == Code::unavailable || failure.code() == Code::outcome_unknown;
      if (!asks_again) co_return failure;
    }
    co_await sleep_for(environment_.clock, head_is_away_pause);
  }
  co_return failure;
}

Async<Status> Checkpoints::give(transport::Message message, transport::OutgoingStream& out) {
  TROUPE_CO_TRY(const auto request, protocol::decode<protocol::GetPackage>(message.body));
  const auto found = offered_.find(request.hash);
  if (found == offered_.end()) {
    co_return error(Code::not_found, "this node stores no checkpoint " + request.hash);
  }
  auto file = found->second;
  co_return co_await packages::send(environment_, std::move(file), request.offset_bytes, out);
}

Async<Result<CheckpointFolder>> Checkpoints::bring(protocol::StartActor request, Instant deadline) {
  const Checkpoint& checkpoint = request.checkpoint;
  protocol::Package package;
  package.hash = checkpoint.hash;
  package.path = fmt::format("checkpoint {}", checkpoint.number);
  package.size_bytes = checkpoint.size_bytes;
  auto brought = co_await packages_.checkpoint(request.spec.job, request.spec.actor,
                                               std::move(package), deadline);
  if (!brought) co_return unrestorable(std::move(brought).error());
  co_return brought;
}

void Checkpoints::process_gone(ProcessId process) {
  if (options_.checkpoint_folder.empty()) return;
  spawn(scope_, remove(checkpoint_folder_of(options_, process)));
}

Async<void> Checkpoints::remove(std::string path) {
  auto remove = [path] {
    std::error_code ignored;
    return fs::remove_all(path, ignored);
  };
  co_await transport::run_blocking(environment_, std::move(remove));
}

}  // namespace troupe::worker
