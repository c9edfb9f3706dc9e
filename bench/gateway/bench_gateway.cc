// What the gateway adds to a request: its backend answers at once, so all that is measured is HTTP,
// JSON and the loop. A blocking client on one keep-alive connection, in a thread of its own. Then
// what it does when more is asked for than its backend can do: many such clients.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <future>
#include <mutex>
#include <string_view>
#include <thread>

#include "gateway/gateway.h"
#include "transport/real_environment.h"

namespace troupe::gateway {
namespace {

using boost::asio::ip::tcp;
namespace http = boost::beast::http;
using Time = std::chrono::steady_clock;

constexpr int warm_up = 500;
constexpr int requests = 10'000;
constexpr uint32_t stream_tokens = 100'000;
// A backend of so many requests at a time, and so long a request: 200 a second.
constexpr size_t lanes = 4;
constexpr auto service_time = std::chrono::milliseconds(20);
constexpr size_t few_clients = 2 * lanes;
constexpr size_t many_clients = 512;  // Over in_flight_max, so that some are refused.
constexpr auto overload_window = std::chrono::seconds(5);
constexpr auto refused_pause = std::chrono::milliseconds(100);
constexpr auto first_requests = std::chrono::microseconds(500'000);  // Spread over so long.

class InstantGeneration final : public Generation {
 public:
  explicit InstantGeneration(uint32_t tokens) : tokens_(tokens) {}
  Async<Result<std::optional<Chunk>>> next() override {
    Chunk chunk;
    chunk.text = " word";
    chunk.tokens = {7};
    chunk.completion_tokens = ++sent_;
    if (sent_ == tokens_) chunk.finish_reason = "length";
    co_return std::optional<Chunk>{std::move(chunk)};
  }
  const std::string& replica() const override { return name_; }

 private:
  uint32_t tokens_;
  uint32_t sent_ = 0;
  std::string name_ = "a";
};

class InstantBackend final : public Backend {
 public:
  explicit InstantBackend(const transport::Environment&) {}
  std::vector<ModelInfo> models() const override {
    ModelInfo info;
    info.name = "m";
    info.replicas_alive = info.replicas_wanted = 1;
    return {info};
  }
  Async<bool> wait_change(Instant) override { co_return false; }
  Async<Result<std::unique_ptr<Generation>>> begin(GenerateRequest request, std::set<std::string>,
                                                   std::string& tried) override {
    tried = "a";
    const bool stream = request.arguments.find("long") != std::string::npos;
    co_return std::make_unique<InstantGeneration>(stream ? stream_tokens : 1);
  }
};

// As an engine whose batch is full: who comes waits for a lane.
class BusyBackend final : public Backend {
 public:
  explicit BusyBackend(transport::Environment environment)
      : environment_(environment), changed_(environment.loop) {}
  std::vector<ModelInfo> models() const override { return InstantBackend{environment_}.models(); }
  Async<bool> wait_change(Instant) override { co_return false; }
  Async<Result<std::unique_ptr<Generation>>> begin(GenerateRequest, std::set<std::string>,
                                                   std::string& tried) override {
    tried = "a";
    while (busy_ == lanes) co_await changed_.wait();
    ++busy_;
    co_await sleep_for(environment_.clock, service_time);
    --busy_;
    changed_.pulse();
    co_return std::make_unique<InstantGeneration>(1);
  }

 private:
  transport::Environment environment_;
  Event changed_;
  size_t busy_ = 0;
};

struct Client {
  explicit Client(uint16_t p) : port(p) {
    socket.connect({boost::asio::ip::make_address("127.0.0.1"), port});
    socket.set_option(tcp::no_delay(true));
  }
  void send(const std::string& body) {
    const std::string bytes = fmt::format(
        "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\n\r\n{}", port,
        body.size(), body);
    boost::asio::write(socket, boost::asio::buffer(bytes));
  }
  http::response<http::string_body> ask(const std::string& body) {
    send(body);
    http::response<http::string_body> response;
    http::read(socket, buffer, response);
    return response;
  }
  bool round_trip(const std::string& body) { return ask(body).result() == http::status::ok; }
  // Reads a chunked answer to its end; the number of bytes.
  size_t drain() {
    std::string tail;
    size_t total = 0;
    std::vector<char> piece(256 << 10);
    while (!tail.ends_with("\r\n0\r\n\r\n")) {
      const size_t count = socket.read_some(boost::asio::buffer(piece));
      total += count;
      tail.append(piece.data(), count);
      if (tail.size() > 64) tail.erase(0, tail.size() - 64);
    }
    return total;
  }
  uint16_t port;
  boost::asio::io_context io;
  tcp::socket socket{io};
  boost::beast::flat_buffer buffer;
};

double microseconds(Time::duration value) {
  return std::chrono::duration<double, std::micro>(value).count();
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"gateway/{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
}

// False: a request failed.
bool measure(uint16_t port) {
  Client client{port};
  const std::string body = R"({"model":"m","prompt":"Say hello","max_tokens":1})";
  std::vector<double> took;
  for (int i = 0; i < warm_up + requests; ++i) {
    const auto start = Time::now();
    if (!client.round_trip(body)) return false;
    if (i >= warm_up) took.push_back(microseconds(Time::now() - start));
  }
  std::sort(took.begin(), took.end());
  row("round_trip.p50", took[took.size() / 2], "us");
  row("round_trip.p99", took[took.size() * 99 / 100], "us");
  const auto start = Time::now();
  client.send(R"({"model":"m","prompt":"long","max_tokens":100000,"stream":true})");
  (void)client.drain();
  const double seconds = microseconds(Time::now() - start) / 1e6;
  row("sse.tokens", stream_tokens / seconds, "token/s");
  return true;
}

struct Load {
  std::atomic<uint64_t> done = 0;
  std::atomic<uint64_t> refused = 0;
  std::atomic<uint64_t> failed = 0;  // Neither, or refused without a time to come back.
  std::mutex mutex;
  std::vector<double> refused_us;
};

// Each client asks again as soon as it was answered, or after a pause when it was refused.
void press(uint16_t port, size_t clients, Load& load) {
  const std::string body = R"({"model":"m","prompt":"Say hello","max_tokens":1})";
  const auto end = Time::now() + overload_window;
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < clients; ++i) {
    threads.emplace_back([&, i] {
      // Not all in the same millisecond.
      std::this_thread::sleep_for(first_requests / clients * i);
      Client client{port};
      while (Time::now() < end) {
        const auto start = Time::now();
        const auto answer = client.ask(body);
        if (answer.result() == http::status::ok) {
          load.done += Time::now() < end ? 1 : 0;
        } else if (answer.result() == http::status::too_many_requests &&
                   answer.count(http::field::retry_after) == 1) {
          ++load.refused;
          {
            const std::lock_guard lock{load.mutex};
            load.refused_us.push_back(microseconds(Time::now() - start));
          }
          std::this_thread::sleep_for(refused_pause);
        } else {
          ++load.failed;
        }
      }
    });
  }
}

bool overload(uint16_t port) {
  const double seconds = std::chrono::duration<double>(overload_window).count();
  Load peak;
  press(port, few_clients, peak);
  Load over;
  press(port, many_clients, over);
  if (peak.refused + peak.failed + over.failed > 0 || over.refused == 0) return false;
  const auto per_second = [&](uint64_t count) { return static_cast<double>(count) / seconds; };
  std::sort(over.refused_us.begin(), over.refused_us.end());
  row("overload.peak", per_second(peak.done), "requests/s");
  row("overload.offered", per_second(over.done + over.refused) / per_second(peak.done), "times");
  row("overload.goodput", per_second(over.done) / per_second(peak.done), "of the peak");
  row("overload.refused_p50", over.refused_us[over.refused_us.size() / 2], "us");
  row("overload.refused_p99", over.refused_us[over.refused_us.size() * 99 / 100], "us");
  return true;
}

Async<void> start(Gateway& gateway, std::promise<Status>& started) {
  auto status = co_await gateway.start();
  started.set_value(status);
}

Async<void> stop(Gateway& gateway) {
  co_await gateway.stop();
}

template <class Made, class Body>
int run(Body body) {
  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  Made backend{real.environment()};
  Gateway gateway{real.environment(), real.io(), backend, {}};
  std::promise<Status> started;
  spawn(scope, start(gateway, started));
  std::thread loop{[&] { real.io().run(); }};
  const Status status = started.get_future().get();
  const bool good = status && body(gateway.port());
  if (!good) fmt::print(stderr, "{}\n", status ? "a request failed" : status.error().to_string());
  boost::asio::post(real.io(), [&] { spawn(scope, stop(gateway)); });
  loop.join();
  return good ? 0 : 1;
}

}  // namespace
}  // namespace troupe::gateway

int main() {
  using namespace troupe::gateway;
  const int direct = run<InstantBackend>(measure);
  return std::max(direct, run<BusyBackend>(overload));
}
