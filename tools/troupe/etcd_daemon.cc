#include "troupe/etcd_daemon.h"

#include <fmt/format.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/log.h"
#include "etcd/etcd_server.h"
#include "security/authority.h"
#include "security/credentials.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"

extern char** environ;

namespace troupe::tools {

namespace {

// Debian's place, or wherever PATH leads.
Result<std::string> find_etcd() {
  const char* path = std::getenv("PATH");
  std::string folders = path != nullptr ? path : "";
  folders += ":/usr/bin:/usr/local/bin";
  size_t begin = 0;
  while (begin <= folders.size()) {
    const size_t end = std::min(folders.find(':', begin), folders.size());
    const std::string program = folders.substr(begin, end - begin) + "/etcd";
    if (::access(program.c_str(), X_OK) == 0) return program;
    begin = end + 1;
  }
  return error(Code::not_found,
               "more than one head need etcd, which is not installed: run 'apt install "
               "etcd-server', or use one head");
}

Status issue(const security::Authority& authority, const std::filesystem::path& folder,
             security::Role role, const std::string& name, const std::string& host, WallTime now) {
  security::IdentitySpec spec;
  spec.role = role;
  spec.name = name;
  spec.dns_names = {"localhost"};
  spec.ip_addresses = {host};
  TROUPE_TRY(auto issued, authority.issue(spec, now));
  return security::save_credentials(
      folder, {authority.certificate_pem(), issued.certificate_pem, issued.key_pem});
}

}  // namespace

std::string etcd_credentials(const std::string& head) {
  return "etcd-of-" + head;
}

Status prepare_etcd(const StateFolder& folder, const std::string& host,
                    const std::vector<std::string>& heads, WallTime now) {
  TROUPE_TRY(const auto program, find_etcd());
  (void)program;
  TROUPE_TRY(const auto cluster, security::Authority::load(folder.authority()));
  std::error_code failed;
  std::filesystem::create_directories(folder.coordination(), failed);
  if (!failed) {
    std::filesystem::permissions(folder.coordination(), std::filesystem::perms::owner_all, failed);
  }
  if (failed) {
    return error(Code::unavailable,
                 fmt::format("make {}: {}", folder.coordination().string(), failed.message()));
  }
  const auto place = folder.coordination() / "authority";
  auto authority = security::Authority::load(place);
  if (!authority && authority.error().code() == Code::not_found) {
    authority = security::Authority::create(cluster.cluster(), now);
    if (authority) TROUPE_CHECK(authority->save(place));
  }
  if (!authority) return std::move(authority).error();
  TROUPE_CHECK(issue(*authority, folder.coordination(), security::Role::etcd, "etcd", host, now));
  for (const std::string& head : heads) {
    TROUPE_CHECK(issue(*authority, folder.credentials(etcd_credentials(head)), security::Role::head,
                       head, host, now));
  }
  return ok();
}

int run_etcd(const CommonOptions& common, const DaemonOptions& options) {
  const StateFolder folder{common.state};
  log::start(options.name, log::level_from(std::getenv("TROUPE_LOG")));
  const auto refuse = [](const Error& why) {
    log::error("start_failed", {{"why", why}});
    report_failure(why);
    return fail(why);
  };
  const auto program = find_etcd();
  if (!program) return refuse(program.error());
  const auto cluster = security::Authority::load(folder.authority());
  if (!cluster) return refuse(cluster.error());
  etcd::EtcdServerOptions server;
  server.folder = folder.coordination();
  server.cluster = cluster->cluster().to_string();
  server.client_address = fmt::format("{}:{}", options.host, options.port);
  server.self = {options.name, fmt::format("{}:{}", options.host, options.peer_port)};
  std::vector<std::string> arguments = etcd::etcd_arguments(server);
  arguments.insert(arguments.begin(), "etcd");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<char*> envp;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, "ETCD_", 5) != 0) envp.push_back(*entry);
  }
  envp.push_back(nullptr);
  // Whoever asks it waits until it answers.
  report_ready(boost::json::object{{"port", options.port}});
  ::execve(program->c_str(), argv.data(), envp.data());
  return fail(
      error(Code::unavailable, fmt::format("start {}: {}", *program, std::strerror(errno))));
}

}  // namespace troupe::tools
