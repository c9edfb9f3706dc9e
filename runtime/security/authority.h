// The cluster's own certificate authority: everyone in the cluster trusts it, and nobody else.
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "security/digest.h"
#include "security/identity.h"

namespace troupe::security {

struct IdentitySpec {
  Role role = Role::unknown;
  std::string name;                    // A node's id for role node. See valid_name().
  std::vector<std::string> dns_names;  // Not etcd_peer_name.
  std::vector<std::string> ip_addresses;
  std::chrono::seconds lifetime = std::chrono::hours{24 * 365};  // Cut to the authority's own.
};

struct IssuedIdentity {
  std::string certificate_pem;
  std::string key_pem;  // Secret.
};

// What a process that joins makes for itself, so that its key never leaves it.
struct CertificateRequest {
  std::string request_pem;
  std::string key_pem;  // Secret.
};
Result<CertificateRequest> make_certificate_request();

// Holds the authority's private key (EC P-256). Creating and issuing take well under a millisecond;
// loading and saving block on the disk.
class Authority {
 public:
  // Self-signed, for ten years from `now`.
  static Result<Authority> create(ClusterId cluster, WallTime now);
  // Reads authority.pem and authority.key. Errors: not_found, denied (others can read the key),
  // data_loss (a file is damaged, or the two do not belong together).
  static Result<Authority> load(const std::filesystem::path& directory);
  Authority(Authority&&) noexcept;
  Authority& operator=(Authority&&) noexcept;
  ~Authority();

  // Makes the directory (0700), authority.key (0600) and authority.pem, whole or not at all.
  // Errors: conflict (an authority is there already), denied, exhausted, unavailable.
  Status save(const std::filesystem::path& directory) const;

  // A new key and its certificate. Valid from five minutes before `now`, for clocks differ.
  // Errors: invalid (role, name, a DNS name, an address or the lifetime).
  Result<IssuedIdentity> issue(const IdentitySpec& spec, WallTime now) const;
  // A certificate for the key of a request, whose own wishes for names are ignored.
  // Errors: invalid (also: the request is not signed by its key).
  Result<std::string> certify(std::string_view request_pem, const IdentitySpec& spec,
                              WallTime now) const;

  ClusterId cluster() const;
  const std::string& certificate_pem() const;
  // SHA-256 of the certificate, which a join token carries.
  Digest fingerprint() const;

 private:
  struct Impl;
  explicit Authority(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Of the first certificate in the text. Errors: data_loss.
Result<Digest> certificate_fingerprint(std::string_view pem);

}  // namespace troupe::security
