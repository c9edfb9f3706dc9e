#include "etcd/etcd_server.h"

#include "security/identity.h"

namespace troupe::etcd {

namespace {

// A record of some hundred bytes: what etcd keeps beside it is its history.
constexpr const char* quota_bytes = "268435456";
constexpr const char* revisions_kept = "1000";
constexpr const char* snapshot_after = "10000";  // Entries, which it holds in memory until then.

std::string url(const std::string& address) {
  return "https://" + address;
}

}  // namespace

std::vector<std::string> etcd_arguments(const EtcdServerOptions& options) {
  const std::string authority = options.folder / "authority.pem";
  const std::string certificate = options.folder / "identity.pem";
  const std::string key = options.folder / "identity.key";
  const std::string client = url(options.client_address);
  const std::string peer = url(options.self.peer_address);
  std::string cluster = options.self.name + "=" + peer;
  for (const EtcdMember& other : options.others) {
    cluster += "," + other.name + "=" + url(other.peer_address);
  }
  // Not --client-cert-allowed-hostname: with it etcd 3.4's JSON gateway cannot reach its own
  // server.
  return {
      "--name=" + options.self.name,
      "--data-dir=" + (options.folder / "etcd").string(),
      "--listen-client-urls=" + client,
      "--advertise-client-urls=" + client,
      "--listen-peer-urls=" + peer,
      "--initial-advertise-peer-urls=" + peer,
      "--initial-cluster=" + cluster,
      "--initial-cluster-token=" + options.cluster,
      "--client-cert-auth=true",
      "--trusted-ca-file=" + authority,
      "--cert-file=" + certificate,
      "--key-file=" + key,
      "--peer-client-cert-auth=true",
      "--peer-cert-allowed-hostname=" + std::string{security::etcd_peer_name},
      "--peer-trusted-ca-file=" + authority,
      "--peer-cert-file=" + certificate,
      "--peer-key-file=" + key,
      "--heartbeat-interval=" + std::to_string(options.heartbeat.count()),
      "--election-timeout=" + std::to_string(options.election_timeout.count()),
      "--pre-vote=true",  // A member that was away does not unseat a leader that works.
      "--enable-grpc-gateway=true",
      "--auto-compaction-mode=revision",
      std::string{"--auto-compaction-retention="} + revisions_kept,
      std::string{"--quota-backend-bytes="} + quota_bytes,
      std::string{"--snapshot-count="} + snapshot_after,
      "--logger=zap",
      "--log-outputs=stderr",
      "--log-level=warn",
  };
}

}  // namespace troupe::etcd
