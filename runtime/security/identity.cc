#include "security/identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/ids.h"
#include "security/openssl.h"

namespace troupe::security {
namespace {

constexpr std::string_view scheme = "troupe://";

Error no_identity(std::string_view why) {
  return error(Code::denied, fmt::format("the certificate names no Troupe identity: {}", why));
}

// The certificate's only troupe:// URI.
Result<std::string> troupe_uri(const X509* certificate) {
  const NamesPtr names{static_cast<GENERAL_NAMES*>(
      ::X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr))};
  if (!names) return no_identity("it has no alternative names");
  std::vector<std::string> found;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const ASN1_IA5STRING* uri = name->d.uniformResourceIdentifier;
    std::string text{reinterpret_cast<const char*>(::ASN1_STRING_get0_data(uri)),
                     static_cast<size_t>(::ASN1_STRING_length(uri))};
    if (text.starts_with(scheme)) found.push_back(std::move(text));
  }
  // Two would let one certificate be read as two people.
  if (found.size() != 1) return no_identity(found.empty() ? "no troupe:// URI" : "two URIs");
  return std::move(found.front());
}

}  // namespace

std::string_view role_name(Role role) {
  switch (role) {
    case Role::head:
      return "head";
    case Role::node:
      return "node";
    case Role::gateway:
      return "gateway";
    case Role::client:
      return "client";
    case Role::admin:
      return "admin";
    case Role::etcd:
      return "etcd";
    case Role::unknown:
      break;
  }
  return "unknown";
}

Role role_from_name(std::string_view name) {
  for (const Role role :
       {Role::head, Role::node, Role::gateway, Role::client, Role::admin, Role::etcd}) {
    if (role_name(role) == name) return role;
  }
  return Role::unknown;
}

bool valid_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

std::string identity_uri(const PeerIdentity& identity) {
  return fmt::format("{}{}/{}/{}", scheme, identity.cluster, role_name(identity.role),
                     identity.name);
}

Result<PeerIdentity> parse_identity_uri(std::string_view uri) {
  if (!uri.starts_with(scheme)) return no_identity("its URI is not of troupe://");
  uri.remove_prefix(scheme.size());
  const size_t first = uri.find('/');
  const size_t second = first == uri.npos ? uri.npos : uri.find('/', first + 1);
  if (second == uri.npos) return no_identity("its URI lacks a role or a name");
  PeerIdentity identity;
  identity.cluster = uri.substr(0, first);
  identity.role = role_from_name(uri.substr(first + 1, second - first - 1));
  identity.name = uri.substr(second + 1);
  if (!ClusterId::parse(identity.cluster)) return no_identity("its cluster is no id");
  if (identity.role == Role::unknown) return no_identity("this build does not know its role");
  if (!valid_name(identity.name)) return no_identity("its name has forbidden characters");
  return identity;
}

Result<PeerIdentity> identity_in(const X509* certificate) {
  TROUPE_TRY(const std::string uri, troupe_uri(certificate));
  return parse_identity_uri(uri);
}

Result<std::string> cluster_in(const X509* authority) {
  TROUPE_TRY(const std::string uri, troupe_uri(authority));
  std::string cluster = uri.substr(scheme.size());
  if (!ClusterId::parse(cluster)) return no_identity("its URI is not of an authority");
  return cluster;
}

}  // namespace troupe::security
