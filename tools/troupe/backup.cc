// `troupe backup`, `troupe restore`.
#include <fmt/chrono.h>
#include <fmt/format.h>

#include <boost/json.hpp>
#include <cstdio>
#include <filesystem>

#include "base/clock.h"
#include "head/history.h"
#include "metadata/backup.h"
#include "protocol/messages.h"
#include "security/authority.h"
#include "troupe/commands.h"
#include "troupe/rpc.h"
#include "troupe/state_folder.h"

namespace troupe::tools {
namespace json = boost::json;
using transport::Method;

namespace {

// A slow disk may take long over a large store; whoever waits longer finds the backup in the list.
constexpr Duration backup_budget = std::chrono::minutes(30);

std::string time_text(WallTime time) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(time).time_since_epoch().count();
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(static_cast<std::time_t>(seconds)));
}

WallTime wall_now() {
  return WallTime{std::chrono::system_clock::now().time_since_epoch()};
}

json::object describe(const BackupInfo& info, bool full) {
  json::object out{{"number", info.number},
                   {"time", time_text(info.taken)},
                   {"size_bytes", info.size_bytes},
                   {"copied_bytes", info.copied_bytes},
                   {"state_hash", info.state_hash}};
  if (!full) return out;
  out["cluster"] = info.cluster.to_string();
  out["epoch"] = info.epoch;
  out["schema"] = info.schema;
  return out;
}

int list(const CommonOptions& common, const std::string& directory) {
  auto listed = list_backups(directory);
  if (!listed) return fail(listed.error());
  json::array rows;
  for (const BackupInfo& info : listed->backups) {
    rows.push_back(describe(info, common.format != Format::table));
  }
  print(rows, common.format);
  int status = 0;
  for (const Error& damaged : listed->damaged) status = fail(damaged);
  return status;
}

// Of the certificate with which `troupe up` makes all others; nil: there is none yet.
Result<ClusterId> cluster_of(const StateFolder& folder) {
  auto authority = security::Authority::load(folder.authority());
  if (authority) return authority->cluster();
  if (authority.error().code() == Code::not_found) return ClusterId{};
  return std::move(authority).error();
}

// Of several heads those beside the first one, which have tables here.
std::vector<std::string> other_heads(const StateFolder& folder) {
  const std::string prefix = "metadata-";
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path(), ignored)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(prefix) && name.find('.') == std::string::npos) {
      names.push_back(name.substr(prefix.size()));
    }
  }
  return names;
}

Status move_aside(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return ok();
  std::string aside;
  for (int i = 1; aside.empty() || std::filesystem::exists(aside); ++i) {
    aside = fmt::format("{}.before-restore-{}", path.string(), i);
  }
  std::error_code failed;
  std::filesystem::rename(path, aside, failed);
  if (!failed) return ok();
  return error(Code::unavailable,
               fmt::format("what was restored is in place, but {} is of the state before and could "
                           "not be moved aside ({}): remove it before 'troupe up'",
                           path.string(), failed.message()));
}

}  // namespace

int run_backup(const CommonOptions& common, const BackupCommand& options) {
  const std::string directory = std::filesystem::absolute(options.directory);
  if (options.list) return list(common, directory);
  auto head = connect_head(StateFolder{common.state});
  if (!head) return fail(head.error());
  const protocol::BackUp request{directory, options.keep};
  auto made = (*head)->ask<protocol::BackedUp>(Method::back_up, request, backup_budget);
  if (!made) return fail(made.error());
  BackupInfo info;
  info.number = made->number;
  info.cluster = made->cluster;
  info.schema = made->schema;
  info.epoch = made->epoch;
  info.taken = WallTime{std::chrono::microseconds(made->taken_unix_us)};
  info.state_hash = made->state_hash;
  info.size_bytes = made->size_bytes;
  info.copied_bytes = made->copied_bytes;
  json::object out{{"folder", directory}};
  for (auto& [key, value] : describe(info, true)) out[key] = std::move(value);
  print(out, common.format);
  return 0;
}

int run_restore(const CommonOptions& common, const RestoreCommand& options) {
  const StateFolder folder{common.state};
  if (auto made = folder.create(); !made) return fail(made.error());
  const auto lock = folder.lock();
  if (!lock) return fail(Error(lock.error()).context("restore only where no head runs"));
  const auto cluster = cluster_of(folder);
  if (!cluster) return fail(cluster.error());
  RestoreOptions request;
  request.folder = std::filesystem::absolute(options.directory);
  request.number = options.number;
  request.store = folder.metadata();
  request.cluster = *cluster;
  request.replace = options.force;
  request.changes = head::without_place();
  // The other ones of several heads, and what they agree in, are of the state before.
  const auto others = other_heads(folder);
  std::vector<FileDescriptor> locks;
  for (const std::string& name : others) {
    auto other = folder.lock(name);
    if (!other) return fail(Error(other.error()).context("restore only where no head runs"));
    locks.push_back(std::move(*other));
  }
  request.now = wall_now();
  const auto restored = restore_backup(request);
  if (!restored) return fail(restored.error());
  std::vector<std::filesystem::path> stale{folder.coordination()};
  for (const std::string& name : others) stale.push_back(folder.metadata(name));
  for (const auto& path : stale) {
    if (auto moved = move_aside(path); !moved) return fail(moved.error());
  }
  json::object out{{"state", folder.path().string()}};
  for (auto& [key, value] : describe(restored->backup, true)) out[key] = std::move(value);
  out["epoch"] = restored->epoch;
  if (!restored->moved_aside.empty()) out["moved_aside"] = restored->moved_aside.string();
  print(out, common.format);
  if (cluster->is_nil()) {
    fmt::print(
        stderr,
        "{} has no authority yet. Before 'troupe up', copy from the cluster's former state "
        "folder: authority/ (without it no cluster can use these tables), credentials/*.id "
        "(nodes keep their ids), api_keys.json and gateway.key (keys stay valid), "
        "packages/head (modules of detached actors), checkpoints/head (last states of actors)\n",
        folder.path().string());
  }
  return 0;
}

}  // namespace troupe::tools
