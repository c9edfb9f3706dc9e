// What a server may do that is no etcd, or a broken one.
#include <gmock/gmock.h>
#include <openssl/ssl.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "tests/etcd/etcd_fixture.h"

namespace troupe::etcd {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using testing::HasSubstr;

constexpr auto token = asio::as_tuple(asio::use_awaitable);

// Answers each request with the next of what it was given, byte by byte, and closes after it unless
// that says how long it is.
class FakeEtcd {
 public:
  FakeEtcd(boost::asio::io_context& io, const CredentialsPem& pem)
      : credentials_(security::Credentials::load(pem).value()),
        acceptor_(io, tcp::endpoint{asio::ip::address_v4::loopback(), 0}),
        scope_(io.get_executor()) {
    ::SSL_CTX_set_alpn_select_cb(credentials_->server_context(), nullptr, nullptr);
    spawn(scope_, accept_all());
  }
  Async<bool> stop() {
    co_await scope_.stop();
    co_return true;
  }
  void refuse_certificates() {
    const auto refuse = [](int, X509_STORE_CTX*) { return 0; };
    ::SSL_CTX_set_verify(credentials_->server_context(), SSL_VERIFY_PEER, refuse);
  }
  void speak_tls_1_2() {
    ::SSL_CTX_set_min_proto_version(credentials_->server_context(), TLS1_2_VERSION);
    ::SSL_CTX_set_max_proto_version(credentials_->server_context(), TLS1_2_VERSION);
  }
  void answer(std::string bytes) { answers_.push_back(std::move(bytes)); }
  void answer_json(const std::string& body, const std::string& status = "200 OK") {
    answer(
        fmt::format("HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
                    "{}",
                    status, body.size(), body));
  }
  std::string address() const {
    return fmt::format("127.0.0.1:{}", acceptor_.local_endpoint().port());
  }
  int connections() const { return connections_; }
  const std::vector<std::string>& asked() const { return asked_; }

 private:
  Async<void> accept_all() {
    for (;;) {
      auto [failed, socket] = co_await acceptor_.async_accept(token);
      if (failed) co_return;
      ++connections_;
      spawn(scope_, serve(std::move(socket)));
    }
  }
  Async<void> serve(tcp::socket socket) {
    ::SSL_CTX_up_ref(credentials_->server_context());
    asio::ssl::context context{credentials_->server_context()};
    asio::ssl::stream<tcp::socket> stream{std::move(socket), context};
    const auto [refused] = co_await stream.async_handshake(asio::ssl::stream_base::server, token);
    if (refused) co_return;
    boost::beast::flat_buffer buffer;
    for (;;) {
      http::request<http::string_body> request;
      const auto [failed, got] = co_await http::async_read(stream, buffer, request, token);
      if (failed) co_return;
      asked_.push_back(std::string{request.target()} + " " + request.body());
      if (answers_.empty()) co_return;
      const std::string answer = answers_.front();
      answers_.erase(answers_.begin());
      const auto [unsent, sent] = co_await asio::async_write(stream, asio::buffer(answer), token);
      if (unsent || answer.find("Content-Length") == answer.npos) co_return;
    }
  }

  std::unique_ptr<security::Credentials> credentials_;
  tcp::acceptor acceptor_;
  Scope scope_;
  std::vector<std::string> answers_, asked_;
  int connections_ = 0;
};

class BrokenEtcd : public EtcdTest {
 protected:
  void SetUp() override { serve(etcd_pem(authority_)); }
  void TearDown() override { stop(); }
  void stop() {
    if (fake_) (void)run(fake_->stop());
  }
  void serve(const CredentialsPem& pem) {
    stop();
    fake_.emplace(real_.io(), pem);
    head_ = make({fake_->address()}, issue_pem(authority_, Role::head, "head-0"));
  }
  Error read_error() {
    auto read = run(head_->read());
    return read ? error(Code::ok, "it was taken") : std::move(read).error();
  }
  void expect_error(Code code, const std::string& message) {
    const Error failed = read_error();
    EXPECT_EQ(failed.code(), code) << failed.message();
    EXPECT_THAT(failed.message(), HasSubstr(message));
    EXPECT_THAT(failed.message(), HasSubstr("etcd at " + fake_->address()));
  }

  std::optional<FakeEtcd> fake_;
  std::unique_ptr<EtcdCoordinator> head_;
};

constexpr const char* empty_record =
    R"({"header":{"raft_term":"2"},"succeeded":true,"responses":[{"response_range":{}},{"response_range":{}}]})";

TEST_F(BrokenEtcd, ASoundAnswerIsTaken) {
  fake_->answer_json(empty_record);
  fake_->answer_json(empty_record);
  EXPECT_EQ(run(head_->read()).value().revision, 0);
  EXPECT_EQ(run(head_->read()).value().term, 0u);
  EXPECT_EQ(fake_->connections(), 1) << "a connection is kept";
  EXPECT_THAT(fake_->asked().at(0), HasSubstr("/v3/kv/txn {"));
}

TEST_F(BrokenEtcd, MalformedJsonIsAnError) {
  fake_->answer_json("{\"header\":");
  expect_error(Code::unavailable, "no JSON object");
  fake_->answer_json("[1]");
  expect_error(Code::unavailable, "no JSON object");
  fake_->answer_json(std::string(100'000, '['));
  expect_error(Code::unavailable, "no JSON object");
}

TEST_F(BrokenEtcd, AnswersThatLackTheirPartsAreErrors) {
  for (const char* body :
       {"{}", R"({"header":{}})", R"({"header":{},"responses":[]})",
        R"({"header":{},"responses":7})", R"({"header":1,"responses":[{},{}]})"}) {
    fake_->answer_json(body);
    EXPECT_EQ(read_error().code(), Code::unavailable) << body;
  }
}

TEST_F(BrokenEtcd, ARecordThatCannotBeReadIsDataLoss) {
  for (const char* value : {"!!!!", "AAA", "AAAA", "e30=", "eyJ0ZXJtIjotMSwiaW5fc3luYyI6W119",
                            "eyJ0ZXJtIjoxLCJpbl9zeW5jIjpbMV19"}) {
    fake_->answer_json(fmt::format(
        R"({{"header":{{}},"responses":[{{"response_range":{{}}}},{{"response_range":{{"kvs":[{{"mod_revision":"3","value":"{}"}}]}}}}]}})",
        value));
    EXPECT_EQ(read_error().code(), Code::data_loss) << value;
  }
}

TEST_F(BrokenEtcd, AnOversizedAnswerIsAnError) {
  fake_->answer_json("{\"a\":\"" + std::string(2 << 20, 'x') + "\"}");
  expect_error(Code::unavailable, "is over 1048576 bytes");
}

TEST_F(BrokenEtcd, AnAnswerThatBreaksOffIsAnError) {
  fake_->answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{\"head");
  expect_error(Code::unavailable, "closed the connection before it had answered");
  fake_->answer("");
  expect_error(Code::unavailable, "closed the connection before it had answered");
  fake_->answer("220 mail.example.org ESMTP\r\n\r\n");
  expect_error(Code::unavailable, "is not HTTP");
}

TEST_F(BrokenEtcd, WhatEtcdSaysIsPassedOn) {
  fake_->answer_json(R"({"error":"x","message":"etcdserver: no leader","code":14})",
                     "503 Service Unavailable");
  expect_error(Code::unavailable, "HTTP 503: etcdserver: no leader");
  fake_->answer_json(R"({"error":"x","message":"mvcc: database space exceeded","code":8})",
                     "429 Too Many Requests");
  expect_error(Code::exhausted, "lift the alarm");
  fake_->answer_json(R"({"error":{"grpc_code":7,"http_code":403,"message":"no"}})");
  expect_error(Code::denied, "HTTP 200: no");
}

TEST_F(BrokenEtcd, AKeptConnectionThatHasDiedIsReplaced) {
  fake_->answer_json(empty_record);
  EXPECT_TRUE(run(head_->read()));
  fake_->answer("");  // As if it had gone meanwhile.
  fake_->answer_json(empty_record);
  EXPECT_TRUE(run(head_->read()));
  EXPECT_EQ(fake_->connections(), 2);
}

TEST_F(BrokenEtcd, ALeadThatWasTakenBeforeItsAnswerWasLostIsFound) {
  fake_->answer_json(R"({"ID":"77","TTL":"2"})");
  fake_->answer("");
  fake_->answer_json(
      R"({"header":{},"responses":[{"response_range":{"kvs":[{"value":"eyJuYW1lIjoiaCJ9","lease":"77"}]}},)"
      R"({"response_range":{"kvs":[{"mod_revision":"9","value":"eyJ0ZXJtIjoxLCJpbl9zeW5jIjpbXX0="}]}}]})");
  LeadRecord wanted;
  wanted.leader = "h";
  const LeadRecord led = run(head_->lead(wanted)).value();
  EXPECT_EQ(led.lease, 77);
  EXPECT_EQ(led.revision, 9);
}

TEST_F(BrokenEtcd, ALeaseCountsAsRenewedOnlyByTheLeaderOfEtcd) {
  const auto renewed_in = [&](int term) {
    fake_->answer_json(
        fmt::format(R"({{"result":{{"header":{{"raft_term":"{}"}},"ID":"77","TTL":"2"}}}})", term));
  };
  const auto read_in = [&](int term) {
    fake_->answer_json(fmt::format(
        R"({{"header":{{"raft_term":"{}"}},"responses":[{{"response_range":{{"kvs":[{{"value":"eyJuYW1lIjoiaCJ9","lease":"77"}}]}}}},{{"response_range":{{}}}}]}})",
        term));
  };
  renewed_in(2);
  read_in(3);
  renewed_in(3);
  read_in(3);
  EXPECT_TRUE(run(head_->renew(77)));
  EXPECT_EQ(fake_->asked().size(), 4u);
}

TEST_F(BrokenEtcd, AServerThatRefusesOurCertificateSaysWhy) {
  fake_->refuse_certificates();
  for (int i = 0; i < 20; ++i) expect_error(Code::denied, "refuses this process's certificate");
}

TEST_F(BrokenEtcd, AServerOfAnOlderTlsIsRefused) {
  fake_->speak_tls_1_2();
  expect_error(Code::denied, "TLS handshake");
}

TEST_F(BrokenEtcd, AServerOfAnotherClusterIsRefused) {
  serve(etcd_pem(make_authority(2)));
  fake_->answer_json(empty_record);
  expect_error(Code::denied, "certificate verify failed");
  EXPECT_TRUE(fake_->asked().empty());
}

TEST_F(BrokenEtcd, AServerOfAnotherRoleIsRefused) {
  for (const Role role : {Role::node, Role::gateway, Role::client, Role::admin, Role::head}) {
    serve(etcd_pem(authority_, role));
    fake_->answer_json(empty_record);
    expect_error(Code::denied, "not of an etcd");
    EXPECT_TRUE(fake_->asked().empty());
  }
}

TEST_F(BrokenEtcd, WhatCannotBeAskedIsRefusedAtOnce) {
  const auto code_of = [&](EtcdOptions options) {
    const auto made = EtcdCoordinator::create(environment().loop, clock(), std::move(options));
    return made ? Code::ok : made.error().code();
  };
  EtcdOptions good;
  good.endpoints = {"127.0.0.1:1"};
  good.prefix = "/troupe/x";
  good.credentials = issue_pem(authority_, Role::head, "h");
  EXPECT_EQ(code_of(good), Code::ok);
  for (const char* endpoint : {"", "host", "unix:/x", "h:99999"}) {
    EtcdOptions bad = good;
    bad.endpoints = {endpoint};
    EXPECT_EQ(code_of(bad), Code::invalid) << endpoint;
  }
  for (const char* prefix : {"", "/", "troupe", "/troupe/"}) {
    EtcdOptions bad = good;
    bad.prefix = prefix;
    EXPECT_EQ(code_of(bad), Code::invalid) << prefix;
  }
  EtcdOptions bad = good;
  bad.endpoints.clear();
  EXPECT_EQ(code_of(bad), Code::invalid);
  bad = good;
  bad.lease_time = 0s;
  EXPECT_EQ(code_of(bad), Code::invalid);
  bad = good;
  bad.credentials.key_pem = "x";
  EXPECT_EQ(code_of(bad), Code::data_loss);
}

}  // namespace
}  // namespace troupe::etcd
