#include "head/tables.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <map>
#include <thread>

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

constexpr size_t page_rows = 4096;

// Calls `take` for each page of rows: they and what is made of them are not to lie in memory twice.
template <class Take>
Status for_each_page(Store& store, Table table, std::string_view prefix, Take take) {
  Page page{{}, page_rows};
  for (;;) {
    TROUPE_TRY(const Rows rows, store.scan(table, prefix, page));
    TROUPE_CHECK(take(rows));
    if (rows.size() < page_rows) return ok();
    page.after = rows.back().first;
  }
}

template <class T>
Status load_table(Store& store, Table table, std::vector<T>& loaded) {
  return for_each_page(store, table, "", [&](const Rows& rows) -> Status {
    for (const auto& [key, value] : rows) {
      TROUPE_TRY(auto row, decode_row<T>(table, key, value));
      loaded.push_back(std::move(row));
    }
    return ok();
  });
}

// The page that follows those in `actors`.
Status take_actors(const Rows& rows, StoredActors& actors) {
  StoredActor* last = actors.empty() ? nullptr : &actors.back().back();
  std::vector<StoredActor> page;
  page.reserve(rows.size());  // `last` stays valid.
  for (const auto& [key, value] : rows) {
    if (key.ends_with(devices_suffix)) {  // Sorts right behind its actor.
      TROUPE_TRY(auto held, decode_row<protocol::StartActor>(Table::actors, key, value));
      if (last != nullptr && key.starts_with(last->record.info.actor.to_string())) {
        last->devices = std::move(held.devices);
        last->bundle = held.bundle;
        last->grant = held.grant;
      }
      continue;
    }
    TROUPE_TRY(auto record, decode_row<protocol::ActorRecord>(Table::actors, key, value));
    last = &page.emplace_back();
    last->record = std::move(record);
  }
  if (!page.empty()) actors.push_back(std::move(page));
  return ok();
}

// Those whose key begins with `prefix`.
Status load_actors(Store& store, std::string_view prefix, StoredActors& actors) {
  return for_each_page(store, Table::actors, prefix,
                       [&](const Rows& rows) { return take_actors(rows, actors); });
}

// Of many most time goes into decoding, which several threads can share: ids are random, so their
// first digits make parts of one size.
Result<StoredActors> load_actors(Store& store) {
  TROUPE_TRY(const Rows first, store.scan(Table::actors, "", Page{{}, page_rows}));
  StoredActors actors;
  if (first.size() < page_rows) {
    TROUPE_CHECK(take_actors(first, actors));  // That is all of them.
    return actors;
  }
  constexpr std::string_view digits = "0123456789abcdef";
  std::vector<Result<StoredActors>> parts(digits.size(), StoredActors{});
  std::atomic<size_t> next = 0;
  const auto load_parts = [&] {
    for (size_t part = next++; part < digits.size(); part = next++) {
      StoredActors loaded;
      const Status status = load_actors(store, digits.substr(part, 1), loaded);
      if (status) {
        parts[part] = std::move(loaded);
      } else {
        parts[part] = status.error();
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    const unsigned others = std::clamp(std::thread::hardware_concurrency(), 1u, 8u) - 1;
    for (unsigned i = 0; i < others; ++i) threads.emplace_back(load_parts);
    load_parts();
  }
  for (auto& part : parts) {
    if (!part) return std::move(part).error();
    std::ranges::move(*part, std::back_inserter(actors));
  }
  return actors;
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
  TROUPE_TRY(state.actors, load_actors(store));
  TROUPE_CHECK(load_table(store, Table::deployments, state.deployments));
  TROUPE_CHECK(load_table(store, Table::placement_groups, state.groups));
  return state;
}

}  // namespace troupe::head
