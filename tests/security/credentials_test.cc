// Handshakes in memory: who is let in, and everyone who is not.
#include "security/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <array>

#include "tests/security/security_fixture.h"

namespace troupe::security {
namespace {

using testing::HasSubstr;

template <auto free_function>
struct Freer {
  template <class T>
  void operator()(T* object) const {
    free_function(object);
  }
};
using SslPtr = std::unique_ptr<SSL, Freer<&SSL_free>>;
using ContextPtr = std::unique_ptr<SSL_CTX, Freer<&SSL_CTX_free>>;
using X509Ptr = std::unique_ptr<X509, Freer<&X509_free>>;

// Two ends joined by memory, as two processes are by a connection.
class Connection {
 public:
  Connection(SSL_CTX* client, SSL_CTX* server)
      : client_(SSL_new(client)), server_(SSL_new(server)) {
    BIO *client_side = nullptr, *server_side = nullptr;
    BIO_new_bio_pair(&client_side, 0, &server_side, 0);
    SSL_set_bio(client_.get(), client_side, client_side);
    SSL_set_bio(server_.get(), server_side, server_side);
    SSL_set_connect_state(client_.get());
    SSL_set_accept_state(server_.get());
  }

  // Handshakes, and sends a byte each way: in TLS 1.3 that is when a client hears of a refusal.
  bool works() {
    ERR_clear_error();
    for (int turn = 0; turn < 20; ++turn) {
      const bool client_done = advance(client_.get()), server_done = advance(server_.get());
      if (client_done && server_done)
        return sends_byte(client_.get(), server_.get()) && sends_byte(server_.get(), client_.get());
    }
    return false;
  }
  // Why the server refused the client's certificate, or the reverse; "ok" if it did not.
  std::string server_verdict() const { return verdict(server_.get()); }
  std::string client_verdict() const { return verdict(client_.get()); }

  SSL* client() const { return client_.get(); }
  SSL* server() const { return server_.get(); }

 private:
  static bool advance(SSL* end) { return SSL_do_handshake(end) == 1; }
  static bool sends_byte(SSL* from, SSL* to) {
    char byte = 0;
    return SSL_write(from, "x", 1) == 1 && SSL_read(to, &byte, 1) == 1 && byte == 'x';
  }
  static std::string verdict(const SSL* end) {
    return X509_verify_cert_error_string(SSL_get_verify_result(end));
  }

  SslPtr client_, server_;
};

std::unique_ptr<Credentials> credentials(const Authority& authority, Role role,
                                         std::string name = "n", WallTime now = real_now()) {
  return Credentials::load(issue_pem(authority, role, std::move(name), now)).value();
}

TEST(Credentials, TwoMembersOfAClusterConnectAndKnowEachOther) {
  const Authority authority = make_authority();
  const auto head = credentials(authority, Role::head, "head-1");
  const auto node = credentials(authority, Role::node, "node-7");
  Connection connection{node->client_context(), head->server_context()};
  ASSERT_TRUE(connection.works());
  EXPECT_STREQ(SSL_get_version(connection.client()), "TLSv1.3");
  EXPECT_STREQ(SSL_get_cipher_name(connection.client()), "TLS_AES_128_GCM_SHA256");

  const auto seen_by_head = head->identify(SSL_get0_peer_certificate(connection.server())).value();
  EXPECT_EQ(seen_by_head.role, Role::node);
  EXPECT_EQ(seen_by_head.name, "node-7");
  EXPECT_EQ(seen_by_head.cluster, cluster_id(1).to_string());
  EXPECT_FALSE(seen_by_head.local);
  const auto seen_by_node = node->identify(SSL_get0_peer_certificate(connection.client())).value();
  EXPECT_EQ(seen_by_node.role, Role::head);
  EXPECT_EQ(seen_by_node.name, "head-1");

  const unsigned char* protocol = nullptr;
  unsigned size = 0;
  SSL_get0_alpn_selected(connection.server(), &protocol, &size);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(protocol), size), "troupe/1");
}

TEST(Credentials, OnlyAnEtcdIsNamedAsOne) {
  const Authority authority = make_authority();
  for (const Role role :
       {Role::head, Role::node, Role::gateway, Role::client, Role::admin, Role::etcd}) {
    const std::string pem = issue_pem(authority, role, "n").certificate_pem;
    BIO* bio = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
    const X509Ptr leaf{PEM_read_bio_X509(bio, nullptr, nullptr, nullptr)};
    BIO_free(bio);
    const bool named =
        X509_check_host(leaf.get(), etcd_peer_name.data(), etcd_peer_name.size(), 0, nullptr) == 1;
    EXPECT_EQ(named, role == Role::etcd) << role_name(role);
    for (const char* name : {"peer.etcd.troupe.internal", "Peer.ETCD.troupe.internal"}) {
      const auto refused =
          authority.issue({.role = role, .name = "n", .dns_names = {name}}, real_now());
      ASSERT_FALSE(refused) << name;
      EXPECT_EQ(refused.error().code(), Code::invalid);
    }
  }
}

TEST(Credentials, EachRoleServesAndCalls) {
  const Authority authority = make_authority();
  for (const Role role :
       {Role::head, Role::node, Role::gateway, Role::client, Role::admin, Role::etcd}) {
    const auto one = credentials(authority, role);
    EXPECT_EQ(one->self().role, role);
    Connection connection{one->client_context(), one->server_context()};
    EXPECT_TRUE(connection.works()) << role_name(role);
  }
}

TEST(Credentials, AClientOfAnotherAuthorityIsRefused) {
  const Authority ours = make_authority(1), theirs = make_authority(2);
  CredentialsPem stranger = issue_pem(theirs, Role::admin, "eve");
  const auto head = credentials(ours, Role::head);
  const auto eve = Credentials::load(stranger).value();
  // The stranger itself trusts everyone, so that only the server's check is on trial.
  SSL_CTX_set_verify(eve->client_context(), SSL_VERIFY_NONE, nullptr);
  Connection connection{eve->client_context(), head->server_context()};
  EXPECT_FALSE(connection.works());
  EXPECT_EQ(connection.server_verdict(), "unable to get local issuer certificate");
  // Showing its own authority along with itself does not help it.
  SSL_CTX_clear_mode(eve->client_context(), SSL_MODE_NO_AUTO_CHAIN);
  EXPECT_FALSE(Connection(eve->client_context(), head->server_context()).works());
}

TEST(Credentials, AServerOfAnotherAuthorityIsRefused) {
  const Authority ours = make_authority(1), theirs = make_authority(1);  // Even of the same id.
  const auto node = credentials(ours, Role::node);
  const auto impostor = credentials(theirs, Role::head);
  SSL_CTX_set_verify(impostor->server_context(), SSL_VERIFY_NONE, nullptr);
  Connection connection{node->client_context(), impostor->server_context()};
  EXPECT_FALSE(connection.works());
  EXPECT_NE(connection.client_verdict(), "ok");
}

TEST(Credentials, AnExpiredCertificateIsRefusedOnEitherSide) {
  const Authority authority =
      Authority::create(cluster_id(1), real_now() - std::chrono::hours{24 * 730}).value();
  const auto present = credentials(authority, Role::head);
  const auto expired =
      credentials(authority, Role::node, "old", real_now() - std::chrono::hours{24 * 366});
  EXPECT_LT(expired->expires(), real_now());
  Connection as_client{expired->client_context(), present->server_context()};
  EXPECT_FALSE(as_client.works());
  EXPECT_EQ(as_client.server_verdict(), "certificate has expired");
  Connection as_server{present->client_context(), expired->server_context()};
  EXPECT_FALSE(as_server.works());
  EXPECT_EQ(as_server.client_verdict(), "certificate has expired");
}

TEST(Credentials, ACertificateOfTomorrowIsRefused) {
  const Authority authority = make_authority();
  const auto head = credentials(authority, Role::head);
  const auto early =
      credentials(authority, Role::node, "early", real_now() + std::chrono::hours{24});
  Connection connection{early->client_context(), head->server_context()};
  EXPECT_FALSE(connection.works());
  EXPECT_EQ(connection.server_verdict(), "certificate is not yet valid");
}

TEST(Credentials, AClientWithoutACertificateIsRefused) {
  const Authority authority = make_authority();
  const auto head = credentials(authority, Role::head);
  const ContextPtr nobody{SSL_CTX_new(TLS_client_method())};
  Connection connection{nobody.get(), head->server_context()};
  EXPECT_FALSE(connection.works());
  EXPECT_EQ(SSL_get0_peer_certificate(connection.server()), nullptr);
  EXPECT_EQ(head->identify(SSL_get0_peer_certificate(connection.server())).error().code(),
            Code::denied);
}

TEST(Credentials, Tls12IsRefusedOnEitherSide) {
  const Authority authority = make_authority();
  const auto head = credentials(authority, Role::head);
  const auto node = credentials(authority, Role::node);
  SSL_CTX_set_min_proto_version(node->client_context(), TLS1_2_VERSION);
  SSL_CTX_set_max_proto_version(node->client_context(), TLS1_2_VERSION);
  EXPECT_FALSE(Connection(node->client_context(), head->server_context()).works());
  SSL_CTX_set_min_proto_version(node->server_context(), TLS1_2_VERSION);
  SSL_CTX_set_max_proto_version(node->server_context(), TLS1_2_VERSION);
  EXPECT_FALSE(Connection(head->client_context(), node->server_context()).works());
}

TEST(Credentials, AnotherApplicationProtocolIsRefused) {
  const Authority authority = make_authority();
  const auto head = credentials(authority, Role::head);
  const auto node = credentials(authority, Role::node);
  const std::string_view http = "\x08http/1.1";
  SSL_CTX_set_alpn_protos(node->client_context(),
                          reinterpret_cast<const unsigned char*>(http.data()),
                          static_cast<unsigned>(http.size()));
  EXPECT_FALSE(Connection(node->client_context(), head->server_context()).works());
}

TEST(Credentials, AMembersCertificateSignsNobodyElses) {
  // A node that turns its own certificate into an authority gets nobody in.
  const Authority authority = make_authority();
  const CredentialsPem node = issue_pem(authority, Role::node, "node-1");
  const CredentialsPem as_authority{node.certificate_pem, node.certificate_pem, node.key_pem};
  EXPECT_EQ(Credentials::load(as_authority).error().code(), Code::denied);
}

TEST(Credentials, AnotherClustersCertificateIsNotIdentified) {
  const Authority ours = make_authority(1), theirs = make_authority(2);
  const auto head = credentials(ours, Role::head);
  const auto stranger = credentials(theirs, Role::node);
  const Connection connection{stranger->client_context(), head->server_context()};
  const auto refused = head->identify(SSL_get_certificate(connection.client()));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::denied);
  EXPECT_THAT(refused.error().message(), HasSubstr("is of cluster"));
}

TEST(Credentials, AnAuthoritysOwnCertificateIsNobody) {
  const Authority authority = make_authority();
  const auto head = credentials(authority, Role::head);
  const std::string& pem = authority.certificate_pem();
  BIO* bio = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
  const X509Ptr certificate{PEM_read_bio_X509(bio, nullptr, nullptr, nullptr)};
  BIO_free(bio);
  EXPECT_EQ(head->identify(certificate.get()).error().code(), Code::denied);
}

TEST(Credentials, DamagedTextsAreNamedInTheError) {
  const Authority authority = make_authority();
  const CredentialsPem good = issue_pem(authority, Role::node, "n");
  const auto message_with = [&](auto change) {
    CredentialsPem pem = good;
    change(pem);
    const auto refused = Credentials::load(pem);
    EXPECT_EQ(refused.error().code(), Code::data_loss);
    return refused.error().message();
  };
  const auto spoil = [](std::string& pem) { pem[pem.size() / 2] = '!'; };
  EXPECT_THAT(message_with([&](auto& pem) { spoil(pem.authority_pem); }),
              HasSubstr("the authority's certificate is no certificate"));
  EXPECT_THAT(message_with([&](auto& pem) { spoil(pem.certificate_pem); }),
              HasSubstr("the own certificate is no certificate"));
  EXPECT_THAT(message_with([&](auto& pem) { spoil(pem.key_pem); }),
              HasSubstr("the own private key is no private key"));
  EXPECT_THAT(message_with([&](auto& pem) { pem.key_pem.clear(); }),
              HasSubstr("the own private key is no private key"));
  EXPECT_THAT(
      message_with([&](auto& pem) { pem.key_pem = issue_pem(authority, Role::node, "n").key_pem; }),
      HasSubstr("the private key is not the certificate's"));
}

TEST(Credentials, ACertificateOfAnotherAuthorityIsNotLoaded) {
  CredentialsPem pem = issue_pem(make_authority(1), Role::node, "n");
  pem.authority_pem = make_authority(1).certificate_pem();
  EXPECT_EQ(Credentials::load(pem).error().code(), Code::denied);
}

TEST(Credentials, SavedOnesAreReadBackAndTheKeyIsPrivate) {
  ScratchDirectory scratch;
  const CredentialsPem pem = issue_pem(make_authority(), Role::node, "n");
  ASSERT_TRUE(save_credentials(scratch / "tls", pem));
  ASSERT_TRUE(save_credentials(scratch / "tls", pem));  // Renewing replaces.
  EXPECT_EQ(mode_of(scratch / "tls"), 0700U);
  EXPECT_EQ(mode_of(scratch / "tls/identity.key"), 0600U);
  const CredentialsPem read = read_credentials(scratch / "tls").value();
  EXPECT_EQ(read.key_pem, pem.key_pem);
  EXPECT_TRUE(Credentials::load(read));
  std::filesystem::permissions(scratch / "tls/identity.key", std::filesystem::perms{0640});
  EXPECT_EQ(read_credentials(scratch / "tls").error().code(), Code::denied);
  EXPECT_EQ(read_credentials(scratch / "none").error().code(), Code::not_found);
}

TEST(HttpsContext, ServesClientsWithoutCertificatesFromTls12On) {
  const Authority authority = make_authority();
  const IssuedIdentity site = authority
                                  .issue({.role = Role::gateway,
                                          .name = "gateway",
                                          .dns_names = {"localhost"},
                                          .ip_addresses = {"127.0.0.1", "::1"}},
                                         real_now())
                                  .value();
  const auto server = make_https_context(site.certificate_pem, site.key_pem).value();
  for (const auto& [version, works] :
       {std::pair{TLS1_3_VERSION, true}, std::pair{TLS1_2_VERSION, true},
        std::pair{TLS1_1_VERSION, false}}) {
    const ContextPtr browser{SSL_CTX_new(TLS_client_method())};
    SSL_CTX_set_min_proto_version(browser.get(), version);
    SSL_CTX_set_max_proto_version(browser.get(), version);
    Connection connection{browser.get(), server.get()};
    EXPECT_EQ(connection.works(), works) << version;
    if (!works) continue;
    X509* shown = SSL_get0_peer_certificate(connection.client());
    ASSERT_NE(shown, nullptr);
    EXPECT_EQ(X509_check_host(shown, "localhost", 0, 0, nullptr), 1);
    EXPECT_EQ(X509_check_host(shown, "example.org", 0, 0, nullptr), 0);
    EXPECT_EQ(X509_check_ip_asc(shown, "127.0.0.1", 0), 1);
    EXPECT_EQ(X509_check_ip_asc(shown, "::1", 0), 1);
  }
}

TEST(HttpsContext, ShowsItsWholeChain) {
  const Authority authority = make_authority();
  const CredentialsPem site = issue_pem(authority, Role::gateway, "gateway");
  const auto server =
      make_https_context(site.certificate_pem + authority.certificate_pem(), site.key_pem).value();
  const ContextPtr browser{SSL_CTX_new(TLS_client_method())};
  Connection connection{browser.get(), server.get()};
  ASSERT_TRUE(connection.works());
  EXPECT_EQ(sk_X509_num(SSL_get_peer_cert_chain(connection.client())), 2);
}

TEST(HttpsContext, AForeignKeyOrADamagedTextIsRefused) {
  const Authority authority = make_authority();
  const CredentialsPem one = issue_pem(authority, Role::gateway, "a");
  const CredentialsPem other = issue_pem(authority, Role::gateway, "b");
  EXPECT_EQ(make_https_context(one.certificate_pem, other.key_pem).error().code(), Code::data_loss);
  EXPECT_EQ(make_https_context("", one.key_pem).error().code(), Code::data_loss);
  EXPECT_EQ(make_https_context(one.certificate_pem, "").error().code(), Code::data_loss);
}

}  // namespace
}  // namespace troupe::security
