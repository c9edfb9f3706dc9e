// `troupe status`, `list`, `describe`, `logs`.
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <thread>

#include "protocol/codec.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/everything.h"
#include "troupe/rpc.h"
#include "troupe/state_folder.h"

namespace troupe::tools {
namespace json = boost::json;
using protocol::Empty;
using transport::Method;

namespace {

json::object amounts(const std::vector<protocol::ResourceAmount>& resources) {
  json::object out;
  for (const auto& amount : resources) {
    out[amount.name] = static_cast<double>(amount.milli) / 1000;
  }
  return out;
}

std::string time_text(uint64_t unix_us) {
  if (unix_us == 0) return {};
  const std::time_t seconds = static_cast<std::time_t>(unix_us / 1'000'000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(seconds));
}

std::string name_of_node(const std::vector<protocol::NodeInfo>& nodes, NodeId id) {
  for (const auto& node : nodes) {
    if (node.address.node == id) return node.name;
  }
  return id.is_nil() ? "" : id.short_string();
}

json::object describe_node(const protocol::NodeInfo& node) {
  json::object labels;
  for (const auto& [key, value] : node.labels) labels[key] = value;
  return {{"id", node.address.node.to_string()},
          {"name", node.name},
          {"state", node.state},
          {"pid", node.pid},
          {"address", fmt::format("{}:{}", node.address.host, node.address.port)},
          {"total", amounts(node.total)},
          {"available", amounts(node.available)},
          {"labels", std::move(labels)},
          {"actors", node.actors},
          {"slots", node.slots},
          {"cpu_used", static_cast<double>(node.cpu_used_milli) / 1000},
          {"memory_used_mib", node.memory_used_bytes >> 20},
          {"store_used_mib", node.store_used_bytes >> 20},
          {"store_spilled_mib", node.store_spilled_bytes >> 20},
          {"store_capacity_mib", node.store_capacity_bytes >> 20},
          {"version", node.version}};
}

// Empty: it has none.
std::string checkpoint_text(const protocol::Checkpoint& checkpoint) {
  if (checkpoint.number == 0) return {};
  const auto now = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::system_clock::now().time_since_epoch());
  const double age_s =
      static_cast<double>(now.count()) / 1e6 - static_cast<double>(checkpoint.taken_unix_us) / 1e6;
  return fmt::format("{}, {:.1f} s old, {} bytes, of incarnation {}", checkpoint.number,
                     std::max(age_s, 0.0), checkpoint.size_bytes, checkpoint.incarnation);
}

json::object describe_actor(const protocol::ActorInfo& actor,
                            const std::vector<protocol::NodeInfo>& nodes) {
  json::object gauges;
  for (const protocol::Gauge& gauge : actor.gauges) gauges[gauge.name] = gauge.value;
  return {{"id", actor.actor.to_string()},
          {"name", actor.name},
          {"namespace", actor.name_space},
          {"class", actor.class_name},
          {"module", actor.module},
          {"state", actor.state},
          {"node", name_of_node(nodes, actor.address.node)},
          {"pid", actor.pid},
          {"incarnation", actor.incarnation},
          {"created", time_text(actor.created_unix_us)},
          {"job", actor.job.is_nil() ? "" : actor.job.to_string()},
          {"deployment", actor.deployment},
          {"reason", actor.reason},
          {"checkpoint", checkpoint_text(actor.checkpoint)},
          {"gauges", std::move(gauges)}};
}

json::object describe_job(const protocol::JobInfo& job) {
  return {{"id", job.job.to_string()},
          {"name", job.name},
          {"namespace", job.name_space},
          {"state", job.state},
          {"started", time_text(job.started_unix_us)},
          {"ended", time_text(job.ended_unix_us)},
          {"entrypoint", job.entrypoint},
          {"message", job.message}};
}

json::object describe_deployment(const protocol::DeploymentInfo& deployment,
                                 const std::vector<protocol::NodeInfo>& nodes) {
  json::array replicas;
  for (const auto& replica : deployment.replicas) {
    replicas.push_back(json::object{{"name", replica.name},
                                    {"state", replica.state},
                                    {"node", name_of_node(nodes, replica.address.node)},
                                    {"pid", replica.pid},
                                    {"incarnation", replica.incarnation},
                                    {"id", replica.actor.to_string()}});
  }
  return {{"name", deployment.spec.name},        {"state", deployment.state},
          {"reason", deployment.reason},         {"plugin", deployment.spec.module},
          {"class", deployment.spec.class_name}, {"config", deployment.spec.config},
          {"version", deployment.version},       {"replicas", std::move(replicas)}};
}

json::object describe_group(const protocol::PlacementGroupInfo& group,
                            const std::vector<protocol::NodeInfo>& nodes) {
  const protocol::PlacementGroupSpec& spec = group.spec;
  json::array bundles;
  for (size_t i = 0; i < spec.bundles.size(); ++i) {
    json::object bundle{{"resources", amounts(spec.bundles[i].demand)}};
    if (i < group.places.size()) {
      bundle["node"] = name_of_node(nodes, group.places[i].node);
      bundle["gpus"] = json::value_from(group.places[i].devices);
    }
    bundles.push_back(std::move(bundle));
  }
  return {{"id", spec.group.to_string()},
          {"name", spec.name},
          {"namespace", spec.name_space},
          {"state", group.state},
          {"strategy", spec.strategy.empty() ? "pack" : spec.strategy},
          {"job", spec.job.is_nil() ? "" : spec.job.to_string()},
          {"detached", spec.detached},
          {"capture", spec.capture},
          {"grant", group.grant},
          {"created", time_text(group.created_unix_us)},
          {"reason", group.reason},
          {"bundles", std::move(bundles)}};
}

json::object describe_object(const protocol::ObjectEntry& object,
                             const std::vector<protocol::NodeInfo>& nodes) {
  json::array borrowers;
  for (const ProcessId borrower : object.borrowers) borrowers.emplace_back(borrower.to_string());
  return {{"id", object.object.to_string()},
          {"job", object.job.is_nil() ? "" : object.job.to_string()},
          {"size_bytes", object.size_bytes},
          {"state", object.state},
          {"node", name_of_node(nodes, object.node)},
          {"owner", object.owner.process.to_string()},
          {"owner_kind", object.owner_kind},
          {"references", object.references},
          {"borrowers", std::move(borrowers)},
          {"pins", object.pins},
          {"why", object.why}};
}

}  // namespace

Result<Everything> ask_everything(Rpc& head) {
  Everything all;
  TROUPE_TRY(auto nodes, head.ask<protocol::NodeList>(Method::list_nodes, Empty{}));
  TROUPE_TRY(auto actors, head.ask<protocol::ActorList>(Method::list_actors, Empty{}));
  TROUPE_TRY(auto jobs, head.ask<protocol::JobList>(Method::list_jobs, Empty{}));
  TROUPE_TRY(auto deployments,
             head.ask<protocol::DeploymentList>(Method::list_deployments, Empty{}));
  TROUPE_TRY(auto groups,
             head.ask<protocol::PlacementGroupList>(Method::list_placement_groups, Empty{}));
  all.groups = std::move(groups.items);
  all.nodes = std::move(nodes.items);
  all.actors = std::move(actors.items);
  all.jobs = std::move(jobs.items);
  all.deployments = std::move(deployments.items);
  return all;
}

bool matches(const RawId& id, const std::string& name, const std::string& wanted) {
  return (!name.empty() && name == wanted) ||
         (wanted.size() >= 4 && id.to_string().starts_with(wanted));
}

namespace {

Result<json::value> find(Everything& all, const std::string& wanted) {
  std::vector<json::value> found;
  for (const auto& node : all.nodes) {
    if (matches(node.address.node, node.name, wanted)) found.emplace_back(describe_node(node));
  }
  for (const auto& actor : all.actors) {
    if (matches(actor.actor, actor.name, wanted))
      found.emplace_back(describe_actor(actor, all.nodes));
  }
  for (const auto& job : all.jobs) {
    if (matches(job.job, job.name, wanted)) found.emplace_back(describe_job(job));
  }
  for (const auto& deployment : all.deployments) {
    if (deployment.spec.name == wanted) {
      found.emplace_back(describe_deployment(deployment, all.nodes));
    }
  }
  for (const auto& group : all.groups) {
    if (matches(group.spec.group, group.spec.name, wanted))
      found.emplace_back(describe_group(group, all.nodes));
  }
  if (found.empty()) {
    return error(Code::not_found,
                 fmt::format("no node, actor, job, deployment or placement group is called '{}': "
                             "see 'troupe list nodes|actors|jobs|deployments|placement-groups'",
                             wanted));
  }
  if (found.size() == 1) return found.front();
  json::array several;
  for (auto& item : found) several.push_back(std::move(item));
  return several;
}

// A table shows what fits a line; JSON and YAML show everything.
json::object pick(const json::object& all, std::initializer_list<const char*> keys) {
  json::object out;
  for (const char* key : keys) out[key] = all.at(key);
  return out;
}

}  // namespace

int run_status(const CommonOptions& common) {
  const StateFolder folder{common.state};
  auto head = connect_head(folder);
  if (!head) return fail(head.error());
  auto info = (*head)->ask<protocol::ClusterInfo>(Method::cluster_info, Empty{});
  if (!info) return fail(info.error());
  auto all = ask_everything(**head);
  if (!all) return fail(all.error());
  json::array nodes;
  for (const auto& node : all->nodes) {
    nodes.push_back(
        pick(describe_node(node), {"name", "state", "total", "available", "actors", "slots"}));
  }
  json::array deployments;
  for (const auto& deployment : all->deployments) {
    const auto alive = std::count_if(deployment.replicas.begin(), deployment.replicas.end(),
                                     [](const auto& replica) { return replica.state == "alive"; });
    deployments.push_back(
        json::object{{"name", deployment.spec.name},
                     {"state", deployment.state},
                     {"replicas", fmt::format("{}/{}", alive, deployment.spec.replicas)},
                     {"reason", deployment.reason}});
  }
  json::array pending;
  for (const auto& item : info->pending) {
    pending.push_back(
        json::object{{"id", item.id.to_string()}, {"kind", item.kind}, {"reason", item.reason}});
  }
  json::object out{{"cluster", info->cluster.to_string()},
                   {"state", folder.path().string()},
                   {"version", info->version},
                   {"epoch", info->epoch},
                   {"started", time_text(info->started_unix_us)},
                   {"actors", info->actors},
                   {"jobs_running", info->jobs_running},
                   {"leases", info->leases},
                   {"placement_groups", info->placement_groups}};
  if (!info->heads.empty()) {
    json::array heads;
    for (const auto& one : info->heads) {
      heads.push_back(json::object{{"name", one.name},
                                   {"role", one.role},
                                   {"in_sync", one.in_sync},
                                   {"behind", one.behind}});
    }
    out["heads"] = std::move(heads);
  }
  if (auto record = folder.read_record()) {
    if (record->gateway_port != 0) {
      out["gateway"] = fmt::format("http://{}:{}", record->host, record->gateway_port);
      if (!record->gateway_https.empty()) out["gateway_https"] = "https://" + record->gateway_https;
    }
    const auto keeper = std::ranges::find(record->daemons, "keeper", &DaemonRecord::kind);
    if (keeper != record->daemons.end()) {
      out["keeper"] = is_running(*keeper) ? "watches"
                                          : "is dead: what dies now stays so, until 'troupe down' "
                                            "and 'troupe up'";
    }
  }
  out["nodes"] = std::move(nodes);
  out["deployments"] = std::move(deployments);
  out["pending"] = std::move(pending);
  print(out, common.format);
  return 0;
}

int run_list(const CommonOptions& common, const std::string& kind) {
  auto head = connect_head(StateFolder{common.state});
  if (!head) return fail(head.error());
  auto all = ask_everything(**head);
  if (!all) return fail(all.error());
  const bool full = common.format != Format::table;
  json::array rows;
  const auto add = [&](json::object row, std::initializer_list<const char*> keys) {
    rows.push_back(full ? std::move(row) : pick(row, keys));
  };
  if (kind == "nodes") {
    for (const auto& node : all->nodes) {
      add(describe_node(node), {"id", "name", "state", "total", "available", "actors", "slots"});
    }
  } else if (kind == "actors") {
    for (const auto& actor : all->actors) {
      add(describe_actor(actor, all->nodes),
          {"id", "name", "class", "state", "node", "pid", "incarnation", "reason"});
    }
  } else if (kind == "jobs") {
    for (const auto& job : all->jobs) {
      add(describe_job(job), {"id", "name", "state", "started", "ended", "message"});
    }
  } else if (kind == "placement-groups") {
    for (const auto& group : all->groups) {
      auto row = describe_group(group, all->nodes);
      if (!full) row["bundles"] = group.spec.bundles.size();
      add(std::move(row), {"id", "name", "state", "strategy", "bundles", "reason"});
    }
  } else {
    for (const auto& deployment : all->deployments) {
      auto row = describe_deployment(deployment, all->nodes);
      if (!full) row["replicas"] = deployment.replicas.size();
      add(std::move(row), {"name", "state", "replicas", "plugin", "version", "reason"});
    }
  }
  print(rows, common.format);
  return 0;
}

int run_objects(const CommonOptions& common, const ObjectsOptions& options) {
  auto head = connect_head(StateFolder{common.state});
  if (!head) return fail(head.error());
  protocol::ListObjects request;
  request.limit = options.limit;
  if (!options.job.empty()) {
    const auto job = JobId::parse(options.job);
    if (!job) return fail(job.error());
    request.job = *job;
  }
  auto nodes = (*head)->ask<protocol::NodeList>(Method::list_nodes, Empty{});
  if (!nodes) return fail(nodes.error());
  auto objects = (*head)->ask<protocol::ObjectList>(Method::list_objects, request);
  if (!objects) return fail(objects.error());
  json::array rows;
  for (const auto& object : objects->items) {
    auto row = describe_object(object, nodes->items);
    if (common.format == Format::table) {
      row = pick(row, {"id", "size_bytes", "state", "node", "owner_kind", "owner", "why"});
    }
    rows.push_back(std::move(row));
  }
  print(rows, common.format);
  if (objects->total > objects->items.size()) {
    fmt::print(stderr, "{} of {} objects: --limit 0 shows all\n", objects->items.size(),
               objects->total);
  }
  return 0;
}

int run_describe(const CommonOptions& common, const std::string& id) {
  auto head = connect_head(StateFolder{common.state});
  if (!head) return fail(head.error());
  auto all = ask_everything(**head);
  if (!all) return fail(all.error());
  auto found = find(*all, id);
  if (!found) return fail(found.error());
  print(*found, common.format);
  return 0;
}

namespace {

// Whether another file has its name now.
bool is_replaced(std::FILE* file, const std::filesystem::path& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(::fileno(file), &open) == 0 && ::stat(path.c_str(), &named) == 0 &&
         (open.st_dev != named.st_dev || open.st_ino != named.st_ino);
}

// A daemon's own log is a file of the state folder.
int print_daemon_log(const std::filesystem::path& path, bool follow) {
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return fail(error(Code::not_found, "no log " + path.string()));
  char buffer[65536];
  bool is_over = false;  // The daemon goes on in a new file.
  while (!was_interrupted()) {
    const size_t count = std::fread(buffer, 1, sizeof buffer, file);
    std::fwrite(buffer, 1, count, stdout);
    std::fflush(stdout);
    if (count > 0) continue;
    if (!follow) break;
    std::clearerr(file);
    if (is_over) {
      std::FILE* const next = std::freopen(path.c_str(), "r", file);
      if (next == nullptr) return fail(error(Code::not_found, "no log " + path.string()));
      file = next;
    }
    // Before the next file this one is read once more to its end.
    is_over = is_replaced(file, path);
    if (!is_over) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  std::fclose(file);
  return 0;
}

}  // namespace

namespace {

// What an actor wrote, read from its worker.
int print_actor_log(const protocol::ActorInfo& actor, const std::vector<protocol::NodeInfo>& nodes,
                    bool follow) {
  const auto node = std::find_if(nodes.begin(), nodes.end(), [&](const auto& candidate) {
    return candidate.address.node == actor.address.node;
  });
  if (node == nodes.end()) {
    return fail(error(
        Code::not_found,
        fmt::format("actor {} has run on no node that is known: {}",
                    actor.name.empty() ? actor.actor.to_string() : actor.name, actor.reason)));
  }
  auto worker = Rpc::connect(node->address.unix_path);
  if (!worker) return fail(worker.error());
  protocol::ReadLog request;
  request.actor = actor.actor;
  request.follow = follow;
  auto ended = (*worker)->stream(Method::read_log, protocol::encode(request), [](BytesView item) {
    auto chunk = protocol::decode<protocol::LogChunk>(item);
    if (!chunk) return false;
    std::fwrite(chunk->data.data(), 1, chunk->data.size(), stdout);
    std::fflush(stdout);
    return true;
  });
  return ended ? 0 : fail(ended.error());
}

}  // namespace

int run_logs(const CommonOptions& common, const std::string& id, bool follow) {
  watch_interrupts();
  const StateFolder folder{common.state};
  const auto daemon_log = [&folder](const std::string& name) {
    return folder.logs() / (name + ".log");
  };
  if (id.find('/') == id.npos && std::filesystem::exists(daemon_log(id))) {
    return print_daemon_log(daemon_log(id), follow);
  }
  auto head = connect_head(folder);
  if (!head) return fail(head.error());
  auto all = ask_everything(**head);
  if (!all) return fail(all.error());
  // A name outlives its actors: the one that lives is meant, else the latest.
  const auto rank = [](const protocol::ActorInfo& actor) {
    return std::pair(actor.state != "dead", actor.created_unix_us);
  };
  const protocol::ActorInfo* best = nullptr;
  for (const auto& actor : all->actors) {
    if (!matches(actor.actor, actor.name, id)) continue;
    if (best == nullptr || rank(actor) > rank(*best)) best = &actor;
  }
  if (best != nullptr) return print_actor_log(*best, all->nodes, follow);
  for (const auto& node : all->nodes) {
    if (!matches(node.address.node, node.name, id)) continue;
    return print_daemon_log(daemon_log(node.name), follow);
  }
  return fail(error(Code::not_found,
                    fmt::format("no actor, node or daemon is called '{}': see 'troupe list "
                                "actors', 'troupe list nodes' and the files in {}",
                                id, folder.logs().string())));
}

}  // namespace troupe::tools
