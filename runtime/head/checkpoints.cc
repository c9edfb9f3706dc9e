#include "head/checkpoints.h"

#include <fmt/format.h>

#include "base/log.h"
#include "head/under_way.h"
#include "packages/names.h"

namespace troupe::head {

using protocol::Checkpoint;

namespace {

std::string name_of(const Checkpoint& checkpoint, ActorId actor) {
  return fmt::format("checkpoint {} of actor {}", checkpoint.number, actor.short_string());
}

}  // namespace

Checkpoints::Checkpoints(transport::Environment environment, const HeadOptions& options,
                         Scope& scope, Journal& journal, Actors& actors, Replicator* replicator)
    : environment_(environment),
      options_(options),
      scope_(scope),
      journal_(journal),
      actors_(actors),
      replicator_(replicator),
      fetches_(environment.loop, fetches_max),
      removed_(environment.loop) {}

Async<Status> Checkpoints::start() {
  for (const auto& [id, actor] : actors_.all()) {
    const std::string& hash = actor.info().checkpoint.hash;
    if (hash.empty()) continue;
    hashes_[id] = hash;
    ++uses_[hash];
  }
  if (options_.checkpoint_folder.empty()) co_return ok();
  std::set<std::string> named;
  for (const auto& [hash, count] : uses_) named.insert(hash);
  auto open = [path = options_.checkpoint_folder,
               named = std::move(named)]() -> Result<packages::Folder> {
    TROUPE_TRY(auto folder, packages::Folder::open(path));
    // What an earlier head had fetched and not noted, or had replaced and not removed.
    for (const auto& entry : folder.list()) {
      if (!named.contains(entry.hash)) folder.remove(entry);
    }
    return folder;
  };
  TROUPE_CO_TRY(folder_, co_await transport::run_blocking(environment_, std::move(open)));
  co_return ok();
}

Status Checkpoints::is_waited_for(const transport::CallContext& call) const {
  if (!call.cancelled->is_set() && environment_.clock.now() < call.deadline) return ok();
  return error(Code::cancelled, "its worker waits for this checkpoint no more");
}

Async<Result<Checkpoint>> Checkpoints::store(protocol::StoreCheckpoint request,
                                             transport::CallContext call) {
  if (!folder_) co_return error(Code::unimplemented, "this head keeps no checkpoints");
  if (!packages::is_hash(request.hash)) {
    co_return error(Code::invalid, "a checkpoint's hash has 64 hexadecimal digits");
  }
  if (request.size_bytes > options_.checkpoint_bytes_max) {
    co_return error(
        Code::invalid,
        fmt::format("the state of actor {} has {} bytes, a checkpoint has at most {}: see troupe "
                    "up --checkpoint-mib",
                    request.actor.short_string(), request.size_bytes,
                    options_.checkpoint_bytes_max));
  }
  TROUPE_CO_CHECK(actors_.may_checkpoint(request, call.peer));
  const auto permit = co_await fetches_.acquire();
  TROUPE_CO_CHECK(is_waited_for(call));
  // Of the room that the store needs it must take nothing.
  TROUPE_CO_CHECK(journal_.admits(fetching_bytes_ + request.size_bytes));
  const Hold hold{*this, request.hash};
  TROUPE_CO_CHECK(co_await fetch(request, call.peer));
  if (replicator_ != nullptr) co_await bring_to_others(request);
  // Its node may have been given up meanwhile, or another incarnation begun; or its worker has
  // given this one up, and has stored a newer one.
  TROUPE_CO_CHECK(is_waited_for(call));
  TROUPE_CO_CHECK(actors_.may_checkpoint(request, call.peer));
  const Actors::Noted noted = actors_.set_checkpoint(request);
  ++uses_[request.hash];
  const std::string before = std::exchange(hashes_[request.actor], request.hash);
  // While it is not durable, a new head may find the row as it was.
  TROUPE_CO_CHECK(co_await journal_.settled(noted.written));
  if (!before.empty()) release(before);
  log::info("checkpoint_stored", {{"actor", request.actor},
                                  {"number", noted.checkpoint.number},
                                  {"incarnation", request.incarnation},
                                  {"bytes", request.size_bytes},
                                  {"hash", request.hash}});
  co_return noted.checkpoint;
}

Async<Status> Checkpoints::fetch(protocol::StoreCheckpoint request,
                                 std::shared_ptr<transport::Peer> worker) {
  const UnderWay under_way{fetching_bytes_, request.size_bytes};
  while (removing_.contains(request.hash)) co_await removed_.wait();
  packages::FetchOptions options;
  options.request.hash = request.hash;
  options.request.actor = request.actor;
  options.silence_max = options_.package_silence;
  options.folder = &*folder_;
  options.keep = packages::Keep::durable;
  options.bytes_max = request.size_bytes;
  auto fetched = co_await packages::fetch(environment_, std::move(worker), std::move(options));
  if (fetched) co_return ok();
  log::warning("checkpoint_not_fetched", {{"actor", request.actor}, {"why", fetched.error()}});
  co_return std::move(fetched).error().context(
      fmt::format("bring a checkpoint of actor {} to the head", request.actor.short_string()));
}

// Before the row is written: who stands by would keep it and all later ones waiting for the file.
Async<void> Checkpoints::bring_to_others(protocol::StoreCheckpoint request) {
  StoredActor named;
  named.record.info.actor = request.actor;
  named.record.info.checkpoint.hash = request.hash;
  named.record.info.checkpoint.size_bytes = request.size_bytes;
  Batch rows;
  put_actor(rows, named);
  co_await replicator_->bring_files(std::move(rows), request.size_bytes);
}

Async<Status> Checkpoints::copy(protocol::GetPackage request, transport::OutgoingStream& out) {
  if (!folder_ || !packages::is_hash(request.hash)) {
    co_return error(Code::not_found, "this head keeps no checkpoint " + request.hash);
  }
  auto open = [path = folder_->file_of(request.hash), hash = request.hash] {
    return packages::open_hashed(path, hash);
  };
  auto file = co_await transport::run_blocking(environment_, std::move(open));
  if (!file && file.error().code() == Code::not_found && uses_.contains(request.hash)) {
    co_return error(Code::data_loss, file.error().message());
  }
  if (!file) co_return std::move(file).error();
  co_return co_await packages::send(environment_, std::move(*file), request.offset_bytes, out);
}

Async<Status> Checkpoints::give(protocol::GetPackage request, transport::OutgoingStream& out) {
  const Actor* actor = actors_.find(request.actor);
  if (actor == nullptr || actor->info().checkpoint.hash != request.hash) {
    co_return error(Code::not_found, fmt::format("actor {} has no checkpoint {}",
                                                 request.actor.short_string(), request.hash));
  }
  const Checkpoint checkpoint = actor->info().checkpoint;
  const std::string name = name_of(checkpoint, request.actor);
  if (!folder_)
    co_return error(Code::data_loss, "this head keeps no checkpoints: it lacks " + name);
  auto open = [path = folder_->file_of(checkpoint.hash), hash = checkpoint.hash] {
    return packages::open_hashed(path, hash);
  };
  auto file = co_await transport::run_blocking(environment_, std::move(open));
  if (!file && file.error().code() == Code::not_found) {
    co_return error(Code::data_loss,
                    fmt::format("{} ({}) is not at this head, in {}: it was removed", name,
                                checkpoint.hash, folder_->path()));
  }
  if (!file) co_return std::move(file).error().context("read " + name);
  co_return co_await packages::send(environment_, std::move(*file), request.offset_bytes, out);
}

void Checkpoints::actor_changed(const Actor& actor) {
  if (actor.state != ActorState::dead) return;
  const auto found = hashes_.find(actor.info().actor);
  if (found == hashes_.end()) return;
  spawn(scope_, release_once_durable(std::move(found->second), actor.written));
  hashes_.erase(found);
}

Async<void> Checkpoints::release_once_durable(std::string hash, Journal::Ticket written) {
  const Status durable = co_await journal_.durable(written);
  if (durable) release(hash);
}

void Checkpoints::release(const std::string& hash) {
  const auto found = uses_.find(hash);
  if (found == uses_.end() || --found->second > 0) return;
  uses_.erase(found);
  if (folder_ && removing_.insert(hash).second) spawn(scope_, remove(hash));
}

Async<void> Checkpoints::remove(std::string hash) {
  auto remove = [folder = *folder_, hash] {
    folder.remove({.hash = hash});
    return true;
  };
  co_await transport::run_blocking(environment_, std::move(remove));
  removing_.erase(hash);
  removed_.pulse();
}

}  // namespace troupe::head
