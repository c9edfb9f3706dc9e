#include "head/packages.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "head/job_environment.h"
#include "head/under_way.h"
#include "packages/names.h"

namespace troupe::head {

using packages::PackageFilePointer;

Packages::Packages(transport::Environment environment, const HeadOptions& options, Scope& scope,
                   Journal& journal, Jobs& jobs, std::function<std::set<JobId>()> needed,
                   Replicator* replicator)
    : environment_(environment),
      options_(options),
      scope_(scope),
      journal_(journal),
      jobs_(jobs),
      needed_(std::move(needed)),
      replicator_(replicator),
      removed_(environment.loop) {}

Async<Status> Packages::start() {
  if (options_.package_folder.empty()) co_return ok();
  auto open = [path = options_.package_folder] { return packages::Folder::open(path); };
  TROUPE_CO_TRY(folder_, co_await transport::run_blocking(environment_, std::move(open)));
  kept_ = 1;  // What an earlier head left: looked through once.
  collect_soon();
  co_return ok();
}

Async<Status> Packages::give(transport::Message message, transport::CallContext,
                             transport::OutgoingStream& out) {
  TROUPE_CO_TRY(const auto request, protocol::decode<protocol::GetPackage>(message.body));
  TROUPE_CO_TRY(const auto job, jobs_.find(request.job));
  const auto& known = job.environment.packages;
  const auto package = std::ranges::find(known, request.hash, &protocol::Package::hash);
  if (package == known.end()) {
    co_return error(Code::not_found,
                    fmt::format("job {} has no package {}", request.job.to_string(), request.hash));
  }
  TROUPE_CO_TRY(auto file, co_await find(*package));
  co_return co_await packages::send(environment_, std::move(file), request.offset_bytes, out);
}

Async<Status> Packages::copy(protocol::GetPackage request, transport::OutgoingStream& out) {
  if (!folder_ || !packages::is_hash(request.hash)) {
    co_return error(Code::not_found, "this head has no package " + request.hash);
  }
  auto open = [path = folder_->file_of(request.hash), hash = request.hash] {
    return packages::open_hashed(path, hash);
  };
  TROUPE_CO_TRY(auto file, co_await transport::run_blocking(environment_, std::move(open)));
  co_return co_await packages::send(environment_, std::move(file), request.offset_bytes, out);
}

Async<Status> Packages::hold(JobId id) {
  const auto job = jobs_.find(id);
  if (!job) co_return ok();
  const auto wanted = job->environment.packages;
  const auto held = held_.find(id);
  if (wanted.empty() || (held != held_.end() && held->second == wanted.size())) co_return ok();
  uint64_t bytes = 0;
  for (const protocol::Package& package : wanted) {
    auto file = co_await find(package);
    if (!file) co_return std::move(file).error();
    bytes += (*file)->size_bytes;
  }
  if (replicator_ != nullptr) {
    protocol::JobInfo named;
    named.job = id;
    named.environment.packages = wanted;
    Batch rows;
    put_job(rows, named);
    co_await replicator_->bring_files(std::move(rows), bytes);
  }
  held_[id] = wanted.size();
  co_return ok();
}

Async<Result<PackageFilePointer>> Packages::find(protocol::Package package) {
  if (!folder_) co_return error(Code::unavailable, "this head keeps no packages");
  std::shared_ptr<Fetch>& entry = fetches_[package.hash];
  if (!entry) {
    entry = std::make_shared<Fetch>(environment_.loop);
    spawn(scope_, fetch(std::move(package), entry));
  }
  const auto shared = entry;
  co_await shared->done.wait();
  auto outcome = *shared->outcome;  // Named: GCC 12 traps on returning it from there.
  co_return outcome;
}

Async<void> Packages::fetch(protocol::Package package, std::shared_ptr<Fetch> fetch) {
  const std::string& hash = package.hash;
  const std::string& path = package.path;
  while (removing_) co_await removed_.wait();
  const packages::Folder& folder = *folder_;
  auto open = [&folder, hash]() -> Result<PackageFilePointer> {
    if (!folder.has_file(hash)) return PackageFilePointer{};
    return packages::open_hashed(folder.file_of(hash), hash);
  };
  auto file = co_await transport::run_blocking(environment_, std::move(open));
  if (file && !*file) {
    ++kept_;
    file = co_await fetch_from_drivers(package);
    if (file) {
      log::info("package_fetched",
                {{"hash", hash}, {"path", path}, {"bytes", (*file)->size_bytes}});
    } else {
      log::warning("package_not_fetched", {{"hash", hash}, {"path", path}, {"why", file.error()}});
    }
  }
  fetches_.erase(hash);
  fetch->outcome.emplace(std::move(file));
  fetch->done.set();
}

Async<Result<PackageFilePointer>> Packages::fetch_from_drivers(protocol::Package package) {
  const std::string& hash = package.hash;
  // Of the room that the store needs it must take nothing.
  TROUPE_CO_CHECK(journal_.admits(fetching_bytes_ + package.size_bytes));
  const UnderWay under_way{fetching_bytes_, package.size_bytes};
  Error failure = error(Code::unavailable, "its driver is not connected");
  const auto told = [&] {
    return std::move(failure).context("get " + package.path + " from the driver");
  };
  std::set<const transport::Peer*> asked;
  const Instant patience = environment_.clock.now() + options_.package_silence;
  for (;;) {
    bool asks = false;
    const auto peers = jobs_.who_may_have(hash);
    for (const auto& peer : peers) {
      if (!asked.insert(peer.get()).second) continue;
      asks = true;
      packages::FetchOptions options;
      options.request.hash = hash;
      options.silence_max = options_.package_silence;
      options.folder = &*folder_;
      // What stands by has it durably, and may become the one that gives it.
      if (replicator_ != nullptr) options.keep = packages::Keep::durable;
      if (package.size_bytes != 0) options.bytes_max = package.size_bytes;
      auto fetched = co_await packages::fetch(environment_, peer, std::move(options));
      if (fetched) co_return std::move(fetched);
      const Code code = fetched.error().code();
      if (code == Code::data_loss) {
        failure = error(code, fmt::format("it is not what it was when the job began ({}): begin "
                                          "another job",
                                          fetched.error().message()));
        co_return told();
      }
      if (code == Code::exhausted || code == Code::denied || code == Code::internal) {
        failure = std::move(fetched).error();
        co_return told();
      }
      // One that does not have it says nothing about others.
      if (code != Code::not_found && code != Code::unimplemented) {
        failure = std::move(fetched).error();
      }
    }
    if (asks) continue;  // Somebody may have come meanwhile.
    // A driver that lost its connection is back soon, or its job ends.
    if (!jobs_.names(hash)) co_return told();
    const bool changed = co_await wait_until(environment_.clock, patience, jobs_.drivers_changed());
    if (!changed) co_return told();
  }
}

void Packages::collect_soon() {
  if (!folder_ || kept_ == 0) return;
  collect_again_ = true;
  if (std::exchange(collecting_, true)) return;
  spawn(scope_, collect());
}

std::vector<packages::Folder::Entry> Packages::unneeded(
    const std::vector<packages::Folder::Entry>& entries) {
  const std::set<JobId> needed = needed_();
  // Other heads may keep no more of a job than its actors need.
  std::erase_if(held_, [&](const auto& entry) { return !needed.contains(entry.first); });
  const auto is_needed = [&](const std::string& hash) {
    if (jobs_.names(hash) || fetches_.contains(hash)) return true;
    return std::ranges::any_of(needed, [&](JobId id) {
      const auto job = jobs_.find(id);
      return job && names(job->environment, hash);
    });
  };
  std::vector<packages::Folder::Entry> found;
  for (const auto& entry : entries) {
    if (!is_needed(entry.hash)) found.push_back(entry);
  }
  return found;
}

Async<void> Packages::collect() {
  while (std::exchange(collect_again_, false)) {
    auto list = [this] { return folder_->list(); };
    const auto entries = co_await transport::run_blocking(environment_, list);
    auto leaving = unneeded(entries);
    // A later head may find who needed them until that is durable.
    const Status durable = co_await journal_.durable(journal_.latest());
    if (!durable) break;
    leaving = unneeded(leaving);
    kept_ = entries.size() - leaving.size() + fetches_.size();
    for (const auto& entry : leaving) log::info("package_removed", {{"hash", entry.hash}});
    if (leaving.empty()) continue;
    removing_ = true;  // Who comes for one of them now fetches it anew, afterwards.
    auto remove = [this, leaving] {
      for (const auto& entry : leaving) folder_->remove(entry);
      return true;
    };
    co_await transport::run_blocking(environment_, std::move(remove));
    removing_ = false;
    removed_.pulse();
  }
  collecting_ = false;
}

}  // namespace troupe::head
