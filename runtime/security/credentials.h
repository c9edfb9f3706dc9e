// A process's own certificate at work: TLS contexts for the cluster, and for HTTPS.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"
#include "security/identity.h"
#include "transport/credentials.h"

namespace troupe::security {

// What a process needs to be someone in a cluster.
struct CredentialsPem {
  std::string authority_pem;
  std::string certificate_pem;
  std::string key_pem;  // Secret.
};

// TLS 1.3 only, AES-128-GCM first, ALPN "troupe/1", no session tickets. Each side demands of the
// other an unexpired certificate signed by the cluster's authority. A client learns that the server
// refused it at its first read: in TLS 1.3 its own handshake ends before the server has looked.
class Credentials final : public transport::Credentials {
 public:
  // Errors: data_loss (damaged text; the key is not the certificate's), denied (the certificate is
  // not of this authority, or names no identity in its cluster).
  static Result<std::unique_ptr<Credentials>> load(const CredentialsPem& pem);
  ~Credentials() override;

  ssl_ctx_st* server_context() override;
  ssl_ctx_st* client_context() override;
  Result<transport::PeerIdentity> identify(const x509_st* leaf) const override;

  // Whom this process speaks for.
  const PeerIdentity& self() const;
  // When its certificate expires; peers refuse it from then on.
  WallTime expires() const;

 private:
  struct Impl;
  explicit Credentials(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Loaded when the first connection needs them, for that takes a millisecond (three in a process
// that has not used OpenSSL), and most processes of a node speak with that node alone. On one
// thread, the loop's.
class DeferredCredentials final : public transport::Credentials {
 public:
  explicit DeferredCredentials(CredentialsPem pem) : pem_(std::move(pem)) {}

  ssl_ctx_st* server_context() override;
  ssl_ctx_st* client_context() override;
  Result<transport::PeerIdentity> identify(const x509_st* leaf) const override;

 private:
  bool load();

  CredentialsPem pem_;  // Empty once they were loaded.
  std::unique_ptr<security::Credentials> loaded_;
};

// authority.pem, identity.pem and identity.key (0600) in a directory of mode 0700. Saving replaces
// what is there. Both block on the disk. Errors: those of private_files.h.
Result<CredentialsPem> read_credentials(const std::filesystem::path& directory);
Status save_credentials(const std::filesystem::path& directory, const CredentialsPem& pem);

// A context for the gateway's HTTPS: its certificate (and chain, leaf first) shown, none asked for.
// TLS 1.2 is allowed, with forward secrecy and AEAD ciphers only: clients here are not ours.
// Errors: data_loss (damaged text; the key is not the certificate's).
Result<std::shared_ptr<ssl_ctx_st>> make_https_context(std::string_view certificate_chain_pem,
                                                       std::string_view key_pem);

}  // namespace troupe::security
