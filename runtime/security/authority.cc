#include "security/authority.h"

#include <fmt/format.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>

#include <algorithm>
#include <array>

#include "security/openssl.h"
#include "security/private_files.h"

namespace troupe::security {
namespace {

namespace fs = std::filesystem;
constexpr auto authority_lifetime = std::chrono::hours{24 * 3653};
constexpr auto clock_skew = std::chrono::minutes{5};

fs::path key_path(const fs::path& directory) {
  return directory / "authority.key";
}
fs::path certificate_path(const fs::path& directory) {
  return directory / "authority.pem";
}

Result<KeyPtr> make_key() {
  KeyPtr key{::EVP_EC_gen("P-256")};
  if (!key) return openssl_error(Code::internal, "make a key");
  return key;
}

time_t to_time(WallTime time) {
  return std::chrono::system_clock::to_time_t(
      std::chrono::time_point_cast<std::chrono::system_clock::duration>(time));
}

bool set_random_serial(X509* certificate) {
  std::array<unsigned char, 16> bytes{};
  if (::RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) return false;
  bytes[0] = static_cast<unsigned char>((bytes[0] & 0x7f) | 0x40);  // Positive, of full length.
  BIGNUM* number = ::BN_bin2bn(bytes.data(), static_cast<int>(bytes.size()), nullptr);
  const bool done =
      number && ::BN_to_ASN1_INTEGER(number, ::X509_get_serialNumber(certificate)) != nullptr;
  ::BN_free(number);
  return done;
}

bool set_validity(X509* certificate, WallTime from, WallTime until) {
  return ::ASN1_TIME_set(::X509_getm_notBefore(certificate), to_time(from)) != nullptr &&
         ::ASN1_TIME_set(::X509_getm_notAfter(certificate), to_time(until)) != nullptr;
}

bool add_subject(X509_NAME* subject, const std::string& organization, const std::string& name) {
  const auto add = [&](const char* field, const std::string& value) {
    return ::X509_NAME_add_entry_by_txt(subject, field, MBSTRING_UTF8,
                                        reinterpret_cast<const unsigned char*>(value.data()),
                                        static_cast<int>(value.size()), -1, 0) == 1;
  };
  return add("O", organization) && add("CN", name);
}

// `text` is always a constant of ours: OpenSSL's little language is no place for input.
bool add_extension(X509* certificate, X509* issuer, int kind, const char* text) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  ::X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = ::X509V3_EXT_conf_nid(nullptr, &context, kind, text);
  const bool done = extension && ::X509_add_ext(certificate, extension, -1) == 1;
  ::X509_EXTENSION_free(extension);
  return done;
}

// Takes ownership of `value` as one more name.
bool push_name(GENERAL_NAMES* names, int type, ASN1_STRING* value) {
  GENERAL_NAME* name = value ? ::GENERAL_NAME_new() : nullptr;
  if (!name) {
    ::ASN1_STRING_free(value);
    return false;
  }
  ::GENERAL_NAME_set0_value(name, type, value);
  if (sk_GENERAL_NAME_push(names, name) > 0) return true;
  ::GENERAL_NAME_free(name);
  return false;
}

bool push_text(GENERAL_NAMES* names, int type, const std::string& text) {
  ASN1_IA5STRING* value = ::ASN1_IA5STRING_new();
  if (value && ::ASN1_STRING_set(value, text.data(), static_cast<int>(text.size())) != 1) {
    ::ASN1_IA5STRING_free(value);
    value = nullptr;
  }
  return push_name(names, type, value);
}

bool valid_dns_name(std::string_view name) {
  return !name.empty() && name.size() <= 253 && name.front() != '.' && name.front() != '-' &&
         std::ranges::all_of(name, [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '-' || c == '_';
         });
}

// DNS names do not differ by case.
bool ends_as_etcd_peer(std::string_view name) {
  if (name.size() < etcd_peer_name.size()) return false;
  name.remove_prefix(name.size() - etcd_peer_name.size());
  return ::OPENSSL_strncasecmp(name.data(), etcd_peer_name.data(), name.size()) == 0;
}

Result<NamesPtr> alternative_names(const std::string& uri, const IdentitySpec& spec) {
  NamesPtr names{::GENERAL_NAMES_new()};
  if (!names || !push_text(names.get(), GEN_URI, uri)) {
    return openssl_error(Code::internal, "name a certificate");
  }
  for (const std::string& name : spec.dns_names) {
    if (!valid_dns_name(name)) {
      return error(Code::invalid, fmt::format("\"{}\" is no DNS name", name));
    }
    if (ends_as_etcd_peer(name)) {
      return error(Code::invalid, fmt::format("\"{}\" is for role etcd, which has it", name));
    }
    if (!push_text(names.get(), GEN_DNS, name)) {
      return openssl_error(Code::internal, "name a certificate");
    }
  }
  const bool is_etcd = spec.role == Role::etcd;
  if (is_etcd && !push_text(names.get(), GEN_DNS, std::string{etcd_peer_name})) {
    return openssl_error(Code::internal, "name a certificate");
  }
  for (const std::string& address : spec.ip_addresses) {
    if (!push_name(names.get(), GEN_IPADD, ::a2i_IPADDRESS(address.c_str()))) {
      ::ERR_clear_error();
      return error(Code::invalid, fmt::format("\"{}\" is no IP address", address));
    }
  }
  return names;
}

bool add_names(X509* certificate, GENERAL_NAMES* names) {
  return ::X509_add1_ext_i2d(certificate, NID_subject_alt_name, names, 0, 0) == 1;
}

Status check_spec(const IdentitySpec& spec) {
  if (role_from_name(role_name(spec.role)) == Role::unknown) {
    return error(Code::invalid, "an identity needs a role");
  }
  if (!valid_name(spec.name)) {
    return error(Code::invalid, fmt::format("\"{}\" is no name for an identity", spec.name));
  }
  if (spec.lifetime <= std::chrono::seconds{0} || spec.lifetime > authority_lifetime) {
    return error(Code::invalid, "an identity lives longer than nothing and at most ten years");
  }
  return ok();
}

}  // namespace

struct Authority::Impl {
  Impl(KeyPtr private_key, CertificatePtr own, std::string pem, ClusterId id)
      : key(std::move(private_key)),
        certificate(std::move(own)),
        certificate_pem(std::move(pem)),
        cluster(id) {}

  Result<std::string> certify(EVP_PKEY* subject_key, const IdentitySpec& spec, WallTime now) const;

  KeyPtr key;
  CertificatePtr certificate;
  std::string certificate_pem;
  ClusterId cluster;
};

Authority::Authority(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Authority::Authority(Authority&&) noexcept = default;
Authority& Authority::operator=(Authority&&) noexcept = default;
Authority::~Authority() = default;

ClusterId Authority::cluster() const {
  return impl_->cluster;
}
const std::string& Authority::certificate_pem() const {
  return impl_->certificate_pem;
}
Digest Authority::fingerprint() const {
  return fingerprint_of(impl_->certificate.get());
}

Result<Authority> Authority::create(ClusterId cluster, WallTime now) {
  if (cluster.is_nil()) return error(Code::invalid, "an authority needs a cluster's id");
  TROUPE_TRY(KeyPtr key, make_key());
  CertificatePtr made{::X509_new()};
  X509* certificate = made.get();
  const std::string id = cluster.to_string();
  const NamesPtr names{::GENERAL_NAMES_new()};
  const bool done =
      certificate && names && ::X509_set_version(certificate, X509_VERSION_3) == 1 &&
      set_random_serial(certificate) &&
      set_validity(certificate, now - clock_skew, now + authority_lifetime) &&
      add_subject(::X509_get_subject_name(certificate), "Troupe cluster " + id, "authority") &&
      ::X509_set_issuer_name(certificate, ::X509_get_subject_name(certificate)) == 1 &&
      ::X509_set_pubkey(certificate, key.get()) == 1 &&
      push_text(names.get(), GEN_URI, "troupe://" + id) && add_names(certificate, names.get()) &&
      add_extension(certificate, certificate, NID_basic_constraints,
                    "critical,CA:TRUE,pathlen:0") &&
      add_extension(certificate, certificate, NID_key_usage, "critical,keyCertSign,cRLSign") &&
      add_extension(certificate, certificate, NID_subject_key_identifier, "hash") &&
      ::X509_sign(certificate, key.get(), ::EVP_sha256()) != 0;
  if (!done) return openssl_error(Code::internal, "make an authority");
  TROUPE_TRY(std::string pem, write_certificate(certificate));
  return Authority{
      std::make_unique<Impl>(std::move(key), std::move(made), std::move(pem), cluster)};
}

Result<Authority> Authority::load(const fs::path& directory) {
  TROUPE_TRY(std::string certificate_pem, read_public_file(certificate_path(directory)));
  TROUPE_TRY(const std::string key_pem, read_private_file(key_path(directory)));
  TROUPE_TRY(CertificatePtr certificate,
             read_certificate(certificate_pem, certificate_path(directory).string()));
  TROUPE_TRY(KeyPtr key, read_key(key_pem, key_path(directory).string()));
  if (::X509_check_private_key(certificate.get(), key.get()) != 1) {
    return openssl_error(Code::data_loss, fmt::format("{} and {} do not belong together",
                                                      certificate_path(directory).string(),
                                                      key_path(directory).string()));
  }
  if (::X509_check_ca(certificate.get()) != 1 || ::X509_verify(certificate.get(), key.get()) != 1) {
    return openssl_error(Code::data_loss, fmt::format("{} is not an authority's own certificate",
                                                      certificate_path(directory).string()));
  }
  const Result<std::string> cluster = cluster_in(certificate.get());
  if (!cluster) {
    return error(Code::data_loss, fmt::format("{}: {}", certificate_path(directory).string(),
                                              cluster.error().message()));
  }
  TROUPE_TRY(const ClusterId id, ClusterId::parse(*cluster));
  return Authority{std::make_unique<Impl>(std::move(key), std::move(certificate),
                                          std::move(certificate_pem), id)};
}

Status Authority::save(const fs::path& directory) const {
  TROUPE_CHECK(make_private_directory(directory));
  // The certificate is written last: a key alone is what a crash left, and worth nothing.
  if (fs::exists(certificate_path(directory))) {
    return error(Code::conflict, fmt::format("{} exists: an authority is never overwritten",
                                             certificate_path(directory).string()));
  }
  TROUPE_TRY(const std::string key_pem, write_key(impl_->key.get()));
  TROUPE_CHECK(write_private_file(key_path(directory), key_pem));
  return write_private_file(certificate_path(directory), impl_->certificate_pem);
}

Result<std::string> Authority::Impl::certify(EVP_PKEY* subject_key, const IdentitySpec& spec,
                                             WallTime now) const {
  TROUPE_CHECK(check_spec(spec));
  PeerIdentity identity;
  identity.role = spec.role;
  identity.name = spec.name;
  identity.cluster = cluster.to_string();
  TROUPE_TRY(const NamesPtr names, alternative_names(identity_uri(identity), spec));
  const CertificatePtr made{::X509_new()};
  X509* leaf = made.get();
  const std::string organization = "Troupe cluster " + identity.cluster;
  bool done = leaf && ::X509_set_version(leaf, X509_VERSION_3) == 1 && set_random_serial(leaf) &&
              set_validity(leaf, now - clock_skew, now + spec.lifetime) &&
              add_subject(::X509_get_subject_name(leaf), organization, spec.name) &&
              ::X509_set_issuer_name(leaf, ::X509_get_subject_name(certificate.get())) == 1 &&
              ::X509_set_pubkey(leaf, subject_key) == 1 && add_names(leaf, names.get()) &&
              add_extension(leaf, certificate.get(), NID_basic_constraints, "critical,CA:FALSE") &&
              add_extension(leaf, certificate.get(), NID_key_usage, "critical,digitalSignature") &&
              add_extension(leaf, certificate.get(), NID_ext_key_usage, "serverAuth,clientAuth") &&
              add_extension(leaf, certificate.get(), NID_subject_key_identifier, "hash") &&
              add_extension(leaf, certificate.get(), NID_authority_key_identifier, "keyid:always");
  const ASN1_TIME* last = ::X509_get0_notAfter(certificate.get());
  if (done && ::ASN1_TIME_compare(::X509_get0_notAfter(leaf), last) > 0) {
    done = ::X509_set1_notAfter(leaf, last) == 1;
  }
  if (!done || ::X509_sign(leaf, key.get(), ::EVP_sha256()) == 0) {
    return openssl_error(Code::internal, "make a certificate");
  }
  return write_certificate(leaf);
}

Result<IssuedIdentity> Authority::issue(const IdentitySpec& spec, WallTime now) const {
  TROUPE_TRY(const KeyPtr key, make_key());
  IssuedIdentity issued;
  TROUPE_TRY(issued.certificate_pem, impl_->certify(key.get(), spec, now));
  TROUPE_TRY(issued.key_pem, write_key(key.get()));
  return issued;
}

Result<std::string> Authority::certify(std::string_view request_pem, const IdentitySpec& spec,
                                       WallTime now) const {
  const BioPtr bio{::BIO_new_mem_buf(request_pem.data(), static_cast<int>(request_pem.size()))};
  const RequestPtr request{::PEM_read_bio_X509_REQ(bio.get(), nullptr, nullptr, nullptr)};
  if (!request) return openssl_error(Code::invalid, "this is no certificate request");
  EVP_PKEY* key = ::X509_REQ_get0_pubkey(request.get());
  if (!key || ::X509_REQ_verify(request.get(), key) != 1) {
    return openssl_error(Code::invalid, "the request is not signed by its own key");
  }
  if (::EVP_PKEY_get_base_id(key) != EVP_PKEY_EC || ::EVP_PKEY_get_bits(key) < 256) {
    return error(Code::invalid, "the request's key is not an elliptic-curve key of 256 bits");
  }
  return impl_->certify(key, spec, now);
}

Result<CertificateRequest> make_certificate_request() {
  TROUPE_TRY(const KeyPtr key, make_key());
  const RequestPtr request{::X509_REQ_new()};
  const BioPtr bio{::BIO_new(::BIO_s_mem())};
  const bool done = request && bio && ::X509_REQ_set_pubkey(request.get(), key.get()) == 1 &&
                    ::X509_REQ_sign(request.get(), key.get(), ::EVP_sha256()) != 0 &&
                    ::PEM_write_bio_X509_REQ(bio.get(), request.get()) == 1;
  if (!done) return openssl_error(Code::internal, "make a certificate request");
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  CertificateRequest made;
  made.request_pem.assign(text, static_cast<size_t>(size));
  TROUPE_TRY(made.key_pem, write_key(key.get()));
  return made;
}

Result<Digest> certificate_fingerprint(std::string_view pem) {
  TROUPE_TRY(const CertificatePtr certificate, read_certificate(pem, "the text"));
  return fingerprint_of(certificate.get());
}

}  // namespace troupe::security
