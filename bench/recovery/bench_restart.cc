// How long a head with a million keys takes from opening its store until it listens: actors that
// were alive on 100 nodes, every tenth with a name. Its own process; the store is made before.
#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "head/head.h"
#include "head/tables.h"
#include "metadata/rocks_store.h"
#include "transport/real_environment.h"

namespace {

using namespace troupe;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"recovery/{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
  std::fflush(stdout);
}

head::StoredActor some_actor(uint64_t number, const std::vector<NodeId>& nodes, JobId job,
                             Random& random) {
  head::StoredActor actor;
  auto& spec = actor.record.spec;
  spec.actor = ActorId::random(random);
  spec.job = job;
  spec.module = "/srv/program/module.so";
  spec.class_name = "Worker";
  spec.detached = true;
  spec.max_restarts = -1;
  if (number % 10 == 0) {
    spec.name = fmt::format("worker-{}", number);
    spec.name_space = "default";
  }
  auto& info = actor.record.info;
  info.actor = spec.actor;
  info.job = job;
  info.name = spec.name;
  info.incarnation = 1;
  info.state = "alive";
  info.address.node = nodes[number % nodes.size()];
  info.address.process = ProcessId::random(random);
  info.address.host = "10.0.0.1";
  info.address.port = 7000;
  return actor;
}

// Names are keys of their own.
uint64_t fill(Store& store, uint64_t keys) {
  SeededRandom random{1};
  std::vector<NodeId> nodes(100);
  Batch first;
  for (NodeId& node : nodes) {
    node = NodeId::random(random);
    protocol::NodeInfo row;
    row.address.node = node;
    row.name = node.to_string();
    row.state = "alive";
    head::put_node(first, row);
  }
  store.commit(first, 1).value();
  const JobId job = JobId::random(random);
  uint64_t made = 0;
  for (uint64_t number = 0; made < keys;) {
    Batch batch;
    for (int i = 0; i < 5000; ++i, ++number) {
      const auto actor = some_actor(number, nodes, job, random);
      head::put_actor(batch, actor);
      made += actor.record.spec.name.empty() ? 1 : 2;
    }
    store.commit(batch, 1).value();
  }
  return made;
}

RocksOptions options_of(ClusterId cluster) {
  RocksOptions options;
  options.create = true;
  options.cluster_id = cluster;
  return options;
}

double start_once(const std::filesystem::path& folder, ClusterId cluster, double& opened) {
  const auto start = Clock::now();
  auto store = open_rocksdb(folder, options_of(cluster)).value();
  opened = seconds_since(start);
  transport::RealEnvironment real;
  head::HeadOptions options;
  options.cluster = cluster;
  options.package_folder = folder / "packages";
  options.checkpoint_folder = folder / "checkpoints";
  options.listen = {{folder / "head.sock", "", 0}};
  head::Head head{real.environment(), *store, options};
  Scope scope{real.io().get_executor()};
  double took = 0;
  const auto run = [&]() -> Async<void> {
    const Status started = co_await head.start();
    took = seconds_since(start);
    if (!started) fmt::print(stderr, "{}\n", started.error().message());
    co_await head.stop();
  };
  spawn(scope, run());
  real.io().run();
  return took;
}

}  // namespace

int main() try {
  std::string folder = std::filesystem::temp_directory_path() / "troupe-bench-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) return 1;
  SystemRandom random;
  const ClusterId cluster = ClusterId::random(random);
  const std::filesystem::path store_folder = std::filesystem::path{folder} / "store";
  {
    auto store = open_rocksdb(store_folder, options_of(cluster)).value();
    row("keys", static_cast<double>(fill(*store, 1'000'000)), "keys");
  }
  double opened = 0;
  const double took = start_once(store_folder, cluster, opened);
  row("head_restart_1m_keys_open_s", opened, "s");
  row("head_restart_1m_keys_s", took, "s");
  std::filesystem::remove_all(folder);
  return 0;
} catch (const Error& error) {
  fmt::print(stderr, "{}\n", error.to_string());
  return 1;
}
