#include "troupe/state_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "security/private_files.h"

namespace troupe::tools {
namespace json = boost::json;

namespace {

Error system_error(const std::string& doing, int number) {
  const Code code = number == ENOSPC || number == EDQUOT || number == EMFILE ? Code::exhausted
                    : number == EACCES || number == EPERM || number == EROFS ? Code::denied
                                                                             : Code::unavailable;
  std::string text = doing + ": " + std::strerror(number);
  if (number == ENOSPC || number == EDQUOT) text += ": free some space and try again";
  return error(code, std::move(text));
}

}  // namespace

StateFolder::StateFolder(const std::string& path) : path_(path) {
  if (path_.empty()) {
    if (const char* given = std::getenv("TROUPE_STATE"); given != nullptr && *given != '\0') {
      path_ = given;
    } else {
      const char* home = std::getenv("HOME");
      path_ = std::filesystem::path(home != nullptr ? home : "/tmp") / ".troupe";
    }
  }
  path_ = std::filesystem::absolute(path_);
}

Status StateFolder::create() const {
  for (const auto& folder : {path_, sockets(), logs(), path_ / "credentials"}) {
    std::error_code failed;
    if (folder == path_) std::filesystem::create_directories(folder.parent_path(), failed);
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
      return system_error("make the state directory " + folder.string(), errno);
    }
    struct stat status {};
    if (::stat(folder.c_str(), &status) != 0)
      return system_error("look at " + folder.string(), errno);
    if (!S_ISDIR(status.st_mode)) {
      return error(Code::invalid,
                   folder.string() + " is no directory: choose another with --state");
    }
    if (status.st_uid != ::geteuid()) {
      return error(Code::denied,
                   folder.string() + " belongs to another user: choose another with --state");
    }
    if ((status.st_mode & 077) != 0) {
      return error(Code::denied,
                   fmt::format("other users may enter {}: run 'chmod 700 {}', for keys lie there",
                               folder.string(), folder.string()));
    }
  }
  return ok();
}

Result<FileDescriptor> StateFolder::lock(const std::string& head) const {
  const auto path = path_ / ("lock" + suffix(head));
  FileDescriptor file{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  if (!file.is_open()) return system_error("open " + path.string(), errno);
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    return error(Code::conflict,
                 fmt::format("a cluster runs in {} already: use it, stop it with 'troupe down', or "
                             "choose another state directory with --state",
                             path_.string()));
  }
  return file;
}

Result<ClusterRecord> StateFolder::read_record() const {
  const auto path = path_ / "cluster.json";
  auto text = read_file(path);
  if (!text) {
    return error(Code::unavailable,
                 fmt::format("no cluster runs in {}: start one with 'troupe up', or "
                             "name its state directory with --state",
                             path_.string()));
  }
  try {
    const auto value = json::parse(*text);
    ClusterRecord record;
    record.cluster_id = value.at("cluster_id").as_string();
    record.version = value.at("version").as_string();
    record.host = value.at("host").as_string();
    record.heads = json::value_to<std::vector<std::string>>(value.at("heads"));
    record.gateway_port = value.at("gateway_port").to_number<uint16_t>();
    record.gateway_https = value.at("gateway_https").as_string();
    for (const auto& item : value.at("daemons").as_array()) {
      DaemonRecord daemon;
      daemon.kind = item.at("kind").as_string();
      daemon.name = item.at("name").as_string();
      daemon.pid = item.at("pid").to_number<int>();
      daemon.started_ticks = item.at("started_ticks").to_number<uint64_t>();
      daemon.arguments = json::value_to<std::vector<std::string>>(item.at("arguments"));
      record.daemons.push_back(std::move(daemon));
    }
    return record;
  } catch (const std::exception& caught) {
    return error(Code::data_loss,
                 fmt::format("{} is damaged ({}): if nothing of the cluster runs any "
                             "more, remove it and run 'troupe up'",
                             path.string(), caught.what()));
  }
}

Status StateFolder::write_record(const ClusterRecord& record) const {
  json::object value;
  value["cluster_id"] = record.cluster_id;
  value["version"] = record.version;
  value["host"] = record.host;
  value["heads"] = json::value_from(record.heads);
  value["gateway_port"] = record.gateway_port;
  value["gateway_https"] = record.gateway_https;
  json::array daemons;
  for (const DaemonRecord& daemon : record.daemons) {
    daemons.push_back(json::object{{"kind", daemon.kind},
                                   {"name", daemon.name},
                                   {"pid", daemon.pid},
                                   {"started_ticks", daemon.started_ticks},
                                   {"arguments", json::value_from(daemon.arguments)}});
  }
  value["daemons"] = std::move(daemons);
  return security::write_private_file(path_ / "cluster.json", json::serialize(value) + "\n");
}

void StateFolder::remove_record() const {
  std::error_code ignored;
  std::filesystem::remove(path_ / "cluster.json", ignored);
}

Result<std::string> read_file(const std::filesystem::path& path) {
  FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file.is_open()) {
    if (errno == ENOENT) return error(Code::not_found, "no file " + path.string());
    return system_error("read " + path.string(), errno);
  }
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t count = ::read(file.get(), buffer, sizeof buffer);
    if (count < 0) return system_error("read " + path.string(), errno);
    if (count == 0) return text;
    text.append(buffer, static_cast<size_t>(count));
  }
}

}  // namespace troupe::tools
