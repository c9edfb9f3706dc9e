// `troupe up` and `troupe down`.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/json.hpp>
#include <cmath>
#include <filesystem>
#include <thread>

#include "metadata/rocks_store.h"
#include "protocol/messages.h"
#include "security/api_keys.h"
#include "security/authority.h"
#include "security/credentials.h"
#include "security/private_files.h"
#include "transport/network.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/etcd_daemon.h"
#include "troupe/node_options.h"
#include "troupe/rpc.h"
#include "troupe/version.h"
#include "worker/machine.h"

namespace troupe::tools {
namespace json = boost::json;
using transport::Method;

namespace {

constexpr Duration ready_budget = std::chrono::seconds(20);
constexpr Duration end_grace = std::chrono::seconds(10);
constexpr char host[] = "127.0.0.1";

WallTime wall_now() {
  return WallTime{std::chrono::system_clock::now().time_since_epoch()};
}

// Starts everything in order; what was started ends again unless keep() is called.
class Starter {
 public:
  Starter(StateFolder folder, UpOptions options) : folder_(std::move(folder)), options_(options) {}
  ~Starter() {
    if (kept_ || record_.daemons.empty()) return;
    std::reverse(record_.daemons.begin(), record_.daemons.end());
    end_daemons(record_.daemons, end_grace);
    folder_.remove_record();
  }

  Result<json::object> run() {
    TROUPE_CHECK(check_node_options(options_.resources, options_.labels,
                                    static_cast<size_t>(options_.workers)));
    TROUPE_CHECK(folder_.create());
    TROUPE_TRY(const auto lock, folder_.lock());
    TROUPE_CHECK(refuse_orphans());
    TROUPE_CHECK(prepare_authority());
    record_.version = version;
    record_.host = host;
    TROUPE_CHECK(start_heads(lock));
    TROUPE_CHECK(start_workers());
    TROUPE_CHECK(start_gateway());
    TROUPE_CHECK(wait_for_nodes());
    if (options_.keeper) {
      TROUPE_TRY(const auto ready, start("keeper", "keeper", {}, {}));
      (void)ready;
    }
    kept_ = true;
    json::object summary{{"cluster", record_.cluster_id},
                         {"state", folder_.path().string()},
                         {"heads", json::value_from(record_.heads)},
                         {"workers", options_.workers}};
    if (record_.gateway_port != 0) {
      summary["gateway"] = fmt::format("http://{}:{}", host, record_.gateway_port);
      summary["api_key_file"] = folder_.gateway_key().string();
      if (!record_.gateway_https.empty()) {
        summary["gateway_https"] = "https://" + record_.gateway_https;
        summary["authority"] = folder_.authority_certificate().string();
      }
    }
    return summary;
  }

 private:
  // After the head was killed its workers may live on: a new head must not start beside them.
  Status refuse_orphans() {
    auto old = folder_.read_record();
    if (!old) return ok();
    for (const DaemonRecord& daemon : old->daemons) {
      if (is_running(daemon)) {
        return error(Code::conflict,
                     fmt::format("{} (pid {}) of an earlier cluster still runs in {}: end it "
                                 "with 'troupe down'",
                                 daemon.name, daemon.pid, folder_.path().string()));
      }
    }
    return ok();
  }

  Status prepare_authority() {
    auto loaded = security::Authority::load(folder_.authority());
    if (!loaded) {
      if (loaded.error().code() != Code::not_found) return std::move(loaded).error();
      if (std::filesystem::exists(folder_.metadata()) ||
          std::filesystem::exists(restoring_beside(folder_.metadata()))) {
        return error(Code::conflict,
                     fmt::format("{} has the tables of a cluster but not its authority, which no "
                                 "other can stand for: copy authority/ from the state folder that "
                                 "the tables came from, or choose another with --state",
                                 folder_.path().string()));
      }
      SystemRandom random;
      TROUPE_TRY(auto made, security::Authority::create(ClusterId::random(random), wall_now()));
      TROUPE_CHECK(made.save(folder_.authority()));
      authority_.emplace(std::move(made));
    } else {
      authority_.emplace(std::move(*loaded));
    }
    record_.cluster_id = authority_->cluster().to_string();
    return ok();
  }

  // `also_at`: a further address that it is reached at.
  Status issue(const std::string& daemon, security::Role role, const std::string& name,
               const std::string& also_at = {}) {
    security::IdentitySpec spec;
    spec.role = role;
    spec.name = name;
    spec.dns_names = {"localhost"};
    spec.ip_addresses = {host};
    if (!also_at.empty() && also_at != host) {
      spec.ip_addresses.push_back(also_at);
      std::array<char, 256> machine{};
      if (::gethostname(machine.data(), machine.size() - 1) == 0) {
        spec.dns_names.emplace_back(machine.data());
      }
    }
    TROUPE_TRY(auto issued, authority_->issue(spec, wall_now()));
    return security::save_credentials(
        folder_.credentials(daemon),
        {authority_->certificate_pem(), issued.certificate_pem, issued.key_pem});
  }

  Result<json::value> start(const std::string& kind, const std::string& name,
                            std::vector<std::string> arguments, const FileDescriptor& lock) {
    TROUPE_TRY(auto daemon, launch(kind, name, std::move(arguments), lock));
    return wait_ready(daemon, log_of(name), ready_budget);
  }

  Result<StartedDaemon> launch(const std::string& kind, const std::string& name,
                               std::vector<std::string> arguments, const FileDescriptor& lock) {
    arguments.insert(arguments.begin(), kind);
    for (const std::string& more :
         {std::string("--state"), folder_.path().string(), std::string("--name"), name}) {
      arguments.push_back(more);
    }
    TROUPE_TRY(auto daemon, start_daemon(kind, name, std::move(arguments), log_of(name), lock));
    record_.daemons.push_back(daemon.record);
    TROUPE_CHECK(folder_.write_record(record_));  // So that `down` finds it whatever happens next.
    return daemon;
  }

  // The newest daemon listens there again when it is started again.
  void set_port(uint16_t port) {
    auto& arguments = record_.daemons.back().arguments;
    arguments.insert(arguments.end(), {"--port", std::to_string(port)});
  }

  std::string log_of(const std::string& name) const { return folder_.logs() / (name + ".log"); }

  Status start_heads(const FileDescriptor& lock) {
    std::vector<std::string> names{StateFolder::first_head};
    while (names.size() < static_cast<size_t>(options_.heads)) {
      names.push_back(fmt::format("head-{}", names.size()));
    }
    std::vector<std::string> arguments{"--host", host, "--checkpoint-mib",
                                       fmt::format("{}", options_.checkpoint_mib)};
    if (names.size() > 1) {
      TROUPE_TRY(const std::string etcd, start_etcd(names));
      arguments.insert(arguments.end(),
                       {"--etcd", etcd, "--lease", std::to_string(options_.head_lease_s)});
    }
    for (const std::string& name : names) {
      const bool is_first = name == names.front();
      std::vector<std::string> its = arguments;
      if (is_first && names.size() > 1) its.emplace_back("--first");
      FileDescriptor its_lock;
      if (!is_first) {
        TROUPE_TRY(its_lock, folder_.lock(name));
      }
      TROUPE_CHECK(issue(name, security::Role::head, name));
      TROUPE_TRY(const auto facts, start("head", name, std::move(its), is_first ? lock : its_lock));
      const auto port = facts.at("port").to_number<uint16_t>();
      record_.heads.push_back(fmt::format("{}:{}", host, port));
      set_port(port);
      TROUPE_CHECK(folder_.write_record(record_));
    }
    return ok();
  }

  // Returns its address. It answers a moment later; the heads ask until it does.
  Result<std::string> start_etcd(const std::vector<std::string>& heads) {
    TROUPE_CHECK(prepare_etcd(folder_, host, heads, wall_now()));
    TROUPE_TRY(const uint16_t port, free_port());
    TROUPE_TRY(const uint16_t peer_port, free_port());
    TROUPE_TRY(const auto ready, start("etcd", "etcd",
                                       {"--host", host, "--port", std::to_string(port),
                                        "--peer-port", std::to_string(peer_port)},
                                       {}));
    (void)ready;
    return fmt::format("{}:{}", host, port);
  }

  // Free a moment ago: etcd cannot be asked which one it was given.
  static Result<uint16_t> free_port() {
    boost::asio::io_context io;
    boost::system::error_code failed;
    const boost::asio::ip::tcp::endpoint any{boost::asio::ip::make_address(host), 0};
    boost::asio::ip::tcp::acceptor acceptor{io};
    acceptor.open(any.protocol(), failed);
    if (!failed) acceptor.bind(any, failed);
    if (failed) return error(Code::exhausted, "no free port: " + failed.message());
    return acceptor.local_endpoint().port();
  }

  // How far apart the workers' first GPUs lie. Who gives the workers more than there are lets them
  // share the first ones.
  int gpu_stride(uint32_t devices, double gpus) const {
    const double each = std::ceil(gpus);
    const bool enough = devices == 0 || each * options_.workers <= devices;
    return enough ? static_cast<int>(each) : 0;
  }

  Status start_workers() {
    const double count = std::max(options_.workers, 1);
    const double cores = static_cast<double>(worker::detect_cpu_milli("/")) / 1000;
    const double cpus = options_.cpus > 0 ? options_.cpus : cores / count;
    const uint32_t devices = worker::detect_gpus("/");
    const double gpus = options_.gpus >= 0 ? options_.gpus : std::floor(devices / count);
    const int gpus_apart = gpu_stride(devices, gpus);
    const uint64_t memory_mib =
        (worker::detect_memory_bytes("/") >> 20) / static_cast<uint64_t>(count);
    const uint64_t store_mib = options_.store_mib > 0 ? options_.store_mib : memory_mib / 4;
    const uint64_t spill_mib =
        options_.spill_mib >= 0 ? static_cast<uint64_t>(options_.spill_mib) : 4 * store_mib;
    std::vector<StartedDaemon> started;
    for (int i = 0; i < options_.workers; ++i) {
      const std::string name = fmt::format("worker-{}", i);
      std::vector<std::string> arguments{
          "--host",          host,
          "--worker-socket", folder_.sockets() / (name + ".sock"),
          "--cpus",          fmt::format("{}", cpus),
          "--gpus",          fmt::format("{}", gpus),
          "--first-gpu",     fmt::format("{}", i * gpus_apart),
          "--memory-mib",    fmt::format("{}", memory_mib),
          "--memory-high",   fmt::format("{}", options_.memory_high),
          "--store-mib",     fmt::format("{}", store_mib),
          "--log-mib",       fmt::format("{}", options_.log_mib),
          "--spill-mib",     fmt::format("{}", spill_mib),
          "--package-mib",   fmt::format("{}", options_.package_mib)};
      for (const std::string& head : record_.heads) {
        arguments.insert(arguments.end(), {"--head", head});
      }
      if (!options_.spill_dir.empty()) {
        arguments.insert(arguments.end(),
                         {"--spill-dir", std::filesystem::absolute(options_.spill_dir)});
      }
      for (const std::string& text : meant_for(name, options_.resources)) {
        arguments.insert(arguments.end(), {"--resource", text});
      }
      for (const std::string& text : meant_for(name, options_.labels)) {
        arguments.insert(arguments.end(), {"--label", text});
      }
      TROUPE_TRY(const auto node, node_id(name));
      TROUPE_CHECK(issue(name, security::Role::node, node));
      arguments.insert(arguments.end(), {"--node", node});
      TROUPE_TRY(auto daemon, launch("worker", name, std::move(arguments), {}));
      started.push_back(std::move(daemon));
    }
    for (StartedDaemon& daemon : started) {
      TROUPE_CHECK(wait_ready(daemon, log_of(daemon.record.name), ready_budget));
    }
    return ok();
  }

  // A node keeps its id over restarts.
  Result<std::string> node_id(const std::string& name) {
    const auto path = folder_.path() / "credentials" / (name + ".id");
    if (auto text = read_file(path)) {
      TROUPE_TRY(const auto id, NodeId::parse(*text));
      return id.to_string();
    }
    SystemRandom random;
    const std::string id = NodeId::random(random).to_string();
    TROUPE_CHECK(security::write_private_file(path, id));
    return id;
  }

  Status start_gateway() {
    if (options_.gateway_port < 0 || options_.workers == 0) return ok();
    TROUPE_CHECK(prepare_key());
    transport::Endpoint https;
    if (!options_.https.empty()) {
      TROUPE_TRY(https, transport::Endpoint::parse(options_.https));
    }
    TROUPE_CHECK(issue("gateway", security::Role::gateway, "gateway", https.host));
    std::vector<std::string> arguments{"--host", host, "--worker-socket",
                                       folder_.sockets() / "worker-0.sock"};
    if (!options_.https.empty()) {
      arguments.insert(arguments.end(), {"--https", options_.https});
    }
    if (options_.gateway_port != 0) {
      arguments.insert(arguments.end(), {"--port", std::to_string(options_.gateway_port)});
    }
    auto facts = start("gateway", "gateway", std::move(arguments), {});
    if (!facts && facts.error().code() == Code::conflict) {
      return error(Code::conflict,
                   facts.error().message() +
                       ": choose another with --gateway-port N, or any free one with "
                       "--gateway-port 0");
    }
    if (!facts) return std::move(facts).error();
    record_.gateway_port = facts->at("port").to_number<uint16_t>();
    if (options_.gateway_port == 0) set_port(record_.gateway_port);
    if (!options_.https.empty()) {
      https.port = facts->at("https_port").to_number<uint16_t>();
      record_.gateway_https = https.to_string();
    }
    return folder_.write_record(record_);
  }

  Status prepare_key() {
    if (std::filesystem::exists(folder_.gateway_key())) return ok();
    TROUPE_TRY(auto keys, security::ApiKeys::load(folder_.api_keys()));
    for (const auto& key : keys.keys()) {
      if (key.name == "local") TROUPE_CHECK(keys.revoke("local"));
    }
    SystemRandom random;
    TROUPE_TRY(const auto text, keys.create("local", security::Scope::admin, wall_now(), random));
    return security::write_private_file(folder_.gateway_key(), text + "\n");
  }

  Status wait_for_nodes() {
    TROUPE_TRY(auto head, connect_head(folder_));
    const auto end = std::chrono::steady_clock::now() + ready_budget;
    for (;;) {
      if (was_interrupted()) return error(Code::cancelled, "interrupted");
      TROUPE_TRY(const auto nodes,
                 head->ask<protocol::NodeList>(Method::list_nodes, protocol::Empty{}));
      const auto alive = std::count_if(nodes.items.begin(), nodes.items.end(),
                                       [](const auto& node) { return node.state == "alive"; });
      if (alive >= options_.workers) return ok();
      if (std::chrono::steady_clock::now() > end) {
        return error(Code::deadline_exceeded,
                     fmt::format("{} of {} workers joined; logs: {}", alive, options_.workers,
                                 folder_.logs().string()));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  StateFolder folder_;
  UpOptions options_;
  std::optional<security::Authority> authority_;
  ClusterRecord record_;
  bool kept_ = false;
};

void remove_sockets(const StateFolder& folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder.sockets(), ignored)) {
    std::filesystem::remove(entry.path(), ignored);
  }
}

}  // namespace

int run_up(const CommonOptions& common, const UpOptions& options) {
  watch_interrupts();
  Starter starter{StateFolder{common.state}, options};
  auto summary = starter.run();
  if (!summary) return fail(summary.error());
  print(*summary, common.format);
  return 0;
}

int run_down(const CommonOptions& common) {
  const StateFolder folder{common.state};
  auto record = folder.read_record();
  if (!record) return fail(record.error());
  // Half a shutdown would leave daemons behind; a whole one takes seconds.
  ::signal(SIGINT, SIG_IGN);
  ::signal(SIGTERM, SIG_IGN);
  std::vector<std::string> killed;
  const auto end_all = [&](const std::string& kind) {
    std::vector<DaemonRecord> daemons;
    for (const auto& daemon : record->daemons) {
      if (daemon.kind == kind) daemons.push_back(daemon);
    }
    for (auto& name : end_daemons(daemons, end_grace)) killed.push_back(std::move(name));
  };
  // Who starts again what ends goes first, and may have started something until then.
  end_all("keeper");
  record = folder.read_record();
  if (!record) return fail(record.error());
  // The gateway next, so that nobody is let in to a cluster that is leaving; the heads last, and
  // after them what they agree in.
  std::reverse(record->daemons.begin(), record->daemons.end());
  for (const char* kind : {"gateway", "worker", "head", "etcd"}) end_all(kind);
  remove_sockets(folder);
  folder.remove_record();
  json::object summary{{"stopped", record->daemons.size()}, {"state", folder.path().string()}};
  if (!killed.empty()) summary["killed"] = json::value_from(killed);
  print(summary, common.format);
  return 0;
}

}  // namespace troupe::tools
