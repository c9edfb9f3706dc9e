#include "security/credentials.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>

#include <array>
#include <cstring>

#include "base/log.h"
#include "security/openssl.h"
#include "security/private_files.h"

namespace troupe::security {
namespace {

namespace fs = std::filesystem;

// ALPN names as on the wire: each after its length.
constexpr std::string_view cluster_protocol = "\x08troupe/1";
constexpr std::string_view http_protocol = "\x08http/1.1";

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

// `wanted` points at one of the protocols above. A client that names protocols, but not ours, is
// no client of ours.
int select_protocol(SSL*, const unsigned char** chosen, unsigned char* chosen_size,
                    const unsigned char* offered, unsigned offered_size, void* wanted) {
  const auto& ours = *static_cast<const std::string_view*>(wanted);
  unsigned char* match = nullptr;
  if (::SSL_select_next_proto(&match, chosen_size, bytes_of(ours),
                              static_cast<unsigned>(ours.size()), offered,
                              offered_size) != OPENSSL_NPN_NEGOTIATED) {
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  }
  *chosen = match;
  return SSL_TLSEXT_ERR_OK;
}

void select_on_server(SSL_CTX* context, const std::string_view& protocol) {
  ::SSL_CTX_set_alpn_select_cb(context, &select_protocol,
                               const_cast<std::string_view*>(&protocol));  // Read only.
}

// What every context has. No tickets and no cache: connections live long, and a resumed session
// would outlive a certificate.
bool harden(SSL_CTX* context, int version_min) {
  ::SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  ::SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
                                     SSL_OP_NO_COMPRESSION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  // No automatic chain: the other side has the authority's certificate, or it would not trust it.
  ::SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
  return ::SSL_CTX_set_num_tickets(context, 0) == 1 &&
         ::SSL_CTX_set_min_proto_version(context, version_min) == 1 &&
         ::SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
         ::SSL_CTX_set_ciphersuites(
             context,
             "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") == 1 &&
         ::SSL_CTX_set1_groups_list(context, "X25519:P-256") == 1;
}

struct Parts {
  CertificatePtr authority;
  CertificatePtr certificate;
  KeyPtr key;
};

Result<ContextPtr> make_context(const SSL_METHOD* method, const Parts& parts) {
  ContextPtr context{::SSL_CTX_new(method)};
  if (!context || !harden(context.get(), TLS1_3_VERSION)) {
    return openssl_error(Code::internal, "make a TLS context");
  }
  X509_STORE* trusted = ::SSL_CTX_get_cert_store(context.get());
  const bool done = ::X509_STORE_add_cert(trusted, parts.authority.get()) == 1 &&
                    ::X509_STORE_set_flags(trusted, X509_V_FLAG_X509_STRICT) == 1 &&
                    ::SSL_CTX_use_certificate(context.get(), parts.certificate.get()) == 1 &&
                    ::SSL_CTX_use_PrivateKey(context.get(), parts.key.get()) == 1 &&
                    ::SSL_CTX_set_alpn_protos(context.get(), bytes_of(cluster_protocol),
                                              static_cast<unsigned>(cluster_protocol.size())) == 0;
  if (!done) return openssl_error(Code::internal, "set up a TLS context");
  select_on_server(context.get(), cluster_protocol);
  ::SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  ::SSL_CTX_set_verify_depth(context.get(), 0);  // The authority signs leaves, and leaves only.
  return context;
}

// Whether the authority signed it; its dates are checked in every handshake.
Status check_signed(const Parts& parts) {
  EVP_PKEY* key = ::X509_get0_pubkey(parts.authority.get());
  if (::X509_check_ca(parts.authority.get()) != 1 || key == nullptr) {
    return openssl_error(Code::denied, "the authority's certificate is not of an authority");
  }
  if (::X509_check_issued(parts.authority.get(), parts.certificate.get()) != X509_V_OK ||
      ::X509_verify(parts.certificate.get(), key) != 1) {
    return openssl_error(Code::denied, "the certificate is not of this cluster's authority");
  }
  return ok();
}

WallTime expiry_of(const X509* certificate) {
  std::tm parts{};
  if (::ASN1_TIME_to_tm(::X509_get0_notAfter(certificate), &parts) != 1) return WallTime{};
  const auto day = std::chrono::sys_days{std::chrono::year{parts.tm_year + 1900} /
                                         (parts.tm_mon + 1) / parts.tm_mday};
  return WallTime{day} + std::chrono::hours{parts.tm_hour} + std::chrono::minutes{parts.tm_min} +
         std::chrono::seconds{parts.tm_sec};
}

}  // namespace

struct Credentials::Impl {
  PeerIdentity self;
  WallTime expires;
  ContextPtr server;
  ContextPtr client;
};

Credentials::Credentials(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Credentials::~Credentials() = default;

Result<std::unique_ptr<Credentials>> Credentials::load(const CredentialsPem& pem) {
  Parts parts;
  TROUPE_TRY(parts.authority, read_certificate(pem.authority_pem, "the authority's certificate"));
  TROUPE_TRY(parts.certificate, read_certificate(pem.certificate_pem, "the own certificate"));
  TROUPE_TRY(parts.key, read_key(pem.key_pem, "the own private key"));
  if (::X509_check_private_key(parts.certificate.get(), parts.key.get()) != 1) {
    return openssl_error(Code::data_loss, "the private key is not the certificate's");
  }
  TROUPE_CHECK(check_signed(parts));
  auto impl = std::make_unique<Impl>();
  TROUPE_TRY(impl->self, identity_in(parts.certificate.get()));
  TROUPE_TRY(const std::string cluster, cluster_in(parts.authority.get()));
  if (impl->self.cluster != cluster) {
    return error(Code::denied, fmt::format("the certificate is of cluster {}, its authority of {}",
                                           impl->self.cluster, cluster));
  }
  impl->expires = expiry_of(parts.certificate.get());
  TROUPE_TRY(impl->server, make_context(::TLS_server_method(), parts));
  TROUPE_TRY(impl->client, make_context(::TLS_client_method(), parts));
  return std::unique_ptr<Credentials>{new Credentials{std::move(impl)}};
}

ssl_ctx_st* Credentials::server_context() {
  return impl_->server.get();
}
ssl_ctx_st* Credentials::client_context() {
  return impl_->client.get();
}
const PeerIdentity& Credentials::self() const {
  return impl_->self;
}
WallTime Credentials::expires() const {
  return impl_->expires;
}

Result<transport::PeerIdentity> Credentials::identify(const x509_st* leaf) const {
  if (leaf == nullptr) return error(Code::denied, "the peer showed no certificate");
  TROUPE_TRY(PeerIdentity peer, identity_in(leaf));
  if (peer.cluster != impl_->self.cluster) {
    return error(Code::denied,
                 fmt::format("{} {} is of cluster {}, not of {}", role_name(peer.role), peer.name,
                             peer.cluster, impl_->self.cluster));
  }
  return peer;
}

bool DeferredCredentials::load() {
  if (loaded_) return true;
  auto loaded = security::Credentials::load(pem_);
  if (!loaded) {
    log::error("credentials_unusable", {{"why", loaded.error()}});
    return false;
  }
  loaded_ = std::move(*loaded);
  pem_ = {};
  return true;
}

ssl_ctx_st* DeferredCredentials::server_context() {
  return load() ? loaded_->server_context() : nullptr;
}
ssl_ctx_st* DeferredCredentials::client_context() {
  return load() ? loaded_->client_context() : nullptr;
}
Result<transport::PeerIdentity> DeferredCredentials::identify(const x509_st* leaf) const {
  if (!loaded_) return error(Code::internal, "a peer is identified before there are credentials");
  return loaded_->identify(leaf);
}

Result<CredentialsPem> read_credentials(const fs::path& directory) {
  CredentialsPem pem;
  TROUPE_TRY(pem.authority_pem, read_public_file(directory / "authority.pem"));
  TROUPE_TRY(pem.certificate_pem, read_public_file(directory / "identity.pem"));
  TROUPE_TRY(pem.key_pem, read_private_file(directory / "identity.key"));
  return pem;
}

Status save_credentials(const fs::path& directory, const CredentialsPem& pem) {
  TROUPE_CHECK(make_private_directory(directory));
  TROUPE_CHECK(write_private_file(directory / "authority.pem", pem.authority_pem));
  TROUPE_CHECK(write_private_file(directory / "identity.key", pem.key_pem));
  return write_private_file(directory / "identity.pem", pem.certificate_pem);
}

Result<std::shared_ptr<ssl_ctx_st>> make_https_context(std::string_view certificate_chain_pem,
                                                       std::string_view key_pem) {
  const BioPtr chain{::BIO_new_mem_buf(certificate_chain_pem.data(),
                                       static_cast<int>(certificate_chain_pem.size()))};
  TROUPE_TRY(const CertificatePtr leaf,
             read_certificate(certificate_chain_pem, "the HTTPS certificate"));
  TROUPE_TRY(const KeyPtr key, read_key(key_pem, "the HTTPS private key"));
  if (::X509_check_private_key(leaf.get(), key.get()) != 1) {
    return openssl_error(Code::data_loss, "the HTTPS private key is not the certificate's");
  }
  ContextPtr context{::SSL_CTX_new(::TLS_server_method())};
  const bool done = context && harden(context.get(), TLS1_2_VERSION) &&
                    ::SSL_CTX_set_cipher_list(context.get(), "ECDHE+AESGCM:ECDHE+CHACHA20") == 1 &&
                    ::SSL_CTX_use_certificate(context.get(), leaf.get()) == 1 &&
                    ::SSL_CTX_use_PrivateKey(context.get(), key.get()) == 1;
  if (!done) return openssl_error(Code::internal, "make an HTTPS context");
  CertificatePtr skipped{::PEM_read_bio_X509(chain.get(), nullptr, nullptr, nullptr)};  // The leaf.
  while (CertificatePtr issuer{::PEM_read_bio_X509(chain.get(), nullptr, nullptr, nullptr)}) {
    if (::SSL_CTX_add1_chain_cert(context.get(), issuer.get()) != 1) {
      return openssl_error(Code::data_loss, "add to the HTTPS certificate's chain");
    }
  }
  ::ERR_clear_error();  // The end of the text is what stopped the loop.
  select_on_server(context.get(), http_protocol);
  return std::shared_ptr<ssl_ctx_st>{context.release(), &::SSL_CTX_free};
}

}  // namespace troupe::security
