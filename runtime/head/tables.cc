#include "head/tables.h"

#include <fmt/format.h>

#include <map>

#include "protocol/codec.h"

namespace troupe::head {

namespace {

constexpr std::string_view devices_suffix = "/devices";

template <class T>
void put(Batch& batch, Table table, std::string key, const T& row) {
  const Bytes bytes = protocol::encode(row);
  batch.put(table, std::move(key), std::string(as_text(bytes)));
}

std::string name_key(const protocol::ActorSpec& spec) {
  return spec.name_space + '\0' + spec.name;
}

template <class T>
Result<T> decode_row(Table table, const std::string& key, const std::string& value) {
  auto row = protocol::decode<T>(as_bytes(value));
  if (row) return row;
  return error(Code::data_loss, fmt::format("row {} of table {}: {}", key, table_name(table),
                                            row.error().message()));
}

template <class T>
Status load_table(Store& store, Table table, std::vector<T>& rows) {
  TROUPE_TRY(const auto found, store.scan(table, ""));
  for (const auto& [key, value] : found) {
    TROUPE_TRY(auto row, decode_row<T>(table, key, value));
    rows.push_back(std::move(row));
  }
  return ok();
}

Status load_actors(Store& store, std::vector<StoredActor>& actors) {
  TROUPE_TRY(const auto found, store.scan(Table::actors, ""));
  for (const auto& [key, value] : found) {
    if (key.ends_with(devices_suffix)) {  // Sorts right behind its actor.
      TROUPE_TRY(auto held, decode_row<protocol::StartActor>(Table::actors, key, value));
      if (!actors.empty() && key.starts_with(actors.back().record.info.actor.to_string())) {
        actors.back().devices = std::move(held.devices);
        actors.back().bundle = held.bundle;
        actors.back().grant = held.grant;
      }
      continue;
    }
    StoredActor actor;
    TROUPE_TRY(actor.record, decode_row<protocol::ActorRecord>(Table::actors, key, value));
    actors.push_back(std::move(actor));
  }
  return ok();
}

}  // namespace

void put_node(Batch& batch, const protocol::NodeInfo& node) {
  put(batch, Table::nodes, node.address.node.to_string(), node);
}

void erase_node(Batch& batch, NodeId node) {
  batch.erase(Table::nodes, node.to_string());
}

void put_job(Batch& batch, const protocol::JobInfo& job) {
  put(batch, Table::jobs, job.job.to_string(), job);
}

void erase_job(Batch& batch, JobId job) {
  batch.erase(Table::jobs, job.to_string());
}

void put_actor(Batch& batch, const StoredActor& actor) {
  const auto& [spec, info] = actor.record;
  const std::string key = info.actor.to_string();
  put(batch, Table::actors, key, actor.record);
  const std::string devices_key = key + std::string(devices_suffix);
  if (actor.devices.empty() && actor.bundle == 0) {
    batch.erase(Table::actors, devices_key);
  } else {
    protocol::StartActor held;
    held.devices = actor.devices;
    held.bundle = actor.bundle;
    held.grant = actor.grant;
    put(batch, Table::actors, devices_key, held);
  }
  if (spec.name.empty()) return;
  if (info.state == "dead") {
    batch.erase(Table::names, name_key(spec));
  } else {
    batch.put(Table::names, name_key(spec), key);
  }
}

void erase_actor(Batch& batch, ActorId actor) {
  const std::string key = actor.to_string();
  batch.erase(Table::actors, key);
  batch.erase(Table::actors, key + std::string(devices_suffix));
}

void put_deployment(Batch& batch, protocol::DeploymentInfo deployment) {
  deployment.replicas.clear();
  put(batch, Table::deployments, deployment.spec.name, deployment);
}

void erase_deployment(Batch& batch, const std::string& name) {
  batch.erase(Table::deployments, name);
}

void put_group(Batch& batch, const protocol::PlacementGroupInfo& group) {
  put(batch, Table::placement_groups, group.spec.group.to_string(), group);
}

void erase_group(Batch& batch, PlacementGroupId group) {
  batch.erase(Table::placement_groups, group.to_string());
}

Result<StoredState> load(Store& store) {
  StoredState state;
  TROUPE_CHECK(load_table(store, Table::nodes, state.nodes));
  TROUPE_CHECK(load_table(store, Table::jobs, state.jobs));
  TROUPE_CHECK(load_actors(store, state.actors));
  TROUPE_CHECK(load_table(store, Table::deployments, state.deployments));
  TROUPE_CHECK(load_table(store, Table::placement_groups, state.groups));
  return state;
}

}  // namespace troupe::head
