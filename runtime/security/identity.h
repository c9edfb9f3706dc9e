// Whom a certificate speaks for: a URI among its names, troupe://<cluster id>/<role>/<name>.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "transport/credentials.h"

namespace troupe::security {

using transport::PeerIdentity;
using transport::Role;

std::string_view role_name(Role role);
// Role::unknown for any other text.
Role role_from_name(std::string_view name);

// A DNS name by which etcd's members know each other, for they do not read our URI. The authority
// gives it to role etcd, and nothing like it to others.
inline constexpr std::string_view etcd_peer_name = "peer.etcd.troupe.internal";

// A name is 1 to 64 letters, digits, '.', '_' or '-'.
bool valid_name(std::string_view name);

std::string identity_uri(const PeerIdentity& identity);
// Errors: denied (no such URI, unknown role, bad name).
Result<PeerIdentity> parse_identity_uri(std::string_view uri);

// The identity in a certificate, whoever signed it. Errors: denied (none, or more than one).
Result<PeerIdentity> identity_in(const x509_st* certificate);
// The cluster in an authority's certificate, whose URI is troupe://<cluster id>. Errors: denied.
Result<std::string> cluster_in(const x509_st* authority);

}  // namespace troupe::security
