#include "worker/package_cache.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "packages/shelf.h"

namespace troupe::worker {

using packages::PackageFilePointer;

namespace {
constexpr size_t hashes_max = 1024;
// The head may have to get it first; a head that is gone closes the connection.
constexpr Duration silence_max = std::chrono::minutes(10);

constexpr std::string_view checkpoint_kind = "checkpoint";

bool is_archive(const protocol::Package& package) {
  return package.kind == packages::working_folder_kind || package.kind == checkpoint_kind;
}
}  // namespace

PackageCache::PackageCache(transport::Environment environment, Scope& scope,
                           const WorkerOptions& options, const HeadLink& head,
                           std::function<bool(JobId)> in_use)
    : environment_(environment),
      scope_(scope),
      options_(options),
      head_(head),
      in_use_(std::move(in_use)),
      opened_(environment.loop),
      removed_(environment.loop) {}

Async<Result<std::string>> PackageCache::get(JobId job, protocol::Package package,
                                             Instant deadline) {
  if (!is_archive(package)) {
    TROUPE_CO_TRY(auto local, co_await local_file(package));
    if (local) co_return std::move(*local);
  }
  users_[package.hash].insert(job);
  const ActorId nobody;
  co_return co_await get_of(job, nobody, std::move(package), deadline);
}

Async<Result<CheckpointFolder>> PackageCache::checkpoint(JobId job, ActorId actor,
                                                         protocol::Package package,
                                                         Instant deadline) {
  TROUPE_CO_CHECK(co_await open());
  package.kind = checkpoint_kind;
  // Before it comes, so that nothing makes room with it.
  CheckpointFolder held = hold(package.hash);
  auto there = co_await get_of(job, actor, std::move(package), deadline);
  if (!there) co_return std::move(there).error();
  co_return held;
}

CheckpointFolder PackageCache::hold(const std::string& hash) {
  std::erase_if(held_, [](const auto& entry) { return entry.second.expired(); });
  if (auto held = held_[hash].lock()) return held;
  auto made = std::make_shared<const std::string>(folder_->unpacked_of(hash));
  held_[hash] = made;
  return made;
}

bool PackageCache::is_held(const std::string& hash) const {
  const auto found = held_.find(hash);
  return found != held_.end() && !found->second.expired();
}

Async<Result<std::string>> PackageCache::get_of(JobId job, ActorId actor, protocol::Package package,
                                                Instant deadline) {
  for (;;) {
    std::shared_ptr<Fetch>& entry = fetches_[package.hash + package.kind];
    if (!entry) {
      entry = std::make_shared<Fetch>(environment_.loop);
      entry->job = job;
      entry->actor = actor;
      spawn(scope_, fetch(package, entry));
    }
    const auto shared = entry;
    if (!co_await wait_until(environment_.clock, deadline, shared->done)) {
      co_return error(Code::deadline_exceeded,
                      fmt::format("{} is still on its way to this node", package.path));
    }
    if (*shared->outcome || (shared->job == job && shared->actor == actor)) {
      auto outcome = *shared->outcome;  // Named: GCC 12 traps on returning it from there.
      co_return outcome;
    }
    // It was fetched for another job, whose driver may be gone: this one's may be there. Or for
    // another actor, which the head may know no more.
  }
}

Async<Result<std::optional<std::string>>> PackageCache::local_file(protocol::Package package) {
  auto look = [path = package.path] { return packages::mark_of(path); };
  const auto mark = co_await transport::run_blocking(environment_, std::move(look));
  if (!mark || mark->size_bytes != package.size_bytes) co_return std::optional<std::string>{};
  auto known = hashes_.find(*mark);
  if (known == hashes_.end()) {
    auto hash = [path = package.path] { return packages::open_package(path); };
    const auto file = co_await transport::run_blocking(environment_, std::move(hash));
    if (!file) co_return std::optional<std::string>{};
    if (hashes_.size() >= hashes_max) hashes_.clear();
    known = hashes_.insert_or_assign(*mark, (*file)->hash).first;
  }
  if (known->second != package.hash) co_return std::optional<std::string>{};
  co_return std::optional<std::string>{std::move(package.path)};
}

Async<void> PackageCache::fetch(protocol::Package package, std::shared_ptr<Fetch> fetch) {
  const std::string key = package.hash + package.kind;
  while (removing_) co_await removed_.wait();
  const std::string path = package.path;
  auto outcome = co_await find_or_fetch(fetch->job, fetch->actor, std::move(package));
  if (!outcome) {
    outcome = std::move(outcome).error().context("bring " + path + " to this node");
    log::warning("package_not_fetched", {{"path", path}, {"why", outcome.error()}});
  }
  fetches_.erase(key);
  fetch->outcome.emplace(std::move(outcome));
  fetch->done.set();
}

Async<Status> PackageCache::open() {
  while (opening_) co_await opened_.wait();
  if (folder_) co_return ok();
  opening_ = true;
  auto open = [path = options_.package_folder] { return packages::Folder::open(path); };
  auto opened = co_await transport::run_blocking(environment_, std::move(open));
  opening_ = false;
  opened_.pulse();
  if (!opened) co_return std::move(opened).error();
  folder_ = std::move(*opened);
  co_return ok();
}

Async<Result<std::string>> PackageCache::find_or_fetch(JobId job, ActorId actor,
                                                       protocol::Package package) {
  TROUPE_CO_CHECK(co_await open());
  const packages::Folder& folder = *folder_;
  const bool unpacks = is_archive(package);
  const std::string hash = package.hash;
  auto find = [&folder, hash, unpacks] {
    const bool there = unpacks ? folder.has_unpacked(hash) : folder.has_file(hash);
    if (there) folder.touch(hash, unpacks);
    return there;
  };
  const std::string place = unpacks ? folder.unpacked_of(hash) : folder.file_of(hash);
  if (co_await transport::run_blocking(environment_, find)) co_return place;
  const Instant began = environment_.clock.now();
  const auto head = head_.peer();
  if (!head) co_return error(Code::unavailable, "the head is away");
  packages::FetchOptions options;
  options.request.job = job;
  options.request.hash = hash;
  options.request.actor = actor;
  options.silence_max = silence_max;
  options.folder = &folder;
  TROUPE_CO_TRY(auto file, co_await packages::fetch(environment_, head, std::move(options)));
  if (unpacks) {
    const auto how = actor.is_nil() ? packages::ArchiveOptions{} : packages::checkpoint_archive();
    auto unpack = [&folder, file, how] { return folder.unpack_file(*file, how); };
    TROUPE_CO_CHECK(co_await transport::run_blocking(environment_, std::move(unpack)));
  }
  log::info("package_fetched",
            {{"hash", hash},
             {"path", package.path},
             {"bytes", file->size_bytes},
             {"ms", (environment_.clock.now() - began) / std::chrono::milliseconds(1)}});
  spawn(scope_, make_room());
  co_return place;
}

// Removes those that were not used for the longest, until the limit holds.
Async<void> PackageCache::make_room() {
  auto list = [this] { return folder_->list(); };
  auto entries = co_await transport::run_blocking(environment_, list);
  if (removing_) co_return;
  std::ranges::sort(entries, {}, &packages::Folder::Entry::used_ns);
  uint64_t bytes = 0;
  for (const auto& entry : entries) bytes += entry.size_bytes;
  for (auto user = users_.begin(); user != users_.end();) {
    std::erase_if(user->second, [this](JobId job) { return !in_use_(job); });
    user = user->second.empty() ? users_.erase(user) : std::next(user);
  }
  std::vector<packages::Folder::Entry> leaving;
  for (const auto& entry : entries) {
    if (bytes <= options_.package_bytes_max) break;
    if (users_.contains(entry.hash) || is_held(entry.hash)) continue;
    bytes -= entry.size_bytes;
    log::info("package_removed", {{"hash", entry.hash}, {"bytes", entry.size_bytes}});
    leaving.push_back(entry);
  }
  if (leaving.empty()) co_return;
  removing_ = true;
  auto remove = [this, leaving = std::move(leaving)] {
    for (const auto& entry : leaving) folder_->remove(entry);
    return true;
  };
  co_await transport::run_blocking(environment_, std::move(remove));
  removing_ = false;
  removed_.pulse();
}

}  // namespace troupe::worker
