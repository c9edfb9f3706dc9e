// `troupe submit`, `deploy`, `undeploy`, `report`, `key create`.
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/file_descriptor.h"
#include "packages/shelf.h"
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

namespace {

// The job of a submitted command, whose programs join it: begun before the command runs, kept while
// none of its programs is there, ended with the command.
class SubmittedJob {
 public:
  // `shelf` outlives it.
  SubmittedJob(StateFolder folder, protocol::BeginJob job, const packages::Shelf& shelf)
      : folder_(std::move(folder)), job_(std::move(job)), shelf_(shelf) {}

  // Begins the job, or says again that it goes on: a head that was restarted waits for that. The
  // head has fetched what the job needs of this machine then, also one that leads after another.
  Status keep() {
    const bool is_known = head_ != nullptr;
    TROUPE_CHECK(ask(Method::begin_job, job_));
    if (is_known) return ok();
    Status handed_over = hand_over();
    if (!handed_over) head_.reset();
    return handed_over;
  }
  void end(bool succeeded, std::string message) {
    const auto ended =
        ask(Method::end_job, protocol::EndJob{job_.job, succeeded, std::move(message)});
    if (!ended) log::debug("job_not_ended", {{"why", ended.error().message()}});
  }

 private:
  Status hand_over() {
    Rpc* const head = head_.get();
    head->router().on_stream(Method::get_package,
                             [this, head](transport::Message message, transport::CallContext,
                                          transport::OutgoingStream& out) {
                               return shelf_.give(head->environment(), std::move(message), out);
                             });
    for (const protocol::Package& package : shelf_.packages()) {
      protocol::GetPackage request{job_.job, package.hash, package.size_bytes};
      TROUPE_CHECK(head->stream(Method::get_package, protocol::encode(request),
                                [](BytesView) { return true; }));
    }
    return ok();
  }
  template <class Request>
  Result<Empty> ask(Method method, const Request& request) {
    if (!head_) {
      TROUPE_TRY(head_, connect_head(folder_));
    }
    auto answer = head_->ask<Empty>(method, request, std::chrono::seconds(5));
    if (!answer) head_.reset();
    return answer;
  }

  StateFolder folder_;
  protocol::BeginJob job_;
  const packages::Shelf& shelf_;
  std::unique_ptr<Rpc> head_;
};

// Starts the command in our process group, so that Ctrl-C reaches it by itself. It runs once `gate`
// was written to, and never if that is closed.
Result<pid_t> start_behind_gate(std::vector<std::string> command, FileDescriptor& gate) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return error(Code::exhausted, "pipe: out of descriptors");
  FileDescriptor opened{ends[0]};
  gate = FileDescriptor{ends[1]};
  std::vector<char*> argv;
  for (std::string& argument : command) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) return error(Code::exhausted, std::string("fork: ") + std::strerror(errno));
  if (pid > 0) return pid;
  gate.reset();
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGINT, SIG_DFL);
  char go = 0;
  if (::read(opened.get(), &go, 1) != 1) ::_exit(127);
  ::execvp(argv[0], argv.data());
  std::fprintf(stderr, "troupe: cannot run %s: %s\n", argv[0], std::strerror(errno));
  ::_exit(127);
}

Result<std::vector<protocol::NamedValue>> parse_variables(const std::vector<std::string>& texts) {
  std::vector<protocol::NamedValue> variables;
  for (const std::string& text : texts) {
    const size_t equals = text.find('=');
    if (equals == text.npos || equals == 0) {
      return error(Code::invalid, fmt::format("--env {}: it is NAME=VALUE", text));
    }
    variables.push_back({text.substr(0, equals), text.substr(equals + 1)});
  }
  return variables;
}

}  // namespace

int run_submit(const CommonOptions& common, const SubmitOptions& options) {
  const StateFolder folder{common.state};
  auto record = folder.read_record();
  if (!record) return fail(record.error());
  SystemRandom random;
  protocol::BeginJob begin;
  begin.job = JobId::random(random);
  begin.name = options.name.empty()
                   ? std::filesystem::path(options.command.front()).filename().string()
                   : options.name;
  begin.entrypoint = fmt::format("{}", fmt::join(options.command, " ")).substr(0, 4096);
  begin.name_space = options.name_space;
  auto variables = parse_variables(options.variables);
  if (!variables) return fail(variables.error());
  begin.environment.variables = std::move(*variables);
  packages::Shelf shelf;
  if (!options.working_dir.empty()) {
    const auto packed = shelf.add_working_folder(options.working_dir);
    if (!packed) return fail(Error{packed.error()}.context("--working-dir"));
  }
  begin.environment.packages = shelf.packages();
  for (const auto& [name, value] : begin.environment.variables) {
    ::setenv(name.c_str(), value.c_str(), 1);
  }
  ::setenv("TROUPE_STATE", folder.path().c_str(), 1);
  ::setenv("TROUPE_JOB_ID", begin.job.to_string().c_str(), 1);
  ::setenv("TROUPE_NAMESPACE", begin.name_space.c_str(), 1);
  ::signal(SIGINT, SIG_IGN);
  sigset_t child_ended;
  ::sigemptyset(&child_ended);
  ::sigaddset(&child_ended, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &child_ended, nullptr);  // For sigtimedwait.
  FileDescriptor gate;
  auto started = start_behind_gate(options.command, gate);
  if (!started) return fail(started.error());
  ::signal(SIGPIPE, SIG_IGN);
  SubmittedJob job{folder, std::move(begin), shelf};
  auto begun = job.keep();
  if (begun && ::write(gate.get(), "\n", 1) != 1) {
    begun = error(Code::internal, "the command ended before it began");
  }
  gate.reset();
  int status = 0;
  while (::waitpid(*started, &status, WNOHANG) == 0) {
    const timespec kept_every{.tv_sec = 1, .tv_nsec = 0};
    if (::sigtimedwait(&child_ended, nullptr, &kept_every) >= 0) continue;
    if (auto kept = job.keep(); !kept) log::debug("job_not_kept", {{"why", kept.error()}});
  }
  if (!begun) return fail(begun.error());
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    job.end(true, "");
  } else if (WIFEXITED(status)) {
    job.end(false, fmt::format("the command exited with status {}", WEXITSTATUS(status)));
  } else {
    job.end(false, fmt::format("the command was ended by signal {}", WTERMSIG(status)));
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
