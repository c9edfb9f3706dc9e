// An object's way between two nodes, beside a bare pair of OpenSSL on the same link. Each mode is
// one process, started by transfer.sh in a network namespace of its own:
//   bench_transfer identities FOLDER IP...          makes an authority and an identity for each IP
//   bench_transfer source FOLDER IP MIB             a worker with an object; ends when stdin does
//   bench_transfer pull FOLDER IP ROUNDS            pulls it over and over; prints JSON rows
//   bench_transfer tls-source FOLDER IP MIB ROUNDS  bare TLS 1.3: sends on each connection
//   bench_transfer tls-pull FOLDER IP ROUNDS        and receives
//   bench_transfer floor                            what a core does apart from the network
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <thread>

#include "base/log.h"
#include "object_store/segment.h"
#include "object_store/transfer.h"
#include "security/authority.h"
#include "security/credentials.h"
#include "transport/real_environment.h"
#include "transport/router.h"
#include "worker/posix_launcher.h"
#include "worker/worker.h"

namespace troupe {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
using transport::Message;
using transport::Method;
using transport::Peer;

constexpr uint16_t worker_port = 7777;
constexpr uint16_t tls_port = 7778;
constexpr size_t tls_write_bytes = 1 << 20;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"objects/{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
  std::fflush(stdout);
}

double processor_seconds() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](timeval time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// Not to be compressed, and cheap to make.
void fill_with_noise(std::span<uint8_t> bytes) {
  SeededRandom random{1};
  for (uint64_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = random.next();
    std::memcpy(bytes.data() + i, &word, 8);
  }
}

int make_identities(const fs::path& folder, const std::vector<std::string>& addresses) {
  SystemRandom random;
  const auto now = WallTime{std::chrono::system_clock::now().time_since_epoch()};
  const auto authority = security::Authority::create(ClusterId::random(random), now).value();
  for (const std::string& address : addresses) {
    security::IdentitySpec spec;
    spec.role = security::Role::node;
    spec.name = NodeId::random(random).to_string();
    spec.ip_addresses = {address};
    const auto issued = authority.issue(spec, now).value();
    security::save_credentials(
        folder / address, {authority.certificate_pem(), issued.certificate_pem, issued.key_pem})
        .value();
  }
  return 0;
}

// A worker, and a process of its node beside it in the same loop.
class Node {
 public:
  Node(const fs::path& folder, const std::string& address, uint64_t store_bytes)
      : credentials_(
            security::Credentials::load(security::read_credentials(folder / address).value())
                .value()) {
    real_.set_credentials(credentials_.get());
    options_.node = NodeId::parse(credentials_->self().name).value();
    options_.name = address;
    options_.heads = {{folder / (address + "-no-head.sock"), "", 0}};
    options_.worker_socket = folder / (address + ".sock");
    options_.socket_folder = folder;
    options_.log_folder = folder;
    options_.host = address;
    options_.port = worker_port;
    options_.store_capacity_bytes = store_bytes;
    options_.reconnect_first = options_.reconnect_longest = 3600s;  // There is no head.
    worker_.emplace(real_.environment(), launcher_, options_);
  }

  void run(std::function<Async<void>(Node&)> body) {
    spawn(scope_, run_all(std::move(body)));
    real_.io().run();
  }
  Async<std::shared_ptr<Peer>> connect(JobId job) {
    const auto environment = real_.environment();
    const Instant deadline = environment.clock.now() + 5s;
    transport::Endpoint endpoint;
    endpoint.unix_path = options_.worker_socket;
    auto connection = co_await environment.network.connect(endpoint, deadline);
    protocol::Hello self;
    self.kind = "driver";
    self.address.process = ProcessId::random(environment.random);
    self.job = job;
    auto peer = co_await Peer::start(clients_, environment, std::move(connection).value(), service_,
                                     self, deadline);
    co_return std::move(peer).value();
  }
  transport::RealEnvironment& real() { return real_; }
  protocol::ProcessAddress address() const { return worker_->address(); }

 private:
  Async<void> run_all(std::function<Async<void>(Node&)> body) {
    (co_await worker_->start()).value();
    co_await body(*this);
    co_await clients_.stop();
    co_await worker_->stop();
    real_.io().stop();
  }

  std::unique_ptr<security::Credentials> credentials_;
  transport::RealEnvironment real_;
  Scope scope_{real_.io().get_executor()};
  Scope clients_{real_.io().get_executor()};
  Scope launched_{real_.io().get_executor()};
  worker::PosixLauncher launcher_{real_.io(), launched_, "/bin/false"};
  worker::WorkerOptions options_;
  transport::Router service_;
  std::optional<worker::Worker> worker_;
};

int run_source(const fs::path& folder, const std::string& address, uint64_t bytes) {
  Node node{folder, address, bytes + (64 << 20)};
  node.run([&](Node& self) -> Async<void> {
    auto environment = self.real().environment();
    const JobId job = JobId::random(environment.random);
    const ObjectId object = ObjectId::random(environment.random);
    auto peer = co_await self.connect(job);
    auto segment = object_store::ProducerSegment::create(bytes + (64 << 20)).value();
    Message attach;
    attach.descriptors.emplace_back(::fcntl(segment.fd(), F_DUPFD_CLOEXEC, 0));
    (co_await peer->call(Method::attach_segment, std::move(attach), 5s)).value();
    protocol::ReserveExtent reserve{bytes};
    const auto extent =
        (co_await transport::call<protocol::Block>(peer, Method::reserve_extent, reserve, 5s))
            .value();
    fill_with_noise(segment.prepare(extent.offset_bytes, bytes).value());
    protocol::SealBlocks seal;
    seal.segment = extent.segment;
    seal.items.push_back({object, {}, extent.offset_bytes, bytes, false});
    (co_await transport::call<protocol::Empty>(peer, Method::seal_blocks, seal, 5s)).value();
    const auto place = folder / "object";
    std::ofstream{place.string() + ".part"}
        << job.to_string() << ' ' << object.to_string() << ' ' << self.address().node.to_string()
        << ' ' << self.address().process.to_string() << ' ' << address << ' ' << bytes << '\n';
    fs::rename(place.string() + ".part", place);
    auto wait = [] {
      std::string line;
      while (std::getline(std::cin, line)) {
      }
      return true;
    };
    co_await transport::run_blocking(environment, wait);
    fmt::print(stderr, "source: {:.2f} s of processor time\n", processor_seconds());
  });
  return 0;
}

int run_pull(const fs::path& folder, const std::string& address, int rounds) {
  std::ifstream in{folder / "object"};
  std::string job_text, object_text, node_text, process_text, host;
  uint64_t bytes = 0;
  in >> job_text >> object_text >> node_text >> process_text >> host >> bytes;
  Node node{folder, address, bytes + (64 << 20)};
  node.run([&](Node& self) -> Async<void> {
    const JobId job = JobId::parse(job_text).value();
    protocol::GetBlock request;
    request.object = ObjectId::parse(object_text).value();
    request.source.node = NodeId::parse(node_text).value();
    request.source.process = ProcessId::parse(process_text).value();
    request.source.host = host;
    request.source.port = worker_port;
    auto peer = co_await self.connect(job);
    std::vector<double> times;
    double processor = 0;
    for (int i = 0; i <= rounds; ++i) {
      const double before = processor_seconds();
      const auto start = std::chrono::steady_clock::now();
      Message message{protocol::encode(request), {}};
      auto got = co_await peer->call(Method::get_block, std::move(message), 60s);
      if (!got) {
        fmt::print(stderr, "{}\n", got.error().to_string());
        std::exit(1);
      }
      const auto took = std::chrono::steady_clock::now() - start;
      protocol::ReleaseBlocks release{{request.object}, {}};
      (co_await transport::call<protocol::Empty>(peer, Method::release_blocks, release, 5s))
          .value();
      const double seconds = std::chrono::duration<double>(took).count();
      const double gigabytes = static_cast<double>(bytes) / 1e9;
      if (i == 0) {
        row("pull_cold", gigabytes / seconds, "GB/s");
        continue;
      }
      times.push_back(gigabytes / seconds);
      processor += (processor_seconds() - before) / gigabytes;
    }
    row("pull", median(times), "GB/s");
    row("pull_receiver_cpu", processor / rounds, "s/GB");
  });
  return 0;
}

// --- The bare pair

sockaddr_in address_of(const std::string& ip) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(tls_port);
  ::inet_pton(AF_INET, ip.c_str(), &address.sin_addr);
  return address;
}

int run_tls_source(const fs::path& folder, const std::string& ip, uint64_t bytes, int rounds) {
  auto credentials =
      security::Credentials::load(security::read_credentials(folder / ip).value()).value();
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const sockaddr_in address = address_of(ip);
  if (::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return 1;
  ::listen(listener, 8);
  Bytes object(bytes);
  fill_with_noise(object);
  std::ofstream{folder / "tls"} << bytes << '\n';
  for (int i = 0; i <= rounds; ++i) {
    const int socket = ::accept(listener, nullptr, nullptr);
    SSL* ssl = SSL_new(credentials->server_context());
    SSL_set_fd(ssl, socket);
    if (SSL_accept(ssl) != 1) return 1;
    for (size_t from = 0; from < object.size(); from += tls_write_bytes) {
      const size_t size = std::min(tls_write_bytes, object.size() - from);
      if (SSL_write(ssl, object.data() + from, static_cast<int>(size)) <= 0) return 1;
    }
    char done = 0;
    (void)SSL_read(ssl, &done, 1);
    SSL_free(ssl);
    ::close(socket);
  }
  return 0;
}

int run_tls_pull(const fs::path& folder, const std::string& own, const std::string& ip,
                 int rounds) {
  auto credentials =
      security::Credentials::load(security::read_credentials(folder / own).value()).value();
  uint64_t bytes = 0;
  std::ifstream{folder / "tls"} >> bytes;
  Bytes target(bytes);
  std::vector<double> rates;
  double processor = 0;
  for (int i = 0; i <= rounds; ++i) {
    const double before = processor_seconds();
    const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = address_of(ip);
    if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      return 1;
    }
    SSL* ssl = SSL_new(credentials->client_context());
    SSL_set_fd(ssl, socket);
    if (SSL_connect(ssl) != 1) return 1;
    const double seconds = seconds_of([&] {
      for (size_t have = 0; have < bytes;) {
        size_t count = 0;
        if (SSL_read_ex(ssl, target.data() + have, bytes - have, &count) != 1) std::exit(1);
        have += count;
      }
    });
    (void)SSL_write(ssl, "x", 1);
    SSL_free(ssl);
    ::close(socket);
    if (i == 0) continue;
    rates.push_back(static_cast<double>(bytes) / 1e9 / seconds);
    processor += (processor_seconds() - before) / (static_cast<double>(bytes) / 1e9);
  }
  row("bare_tls", median(rates), "GB/s");
  row("bare_tls_receiver_cpu", processor / rounds, "s/GB");
  return 0;
}

// --- The floor: one core, no network

double cipher_rate(bool encrypts, Bytes& buffer) {
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();
  const Bytes key(16, 1);
  const Bytes nonce(12, 2);
  constexpr int record = 16 << 10;
  const double seconds = seconds_of([&] {
    for (size_t from = 0; from + record <= buffer.size(); from += record) {
      int size = 0;
      EVP_CipherInit_ex(context, EVP_aes_128_gcm(), nullptr, key.data(), nonce.data(),
                        encrypts ? 1 : 0);
      EVP_CipherUpdate(context, buffer.data() + from, &size, buffer.data() + from, record);
    }
  });
  EVP_CIPHER_CTX_free(context);
  return static_cast<double>(buffer.size()) / 1e9 / seconds;
}

int run_floor() {
  Bytes first(256 << 20, 1);
  Bytes second(256 << 20, 2);
  const double gigabytes = static_cast<double>(first.size()) / 1e9;
  const auto rate = [&](const std::function<void()>& work) {
    std::vector<double> rates;
    for (int i = 0; i < 5; ++i) rates.push_back(gigabytes / seconds_of(work));
    return median(rates);
  };
  std::vector<double> sealed, opened;
  for (int i = 0; i < 5; ++i) {
    sealed.push_back(cipher_rate(true, first));
    opened.push_back(cipher_rate(false, first));
  }
  row("floor_aes_128_gcm_seal", median(sealed), "GB/s");
  row("floor_aes_128_gcm_open", median(opened), "GB/s");
  row("floor_copy", rate([&] { std::memcpy(second.data(), first.data(), first.size()); }), "GB/s");
  volatile uint64_t sum = 0;
  row("floor_checksum", rate([&] { sum = sum + object_store::chunk_checksum(first); }), "GB/s");
  std::vector<double> touched;
  for (int i = 0; i < 3; ++i) {
    auto segment = object_store::ProducerSegment::create(first.size()).value();
    touched.push_back(gigabytes /
                      seconds_of([&] { (void)segment.prepare(0, first.size()).value(); }));
  }
  row("floor_first_touch", median(touched), "GB/s");
  return 0;
}

int run(const std::vector<std::string>& arguments) {
  const std::string mode = arguments.empty() ? "" : arguments[0];
  const auto number = [&](size_t i) { return std::stoi(arguments.at(i)); };
  if (mode == "floor") return run_floor();
  const fs::path folder = arguments.at(1);
  const uint64_t mib = 1 << 20;
  if (mode == "identities")
    return make_identities(folder, {arguments.begin() + 2, arguments.end()});
  if (mode == "source")
    return run_source(folder, arguments.at(2), mib * static_cast<uint64_t>(number(3)));
  if (mode == "pull") return run_pull(folder, arguments.at(2), number(3));
  if (mode == "tls-source") {
    return run_tls_source(folder, arguments.at(2), mib * static_cast<uint64_t>(number(3)),
                          number(4));
  }
  if (mode == "tls-pull") return run_tls_pull(folder, arguments.at(2), arguments.at(3), number(4));
  fmt::print(stderr, "see the head of bench_transfer.cc, or run transfer.sh\n");
  return 2;
}

}  // namespace
}  // namespace troupe

int main(int argc, char** argv) {
  ::signal(SIGPIPE, SIG_IGN);
  if (std::getenv("TROUPE_LOG") != nullptr) {
    troupe::log::start("bench", troupe::log::Level::debug);
  }
  return troupe::run({argv + 1, argv + argc});
}
