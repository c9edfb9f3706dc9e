// What transport needs of security: TLS contexts, and who a certificate speaks for.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

struct ssl_ctx_st;
struct x509_st;

namespace troupe::transport {

enum class Role : uint8_t { unknown, head, node, gateway, client, admin, etcd };

// Who is at the other end, as proved by its certificate or by the kernel's peer credentials.
struct PeerIdentity {
  Role role = Role::unknown;
  std::string name;     // A node's id for role node; "uid:0" for a local process.
  std::string cluster;  // The cluster's id.
  uint32_t pid = 0;     // Of a local process.
  bool local = false;   // It came through a Unix socket of the state directory.
};

// The contexts live as long as the Credentials. They speak TLS 1.3 alone and demand a certificate
// of the cluster's own authority from the other side.
class Credentials {
 public:
  virtual ~Credentials() = default;
  // Null: they cannot be used, and the log says why.
  virtual ssl_ctx_st* server_context() = 0;
  virtual ssl_ctx_st* client_context() = 0;
  // Errors: denied (another cluster, no role).
  virtual Result<PeerIdentity> identify(const x509_st* leaf) const = 0;
};

}  // namespace troupe::transport
