// `troupe submit`, `deploy`, `undeploy`, `report`, `key create`.
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "protocol/codec.h"
#include "security/api_keys.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/http_get.h"
#include "troupe/rpc.h"
#include "troupe/state_folder.h"

namespace troupe::tools {
namespace json = boost::json;
using protocol::Empty;
using transport::Method;

int run_submit(const CommonOptions& common, const SubmitOptions& options) {
  const StateFolder folder{common.state};
  auto record = folder.read_record();
  if (!record) return fail(record.error());
  SystemRandom random;
  const JobId job = JobId::random(random);
  ::setenv("TROUPE_STATE", folder.path().c_str(), 1);
  ::setenv("TROUPE_JOB_ID", job.to_string().c_str(), 1);
  if (!options.name.empty()) ::setenv("TROUPE_JOB_NAME", options.name.c_str(), 1);
  // The driver is in our process group, so Ctrl-C reaches it by itself: it ends its job.
  ::signal(SIGINT, SIG_IGN);
  const pid_t pid = ::fork();
  if (pid < 0) return fail(error(Code::exhausted, std::string("fork: ") + std::strerror(errno)));
  if (pid == 0) {
    ::signal(SIGINT, SIG_DFL);
    std::vector<std::string> arguments = options.command;
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    std::fprintf(stderr, "troupe: cannot run %s: %s\n", argv[0], std::strerror(errno));
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 0;
  const std::string how =
      WIFSIGNALED(status) ? fmt::format("the driver was ended by signal {}", WTERMSIG(status))
                          : fmt::format("the driver exited with status {}", WEXITSTATUS(status));
  if (auto head = connect_head(folder)) {
    protocol::EndJob end;
    end.job = job;
    end.message = how;
    // A driver that never joined has no job to end.
    auto ended = (*head)->ask<Empty>(Method::end_job, end, std::chrono::seconds(5));
    if (!ended) log::debug("job_not_ended", {{"why", ended.error().message()}});
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int run_deploy(const CommonOptions& common, const DeployOptions& options) {
  watch_interrupts();
  const StateFolder folder{common.state};
  json::object config;
  if (!options.config.empty()) {
    boost::system::error_code failed;
    auto parsed = json::parse(options.config, failed);
    if (failed || !parsed.is_object()) {
      return fail(error(Code::invalid, "--config is no JSON object: " + failed.message()));
    }
    config = parsed.get_object();
  }
  std::error_code missing;
  const auto model = std::filesystem::canonical(options.model, missing);
  if (missing) {
    return fail(error(Code::not_found,
                      fmt::format("no model directory {}: {}", options.model, missing.message())));
  }
  config["model"] = model.string();
  config["name"] = options.name;
  auto head = connect_head(folder);
  if (!head) return fail(head.error());
  protocol::DeploymentSpec spec;
  spec.name = options.name;
  spec.module = options.plugin;
  spec.class_name = options.class_name;
  spec.config = json::serialize(config);
  spec.replicas = static_cast<uint32_t>(options.replicas);
  const auto add = [&](const char* resource, double amount) {
    if (amount > 0) spec.demand.push_back({resource, static_cast<int64_t>(amount * 1000)});
  };
  add("cpu", options.cpus);
  add("gpu", options.gpus);
  auto info = (*head)->ask<protocol::DeploymentInfo>(Method::deploy, spec);
  if (!info) return fail(info.error());
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(options.timeout_s);
  while (options.wait && info->state != "ready") {
    if (info->state == "failed") {
      return fail(error(Code::internal,
                        fmt::format("deployment {} failed: {}; it is kept for 'troupe "
                                    "describe {}', remove it with 'troupe undeploy {}'",
                                    options.name, info->reason, options.name, options.name)));
    }
    if (was_interrupted())
      return fail(error(Code::cancelled, "interrupted; the deployment goes on"));
    if (std::chrono::steady_clock::now() > end) {
      return fail(error(Code::deadline_exceeded,
                        fmt::format("deployment {} is not ready after {} s: {}", options.name,
                                    options.timeout_s, info->reason)));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    auto list = (*head)->ask<protocol::DeploymentList>(Method::list_deployments, Empty{});
    if (!list) return fail(list.error());
    const auto found = std::find_if(list->items.begin(), list->items.end(), [&](const auto& item) {
      return item.spec.name == options.name;
    });
    if (found == list->items.end()) {
      return fail(error(Code::cancelled, "the deployment was removed meanwhile"));
    }
    *info = *found;
  }
  json::object out{
      {"name", info->spec.name}, {"state", info->state}, {"replicas", info->spec.replicas}};
  if (auto record = folder.read_record(); record && record->gateway_port != 0) {
    out["url"] = fmt::format("http://{}:{}/v1/completions", record->host, record->gateway_port);
  }
  print(out, common.format);
  return 0;
}

int run_undeploy(const CommonOptions& common, const std::string& name) {
  auto head = connect_head(StateFolder{common.state});
  if (!head) return fail(head.error());
  auto gone = (*head)->ask<Empty>(Method::undeploy, protocol::NameOf{name});
  if (!gone) return fail(gone.error());
  print(json::object{{"name", name}, {"state", "removed"}}, common.format);
  return 0;
}

int run_report(const CommonOptions& common, const std::string& name) {
  const StateFolder folder{common.state};
  auto record = folder.read_record();
  if (!record) return fail(record.error());
  if (record->gateway_port == 0) {
    return fail(error(Code::unavailable,
                      "this cluster has no gateway: 'troupe up' without "
                      "--gateway-port -1 starts one"));
  }
  auto key = read_file(folder.gateway_key());
  if (!key) return fail(key.error());
  while (!key->empty() && key->back() == '\n') key->pop_back();
  HttpGet get;
  get.host = record->host;
  get.port = record->gateway_port;
  get.target = "/v1/troupe/stats";
  get.api_key = *key;
  auto body = http_get(get);
  if (!body) return fail(body.error());
  boost::system::error_code failed;
  const auto stats = json::parse(*body, failed);
  if (failed) return fail(error(Code::internal, "the gateway's answer is no JSON"));
  const auto* models = stats.is_object() ? stats.get_object().if_contains("models") : nullptr;
  if (models != nullptr && models->is_object()) {
    if (const auto* found = models->get_object().if_contains(name)) {
      print(*found, common.format);
      return 0;
    }
  }
  return fail(error(Code::not_found, fmt::format("no deployment is called '{}': see 'troupe list "
                                                 "deployments'",
                                                 name)));
}

int run_key_create(const CommonOptions& common, const std::string& name, bool admin) {
  const StateFolder folder{common.state};
  auto keys = security::ApiKeys::load(folder.api_keys());
  if (!keys) return fail(keys.error());
  SystemRandom random;
  const WallTime now{std::chrono::system_clock::now().time_since_epoch()};
  auto text =
      keys->create(name, admin ? security::Scope::admin : security::Scope::inference, now, random);
  if (!text) return fail(text.error());
  print(json::object{{"name", name}, {"key", *text}, {"note", "shown only once"}}, common.format);
  return 0;
}

}  // namespace troupe::tools
