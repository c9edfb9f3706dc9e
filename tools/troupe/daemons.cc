// `troupe head`, `troupe worker`, `troupe gateway`: what each daemon is made of.
#include <fmt/format.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json.hpp>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "base/log.h"
#include "client/client.h"
#include "etcd/etcd_coordinator.h"
#include "head/candidate.h"
#include "metadata/rocks_store.h"
#include "security/credentials.h"
#include "transport/real_environment.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/etcd_daemon.h"
#include "troupe/gateway_daemon.h"
#include "troupe/node_options.h"
#include "troupe/own_log.h"
#include "troupe/state_folder.h"
#include "troupe/version.h"
#include "worker/machine.h"
#include "worker/posix_launcher.h"
#include "worker/worker.h"

namespace troupe::tools {
namespace json = boost::json;

namespace {

// One may be busy with a backup for long, and must not take one from the journal and the packages.
constexpr size_t head_blocking_threads = 3;

constexpr Duration log_look_period = std::chrono::seconds(5);

// A connection, a process and a checkpoint on its way are a descriptor each; 1,024, the usual
// limit, is what select() once could take.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = std::min<rlim_t>(limit.rlim_max, 65'536);
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = wanted;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

// The frame of every daemon: identity, loop, log, the ready line, an orderly end at SIGTERM.
class Daemon {
 public:
  Daemon(const CommonOptions& common, const DaemonOptions& options, std::string kind)
      : folder_(common.state),
        options_(options),
        kind_(std::move(kind)),
        real_(kind_ == "head" ? head_blocking_threads : 2) {
    if (options_.name.empty()) options_.name = kind_;
    log::start(options_.name, log::level_from(std::getenv("TROUPE_LOG")));
    ::signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
  }

  Status load_identity() {
    TROUPE_TRY(pem_, security::read_credentials(folder_.credentials(options_.name)));
    TROUPE_TRY(credentials_, security::Credentials::load(pem_));
    real_.set_credentials(credentials_.get());
    return ok();
  }

  // Starts, says so, waits for SIGTERM, stops. `start` gives the facts of the ready line; `broken`
  // returns when the daemon cannot go on, and it then ends with 1.
  template <class Start, class Stop, class Broken>
  int run(Start start, Stop stop, Broken broken) {
    Scope scope{real_.io().get_executor()};
    bool failed = false;
    spawn(scope,
          live<Start, Stop, Broken>(std::move(start), std::move(stop), std::move(broken), failed));
    real_.io().run();
    return failed ? 1 : 0;
  }
  template <class Start, class Stop>
  int run(Start start, Stop stop) {
    Event never{real_.io().get_executor()};
    return run(std::move(start), std::move(stop),
               [&never]() -> Async<void> { co_await never.wait(); });
  }

  int refuse(const Error& failure) {
    log::error("start_failed", {{"why", failure.message()}});
    report_failure(failure);
    return fail(failure);
  }

  const StateFolder& folder() const { return folder_; }
  const DaemonOptions& options() const { return options_; }
  const security::CredentialsPem& pem() const { return pem_; }
  security::Credentials& credentials() { return *credentials_; }
  transport::RealEnvironment& real() { return real_; }

 private:
  template <class Start, class Stop, class Broken>
  Async<void> live(Start start, Stop stop, Broken broken, bool& failed) {
    using namespace boost::asio::experimental::awaitable_operators;
    boost::asio::signal_set signals{real_.io(), SIGTERM, SIGINT};
    Result<json::value> facts = co_await start();
    if (!facts) {
      failed = true;
      refuse(facts.error());
    } else {
      log::info("ready", {{"facts", json::serialize(*facts)}});
      report_ready(*facts);
      auto token = boost::asio::use_awaitable;
      const auto raced = co_await (signals.async_wait(token) || broken() || bound_own_log());
      failed = raced.index() == 1;
      log::info("stopping", {{"broken", failed}});
    }
    co_await stop();
    real_.io().stop();
  }

  // For ever.
  Async<void> bound_own_log() {
    const std::string path = folder_.logs() / (options_.name + ".log");
    const transport::Environment environment = real_.environment();
    bool is_noted = false;
    for (;;) {
      co_await sleep_for(environment.clock, log_look_period);
      auto bound = [path] { return bound_log(path, {STDERR_FILENO, STDOUT_FILENO}); };
      const Status bounded = co_await transport::run_blocking(environment, std::move(bound));
      if (!bounded && !is_noted) log::warning("log_not_bounded", {{"why", bounded.error()}});
      is_noted = !bounded;
    }
  }

  StateFolder folder_;
  DaemonOptions options_;
  std::string kind_;
  security::CredentialsPem pem_;
  std::unique_ptr<security::Credentials> credentials_;
  transport::RealEnvironment real_;
};

}  // namespace

namespace {

// One of several heads. Ready as soon as it stands by.
int run_candidate(Daemon& daemon, Store& store, head::HeadOptions head_options) {
  const StateFolder& folder = daemon.folder();
  const std::string& name = daemon.options().name;
  etcd::EtcdOptions etcd_options;
  etcd_options.endpoints = daemon.options().etcd;
  etcd_options.lease_time = std::chrono::seconds(daemon.options().lease_s);
  etcd_options.prefix = "/troupe/" + head_options.cluster.to_string();
  auto pem = security::read_credentials(folder.credentials(etcd_credentials(name)));
  if (!pem) return daemon.refuse(pem.error());
  etcd_options.credentials = std::move(*pem);
  auto coordinator =
      etcd::EtcdCoordinator::create(daemon.real().io().get_executor(),
                                    daemon.real().environment().clock, std::move(etcd_options));
  if (!coordinator) return daemon.refuse(coordinator.error());
  head::StandbyOptions standby_options;
  standby_options.cluster = head_options.cluster;
  standby_options.name = name;
  standby_options.pid = head_options.pid;
  standby_options.is_first = daemon.options().is_first;
  head::Candidate candidate{daemon.real().environment(), store, **coordinator,
                            std::move(head_options), std::move(standby_options)};
  return daemon.run(
      [&]() -> Async<Result<json::value>> {
        TROUPE_CO_CHECK(candidate.listen());
        uint16_t port = 0;
        for (const auto& endpoint : candidate.endpoints()) port = std::max(port, endpoint.port);
        co_return json::value{{"port", port}};
      },
      [&]() -> Async<void> { co_await candidate.stop(); },
      [&]() -> Async<void> {
        const Error why = co_await candidate.live();
        log::warning("head_ends", {{"why", why}});
      });
}

// A copy that heads keep among them says nothing of what was promised since.
Status refuse_copy(Store& store) {
  TROUPE_TRY(const auto place, head::read_place(store));
  TROUPE_TRY(const bool is_half, head::is_half_copied(store));
  if (place.sequence == 0 && !is_half) return ok();
  return error(Code::conflict,
               "these tables belong to one head of several, and another one may have more: start "
               "them all, with 'troupe up --heads 3'");
}

}  // namespace

int run_head(const CommonOptions& common, const DaemonOptions& options) {
  Daemon daemon{common, options, "head"};
  if (auto loaded = daemon.load_identity(); !loaded) return daemon.refuse(loaded.error());
  auto cluster = ClusterId::parse(daemon.credentials().self().cluster);
  if (!cluster) return daemon.refuse(cluster.error());
  const std::string& name = daemon.options().name;
  const auto tables = daemon.folder().metadata(name);
  RocksOptions rocks;
  rocks.create = true;
  rocks.cluster_id = *cluster;
  auto store = open_rocksdb(tables, rocks);
  if (!store) return daemon.refuse(store.error());
  head::HeadOptions head_options;
  head_options.cluster = *cluster;
  head_options.version = version;
  head_options.package_folder = daemon.folder().packages(name);
  head_options.checkpoint_folder = daemon.folder().checkpoints(name);
  head_options.checkpoint_bytes_max = daemon.options().checkpoint_mib << 20;
  head_options.pid = static_cast<uint32_t>(::getpid());
  head_options.listen = {{daemon.folder().head_socket(name), "", 0},
                         {"", daemon.options().host, daemon.options().port}};
  if (!daemon.options().etcd.empty()) {
    return run_candidate(daemon, **store, std::move(head_options));
  }
  if (auto alone = refuse_copy(**store); !alone) return daemon.refuse(alone.error());
  head::Head head{daemon.real().environment(), **store, std::move(head_options)};
  return daemon.run(
      [&]() -> Async<Result<json::value>> {
        TROUPE_CO_CHECK(co_await head.start());
        uint16_t port = 0;
        for (const auto& endpoint : head.endpoints()) port = std::max(port, endpoint.port);
        co_return json::value{{"port", port}};
      },
      [&]() -> Async<void> { co_await head.stop(); },
      [&]() -> Async<void> { co_await head.broken().wait(); });
}

namespace {

// Processes of this worker's life before, which was killed, have ended until then.
constexpr Duration dead_socket_age = std::chrono::seconds(2);

Async<void> remove_sockets_of_the_dead(transport::Environment environment, std::string folder) {
  co_await sleep_for(environment.clock, 2 * dead_socket_age);
  auto remove = [folder] { return worker::remove_dead_sockets(folder, dead_socket_age); };
  const size_t removed = co_await transport::run_blocking(environment, std::move(remove));
  if (removed > 0) log::info("dead_sockets_removed", {{"count", removed}});
}

// troupe-actor lies beside this executable, in the build tree as in a prefix.
std::string actor_program() {
  if (const char* given = std::getenv("TROUPE_ACTOR")) return given;
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  return self.parent_path() / "troupe-actor";
}

}  // namespace

int run_worker(const CommonOptions& common, const DaemonOptions& options) {
  Daemon daemon{common, options, "worker"};
  if (auto loaded = daemon.load_identity(); !loaded) return daemon.refuse(loaded.error());
  auto node = NodeId::parse(daemon.options().node);
  if (!node) return daemon.refuse(node.error().context("--node"));
  auto cluster = ClusterId::parse(daemon.credentials().self().cluster);
  if (!cluster) return daemon.refuse(cluster.error());
  worker::ProcMachineUsage usage;
  worker::WorkerOptions worker_options;
  worker_options.node = *node;
  worker_options.name = daemon.options().name;
  worker_options.cluster = *cluster;
  for (const std::string& text : daemon.options().heads) {
    auto head = transport::Endpoint::parse(text);
    if (!head) return daemon.refuse(head.error().context("--head"));
    worker_options.heads.push_back(std::move(*head));
  }
  worker_options.worker_socket = daemon.options().worker_socket;
  worker_options.host = daemon.options().host;
  worker_options.port = daemon.options().port;
  worker_options.advertised_port = daemon.options().advertised_port;
  worker_options.socket_folder = daemon.folder().sockets();
  worker_options.log_folder = daemon.folder().logs();
  worker_options.package_folder = daemon.folder().packages(daemon.options().name);
  worker_options.package_bytes_max = daemon.options().package_mib << 20;
  worker_options.checkpoint_folder = daemon.folder().checkpoints(daemon.options().name);
  worker_options.store_capacity_bytes = daemon.options().store_mib << 20;
  worker_options.spill_folder = daemon.options().spill_dir.empty()
                                    ? daemon.folder().spill().string()
                                    : daemon.options().spill_dir;
  worker_options.ended_logs_bytes_max = daemon.options().log_mib << 20;
  worker_options.spill_bytes_max = daemon.options().spill_mib << 20;
  worker_options.certificate_pem = daemon.pem().certificate_pem;
  worker_options.key_pem = daemon.pem().key_pem;
  worker_options.authority_pem = daemon.pem().authority_pem;
  worker_options.version = version;
  worker_options.pid = static_cast<uint32_t>(::getpid());
  worker_options.usage = &usage;
  worker_options.memory_high = daemon.options().memory_high;
  worker_options.first_gpu = daemon.options().first_gpu;
  const auto add = [&](const std::string& name, double amount) {
    if (amount > 0) worker_options.total.push_back({name, std::llround(amount * 1000)});
  };
  add("cpu", daemon.options().cpus);
  add("gpu", daemon.options().gpus);
  add("memory", static_cast<double>(daemon.options().memory_mib));
  for (const std::string& text : daemon.options().resources) {
    auto resource = parse_resource(text);
    if (!resource) return daemon.refuse(resource.error());
    add(resource->name, resource->amount);
  }
  for (const std::string& text : daemon.options().labels) {
    auto label = parse_label(text);
    if (!label) return daemon.refuse(label.error());
    worker_options.labels.push_back({label->key, label->value});
  }
  Scope processes{daemon.real().io().get_executor()};
  worker::PosixLauncher launcher{daemon.real().io(), processes, actor_program(),
                                 worker::ProcessStart::fork};
  launcher.prepare();
  auto timeline = transport::TimelineMemory::create_if_on(daemon.real().environment().clock);
  if (!timeline) return daemon.refuse(timeline.error());
  worker_options.timeline = timeline->get();
  worker::Worker worker{daemon.real().environment(), launcher, std::move(worker_options)};
  return daemon.run(
      [&]() -> Async<Result<json::value>> {
        TROUPE_CO_CHECK(co_await worker.start());
        spawn(processes,
              remove_sockets_of_the_dead(daemon.real().environment(), daemon.folder().sockets()));
        co_return json::value{{"port", worker.address().port}};
      },
      [&]() -> Async<void> {
        co_await worker.stop();
        co_await processes.stop();
      });
}

int run_gateway(const CommonOptions& common, const DaemonOptions& options) {
  Daemon daemon{common, options, "gateway"};
  if (auto loaded = daemon.load_identity(); !loaded) return daemon.refuse(loaded.error());
  transport::Endpoint https;
  if (!options.https.empty()) {
    auto parsed = transport::Endpoint::parse(options.https);
    if (!parsed) return daemon.refuse(parsed.error());
    https = std::move(*parsed);
  }
  client::ClientOptions client_options;
  client_options.kind = "gateway";
  client_options.worker.unix_path = daemon.options().worker_socket;
  std::unique_ptr<security::Credentials> node_credentials;
  client_options.use_credentials = [&](const protocol::Attached& attached) -> Status {
    TROUPE_TRY(node_credentials,
               security::Credentials::load(
                   {attached.authority_pem, attached.certificate_pem, attached.key_pem}));
    daemon.real().set_credentials(node_credentials.get());
    return ok();
  };
  auto timeline = transport::TimelineMemory::create_if_on(daemon.real().environment().clock);
  if (!timeline) return daemon.refuse(timeline.error());
  client_options.timeline = timeline->get();
  client::Client client{daemon.real().environment(), std::move(client_options)};
  GatewayDaemon gateway{daemon.real(),
                        client,
                        daemon.folder().api_keys(),
                        daemon.options().host,
                        daemon.options().port,
                        std::move(https),
                        daemon.pem()};
  return daemon.run(
      [&]() -> Async<Result<json::value>> {
        TROUPE_CO_CHECK(co_await client.start());
        TROUPE_CO_CHECK(co_await gateway.start());
        co_return json::value{{"port", gateway.port()}, {"https_port", gateway.https_port()}};
      },
      [&]() -> Async<void> {
        co_await gateway.stop();
        co_await client.stop();
      });
}

}  // namespace troupe::tools
