// The coordinator against a real etcd.
#include <gmock/gmock.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>
#include <deque>

#include "tests/etcd/etcd_fixture.h"

namespace troupe::etcd {
namespace {

namespace asio = boost::asio;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

constexpr auto long_lease = 60s;  // Does not run out on a busy machine.
constexpr auto short_lease = 2s;

class Coordinator : public EtcdTest {
 protected:
  void SetUp() override {
    if (::access(etcd_program, X_OK) != 0) GTEST_SKIP() << etcd_program << " is not installed";
    etcd_.emplace(authority_);
    first_ = make_head("head-0");
    second_ = make_head("head-1");
    answers_again();
  }

  std::unique_ptr<EtcdCoordinator> make_head(const std::string& name,
                                             std::chrono::seconds lease_time = long_lease) {
    return make({etcd_->address()}, issue_pem(authority_, Role::head, name), lease_time);
  }
  void answers_again() {
    ASSERT_TRUE(comes_true([&] { return run(first_->read()).has_value(); }));
  }

  static LeadRecord wanted(const std::string& name, uint64_t term, int64_t revision = 0) {
    LeadRecord record;
    record.term = term;
    record.in_sync = {name, "other"};
    record.leader = name;
    record.address = name + ":7000";
    record.revision = revision;
    return record;
  }
  LeadRecord now() { return run(second_->read()).value(); }
  Code lead_refused(EtcdCoordinator& head, LeadRecord record) {
    const auto led = run(head.lead(std::move(record)));
    return led ? Code::ok : led.error().code();
  }
  bool lease_runs_out() {
    return comes_true([&] { return now().lease == 0; });
  }

  std::optional<EtcdProcess> etcd_;
  std::unique_ptr<EtcdCoordinator> first_, second_;
};

// What a server says to a client that shows `pem`, or no certificate: its answer, or why it gives
// none.
std::string ask_bare(const std::string& address, const CredentialsPem* pem) {
  asio::ssl::context context{asio::ssl::context::tls_client};
  if (pem != nullptr) {
    context.use_certificate(asio::buffer(pem->certificate_pem), asio::ssl::context::pem);
    context.use_private_key(asio::buffer(pem->key_pem), asio::ssl::context::pem);
  }
  asio::io_context io;
  asio::ssl::stream<asio::ip::tcp::socket> stream{io, context};
  const auto endpoint = transport::Endpoint::parse(address).value();
  boost::system::error_code failed;
  stream.next_layer().connect({asio::ip::make_address(endpoint.host), endpoint.port}, failed);
  stream.handshake(asio::ssl::stream_base::client, failed);
  if (failed) return failed.message();
  const std::string request = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
  asio::write(stream, asio::buffer(request), failed);
  std::string answer(4096, '\0');
  answer.resize(stream.read_some(asio::buffer(answer), failed));
  return answer.empty() ? failed.message() : answer;
}

void expect_same(const LeadRecord& a, const LeadRecord& b) {
  EXPECT_EQ(a.term, b.term);
  EXPECT_EQ(a.in_sync, b.in_sync);
  EXPECT_EQ(a.leader, b.leader);
  EXPECT_EQ(a.address, b.address);
  EXPECT_EQ(a.lease, b.lease);
  EXPECT_EQ(a.revision, b.revision);
}

TEST_F(Coordinator, HasNoRecordBeforeAnybodyLed) {
  expect_same(now(), LeadRecord{});
}

TEST_F(Coordinator, AHeadLeadsAndAllSeeIt) {
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  EXPECT_EQ(led.term, 1u);
  EXPECT_THAT(led.in_sync, ElementsAre("head-0", "other"));
  EXPECT_EQ(led.leader, "head-0");
  EXPECT_EQ(led.address, "head-0:7000");
  EXPECT_NE(led.lease, 0);
  EXPECT_NE(led.revision, 0);
  expect_same(now(), led);
  EXPECT_TRUE(run(first_->renew(led.lease)));
}

TEST_F(Coordinator, NobodyLeadsBesideALeader) {
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  const auto refused = run(second_->lead(wanted("head-1", 2, led.revision)));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::conflict);
  EXPECT_THAT(refused.error().message(), HasSubstr("head-0 at head-0:7000 leads, in term 1"));
  expect_same(now(), led);
}

TEST_F(Coordinator, ALeaseThatIsNotRenewedRunsOut) {
  first_ = make_head("head-0", short_lease);
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  ASSERT_TRUE(lease_runs_out());
  const LeadRecord left = now();
  EXPECT_EQ(left.term, 1u);
  EXPECT_EQ(left.leader, "");
  EXPECT_EQ(left.revision, led.revision);
  const LeadRecord next = run(second_->lead(wanted("head-1", 2, left.revision))).value();
  EXPECT_NE(next.lease, led.lease);
  EXPECT_EQ(run(first_->renew(led.lease)).error().code(), Code::conflict);
  EXPECT_EQ(run(first_->set_in_sync(led)).error().code(), Code::conflict);
  expect_same(now(), next);
}

TEST_F(Coordinator, ARenewedLeaseLasts) {
  first_ = make_head("head-0", short_lease);
  const Instant start = clock().now();
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  while (clock().now() < start + 2 * first_->lease_time()) {
    ASSERT_TRUE(run(first_->renew(led.lease)));
    ::poll(nullptr, 0, 100);
  }
  EXPECT_EQ(now().lease, led.lease);
}

TEST_F(Coordinator, TheLeaseOfADeadLeaderCanBeEnded) {
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  EXPECT_TRUE(run(second_->end_lease(led.lease)));
  EXPECT_TRUE(run(second_->lead(wanted("head-1", 2, led.revision))));
  EXPECT_TRUE(run(second_->end_lease(led.lease))) << "one that is over already";
  EXPECT_EQ(run(first_->renew(led.lease)).error().code(), Code::conflict);
  EXPECT_EQ(now().leader, "head-1");
}

TEST_F(Coordinator, WhoReadAnOlderRecordMayNotLead) {
  EXPECT_EQ(lead_refused(*first_, wanted("head-0", 1, 7)), Code::conflict) << "of no record";
  LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  const int64_t old = led.revision;
  led = run(first_->set_in_sync(led)).value();
  EXPECT_GT(led.revision, old);
  ASSERT_TRUE(run(first_->end_lease(led.lease)));
  EXPECT_EQ(lead_refused(*second_, wanted("head-1", 2, old)), Code::conflict);
  EXPECT_EQ(lead_refused(*second_, wanted("head-1", 2)), Code::conflict);
  EXPECT_EQ(lead_refused(*second_, wanted("head-1", 2, led.revision)), Code::ok);
}

TEST_F(Coordinator, TheLeaderRecordsWhoIsInSync) {
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  LeadRecord mine = led;
  mine.in_sync = {"head-0", "head \"1\"", "höad-2"};
  const LeadRecord set = run(first_->set_in_sync(mine)).value();
  EXPECT_EQ(set.in_sync, mine.in_sync);
  EXPECT_GT(set.revision, led.revision);
  expect_same(now(), set);
  const auto late = run(first_->set_in_sync(led));
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code(), Code::conflict);
  EXPECT_THAT(late.error().message(), HasSubstr("the record has changed"));
  mine = set;
  mine.in_sync.clear();
  EXPECT_THAT(run(first_->set_in_sync(mine)).value().in_sync, ElementsAre());
}

TEST_F(Coordinator, CallsMayOverlap) {
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  Scope scope{environment().loop};
  int done = 0;
  for (int i = 0; i < 20; ++i) {
    spawn(scope, [](EtcdCoordinator& head, int64_t lease, int& count) -> Async<void> {
      const auto renewed = co_await head.renew(lease);
      const auto read = co_await head.read();
      count += renewed && read ? 1 : 0;
    }(*first_, led.lease, done));
  }
  const auto join = [](Scope& all) -> Async<bool> {
    co_await all.join();
    co_return true;
  };
  EXPECT_TRUE(run(join(scope)));
  EXPECT_EQ(done, 20);
}

TEST_F(Coordinator, AStoppedCallUnwinds) {
  etcd_->stop();
  Scope scope{environment().loop};
  spawn(scope, [](EtcdCoordinator& head) -> Async<void> {
    (void)co_await head.read();
    ADD_FAILURE() << "it went on";
  }(*first_));
  const auto stop = [](Scope& all, TimerClock& clock) -> Async<bool> {
    co_await sleep_for(clock, 50ms);
    co_await all.stop();
    co_return true;
  };
  EXPECT_TRUE(run(stop(scope, clock())));
  etcd_->signal(SIGCONT);
}

TEST_F(Coordinator, OneSecondIsTheLeastLease) {
  const auto quick = make_head("head-0", 1s);
  const LeadRecord led = run(quick->lead(wanted("head-0", 1))).value();
  const Instant start = clock().now();
  ASSERT_TRUE(lease_runs_out());
  EXPECT_LT(clock().now() - start, 10s);
}

TEST_F(Coordinator, AnEtcdThatGrantsOtherLeasesIsRefused) {
  EtcdServerOptions slow;
  slow.election_timeout = 2000ms;
  etcd_.emplace(authority_, slow);
  first_ = make_head("head-0", short_lease);
  answers_again();
  const auto led = run(first_->lead(wanted("head-0", 1)));
  ASSERT_FALSE(led);
  EXPECT_EQ(led.error().code(), Code::invalid);
  EXPECT_THAT(led.error().message(), HasSubstr("grants a lease of 3 s, not of 2 s"));
}

TEST_F(Coordinator, AHeadOfAnotherClusterRefusesEtcd) {
  const Authority other = make_authority(2);
  const auto read = run(make({etcd_->address()}, issue_pem(other, Role::head, "head-0"))->read());
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code(), Code::denied);
  EXPECT_THAT(read.error().message(), HasSubstr("certificate verify failed"));
}

TEST_F(Coordinator, EtcdRefusesWhoHasNoCertificateOfItsAuthority) {
  const CredentialsPem ours = issue_pem(authority_, Role::head, "head-0");
  const CredentialsPem theirs = issue_pem(make_authority(2), Role::head, "head-0");
  EXPECT_THAT(ask_bare(etcd_->address(), &ours), HasSubstr("HTTP/1.1"));
  EXPECT_THAT(ask_bare(etcd_->address(), &theirs), HasSubstr("alert"));
  EXPECT_THAT(ask_bare(etcd_->address(), nullptr), HasSubstr("alert"));
}

TEST_F(Coordinator, EtcdSpeaksNoPlaintext) {
  for (const std::string& address : {etcd_->address(), etcd_->peer_address()}) {
    asio::io_context io;
    asio::ip::tcp::socket socket{io};
    const auto endpoint = transport::Endpoint::parse(address).value();
    socket.connect({asio::ip::make_address(endpoint.host), endpoint.port});
    const std::string request = "GET /health HTTP/1.0\r\n\r\n";
    asio::write(socket, asio::buffer(request));
    std::string answer(4096, '\0');
    boost::system::error_code failed;
    answer.resize(socket.read_some(asio::buffer(answer), failed));
    EXPECT_THAT(answer, Not(HasSubstr(" 200 "))) << address;
  }
}

TEST_F(Coordinator, MembersOfEtcdLetInNobodyElse) {
  const CredentialsPem member = etcd_pem(authority_);
  EXPECT_THAT(ask_bare(etcd_->peer_address(), &member), HasSubstr("HTTP/1.1"));
  for (const Role role : {Role::head, Role::node, Role::admin}) {
    const CredentialsPem other = issue_pem(authority_, role, "n");
    EXPECT_THAT(ask_bare(etcd_->peer_address(), &other), HasSubstr("alert"));
  }
}

TEST_F(Coordinator, AStoppedEtcdCostsACallItsTimeAndNoMore) {
  const LeadRecord led = run(first_->lead(wanted("head-0", 1))).value();
  etcd_->stop();
  const Instant start = clock().now();
  const auto read = run(first_->read());
  const Duration took = clock().now() - start;
  EXPECT_FALSE(read);
  EXPECT_TRUE(read.error().code() == Code::deadline_exceeded) << read.error().message();
  EXPECT_GE(took, 900ms);
  EXPECT_LT(took, 5s);
  EXPECT_FALSE(run(first_->renew(led.lease)));
  EXPECT_EQ(lead_refused(*second_, wanted("head-1", 2, led.revision)), Code::deadline_exceeded);
  etcd_->signal(SIGCONT);
  answers_again();
  EXPECT_EQ(now().revision, led.revision);
}

TEST_F(Coordinator, TheRecordOutlivesEtcd) {
  const LeadRecord led = run(first_->lead(wanted("head-0", 3))).value();
  etcd_->kill();
  const auto read = run(first_->read());
  EXPECT_FALSE(read);
  EXPECT_EQ(read.error().code(), Code::unavailable);
  EXPECT_THAT(read.error().message(), HasSubstr("Connection refused"));
  etcd_->start();
  answers_again();
  const LeadRecord kept = now();
  EXPECT_EQ(kept.term, 3u);
  EXPECT_EQ(kept.in_sync, led.in_sync);
  EXPECT_EQ(kept.revision, led.revision);
}

TEST_F(Coordinator, ADeadMemberIsPassedOver) {
  const auto head =
      make({free_address(), etcd_->address()}, issue_pem(authority_, Role::head, "h"));
  EXPECT_TRUE(run(head->read()));
  EXPECT_TRUE(run(head->lead(wanted("head-0", 1))));
}

TEST_F(Coordinator, AMemberMayHaveAName) {
  const auto port = transport::Endpoint::parse(etcd_->address()).value().port;
  const auto head =
      make({fmt::format("localhost:{}", port)}, issue_pem(authority_, Role::head, "h"));
  EXPECT_TRUE(run(head->read()));
}

TEST_F(Coordinator, OfThreeMembersOneMayStop) {
  std::vector<EtcdMember> members;
  for (const char* name : {"etcd-0", "etcd-1", "etcd-2"}) members.push_back({name, free_address()});
  std::deque<EtcdProcess> etcds;
  std::vector<std::string> addresses;
  for (const EtcdMember& self : members) {
    EtcdServerOptions options;
    options.self = self;
    for (const EtcdMember& other : members) {
      if (other.name != self.name) options.others.push_back(other);
    }
    etcds.emplace_back(authority_, options);
    addresses.push_back(etcds.back().address());
  }
  const auto head = make(addresses, issue_pem(authority_, Role::head, "head-0"), long_lease);
  ASSERT_TRUE(comes_true([&] { return run(head->read()).has_value(); }));
  LeadRecord record = wanted("head-0", 1);
  for (EtcdProcess& stopped : etcds) {
    stopped.stop();
    // Another may have to become etcd's leader first; whether a lead that had no answer was taken,
    // only reading tells.
    ASSERT_TRUE(comes_true([&] {
      const auto led = run(head->lead(record));
      const auto found = run(head->read());
      return led.has_value() || (found && found->lease != 0);
    }));
    ASSERT_TRUE(comes_true([&] {
      const auto found = run(head->read());
      return found && run(head->renew(found->lease)).has_value();
    }));
    stopped.signal(SIGCONT);
    ASSERT_TRUE(comes_true([&] {
      const auto found = run(head->read());
      if (!found || !run(head->end_lease(found->lease))) return false;
      record.revision = found->revision;
      return true;
    }));
    ++record.term;
  }
}

}  // namespace
}  // namespace troupe::etcd
