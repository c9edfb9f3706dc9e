// The state directory of a cluster on this machine, and the record of what runs in it.
//
//   cluster.json   what `troupe up` started
//   lock           held by the running head (of several: lock-NAME by each of the others)
//   authority/     the cluster's certificate authority
//   credentials/   certificates, a folder a daemon
//   api_keys.json  hashes of the gateway's keys
//   gateway.key    one key, for local clients
//   metadata/      the head's tables (metadata-NAME)
//   coordination/  of several heads: what etcd keeps, and the authority that it trusts
//   sockets/ logs/ packages/
//   checkpoints/   the last states of actors (head), and those on their way (worker)
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "base/ids.h"
#include "base/status.h"

namespace troupe::tools {

struct DaemonRecord {
  std::string kind;  // etcd, head, worker, gateway, keeper.
  std::string name;
  int pid = 0;
  uint64_t started_ticks = 0;          // With the pid, names one process: pids are used again.
  std::vector<std::string> arguments;  // What starts it again, as it was.
};

struct ClusterRecord {
  std::string cluster_id;
  std::string version;
  std::string host;
  std::vector<std::string> heads;  // HOST:PORT each, of which one leads.
  uint16_t gateway_port = 0;
  std::string gateway_https;  // HOST:PORT; empty: none.
  std::vector<DaemonRecord> daemons;
};

class StateFolder {
 public:
  static constexpr char first_head[] = "head";

  // Empty: TROUPE_STATE, or ~/.troupe.
  explicit StateFolder(const std::string& path);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path sockets() const { return path_ / "sockets"; }
  std::filesystem::path logs() const { return path_ / "logs"; }
  std::filesystem::path spill() const { return path_ / "spill"; }
  // Of the head ("head"), or a worker.
  std::filesystem::path packages(const std::string& daemon) const {
    return path_ / "packages" / daemon;
  }
  // The same.
  std::filesystem::path checkpoints(const std::string& daemon) const {
    return path_ / "checkpoints" / daemon;
  }
  std::filesystem::path authority() const { return path_ / "authority"; }
  // What the gateway's HTTPS is verified with (curl --cacert).
  std::filesystem::path authority_certificate() const { return authority() / "authority.pem"; }
  // Of one head of several, by its name; the first one is named as the only one would be.
  std::filesystem::path metadata(const std::string& head = first_head) const {
    return path_ / ("metadata" + suffix(head));
  }
  std::filesystem::path credentials(const std::string& name) const {
    return path_ / "credentials" / name;
  }
  std::filesystem::path api_keys() const { return path_ / "api_keys.json"; }
  std::filesystem::path gateway_key() const { return path_ / "gateway.key"; }
  std::filesystem::path head_socket(const std::string& head = first_head) const {
    return sockets() / (head + ".sock");
  }
  std::filesystem::path coordination() const { return path_ / "coordination"; }

  // Makes the folders, for this user alone. Errors: denied (it belongs to someone else, or others
  // may enter), exhausted (disk full), unavailable.
  Status create() const;
  // The lock that a running head holds. Errors: conflict (one runs here already).
  Result<FileDescriptor> lock(const std::string& head = first_head) const;
  // Errors: not_found (nothing runs here), data_loss (damaged).
  Result<ClusterRecord> read_record() const;
  Status write_record(const ClusterRecord& record) const;
  void remove_record() const;

 private:
  static std::string suffix(const std::string& head) {
    return head == first_head ? "" : "-" + head;
  }

  std::filesystem::path path_;
};

Result<std::string> read_file(const std::filesystem::path& path);

}  // namespace troupe::tools
