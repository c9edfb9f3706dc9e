// A real gateway on loopback over a scripted backend, and a small HTTP client in the same loop.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <deque>
#include <filesystem>
#include <functional>
#include <future>
#include <thread>

#include "gateway/gateway.h"
#include "transport/real_environment.h"

namespace troupe::gateway {

using namespace std::chrono_literals;
namespace http = boost::beast::http;
namespace json = boost::json;
using boost::asio::ip::tcp;

// What one generation does: its items in order, then how it ends.
struct Script {
  std::vector<Chunk> chunks;
  std::optional<Error> ends_with;  // Else an orderly end.
  bool hangs = false;              // After its chunks it waits until it is dropped.
};

inline Chunk piece(std::string text, uint32_t tokens_so_far, std::string finish = {}) {
  Chunk chunk;
  chunk.text = std::move(text);
  chunk.tokens = {static_cast<int32_t>(tokens_so_far)};
  chunk.completion_tokens = tokens_so_far;
  chunk.finish_reason = std::move(finish);
  if (tokens_so_far == 1) chunk.prompt_tokens = 3;
  return chunk;
}

inline Script hello_script() {
  return {{piece("Hel", 1), piece("lo", 2, "stop")}, {}, false};
}

// Each begin() takes the next script; without one it says hello.
class FakeBackend final : public Backend {
 public:
  explicit FakeBackend(const transport::Environment& environment)
      : environment_(environment), changed(environment.loop), never_(environment.loop) {
    ModelInfo info;
    info.name = "m";
    info.state = "ready";
    info.replicas_wanted = info.replicas_alive = 2;
    infos.push_back(info);
  }

  std::vector<ModelInfo> models() const override { return infos; }
  Async<bool> wait_change(Instant deadline) override {
    ++waits;
    if (on_wait) on_wait();
    if (came_back) co_return true;
    co_return co_await wait_until(environment_.clock, deadline, changed);
  }
  Async<Result<std::unique_ptr<Generation>>> begin(GenerateRequest request,
                                                   std::set<std::string> excluded,
                                                   std::string& tried) override {
    arguments.push_back(request.arguments);
    excluded_seen.push_back(excluded);
    if (!alive) co_return error(Code::unavailable, "no replica");
    for (const std::string& name : replicas) {
      if (excluded.contains(name)) continue;
      tried = name;
      Script script = hello_script();
      if (!scripts.empty()) {
        script = std::move(scripts.front());
        scripts.pop_front();
      }
      co_return std::make_unique<Running>(*this, name, std::move(script));
    }
    co_return error(Code::unavailable, "all are excluded");
  }

  std::vector<ModelInfo> infos;
  std::vector<std::string> replicas{"a", "b"};
  std::deque<Script> scripts;
  std::vector<std::string> arguments;
  std::vector<std::set<std::string>> excluded_seen;
  bool alive = true;
  bool came_back = false;
  std::function<void()> on_wait;
  std::function<void()> on_hang;
  std::function<void()> on_dropped;
  int waits = 0;
  int running = 0;

 private:
  class Running final : public Generation {
   public:
    Running(FakeBackend& owner, std::string name, Script script)
        : owner_(owner), name_(std::move(name)), script_(std::move(script)) {
      ++owner_.running;
    }
    ~Running() override {
      --owner_.running;
      if (owner_.on_dropped) owner_.on_dropped();
    }
    Async<Result<std::optional<Chunk>>> next() override {
      if (at_ < script_.chunks.size()) co_return std::optional<Chunk>{script_.chunks[at_++]};
      if (script_.hangs) {
        if (owner_.on_hang) owner_.on_hang();
        co_await owner_.never_.wait();
      }
      if (script_.ends_with) co_return *script_.ends_with;
      co_return std::optional<Chunk>{};
    }
    const std::string& replica() const override { return name_; }

   private:
    FakeBackend& owner_;
    std::string name_;
    Script script_;
    size_t at_ = 0;
  };

  transport::Environment environment_;

 public:
  Event changed;

 private:
  Event never_;
};

// The gateway's loop runs on a thread of its own; the test's thread is a blocking client.
class GatewayTest : public testing::Test {
 protected:
  GatewayTest() : backend(real.environment()) {}
  void TearDown() override {
    stop();
    if (!folder.empty()) std::filesystem::remove_all(folder);
  }

  void start() {
    gateway = std::make_unique<Gateway>(
        real.environment(), real.io(), backend, options,
        security::Audit{[this](const security::AuditLine& line) { audit.push_back(line); }});
    std::promise<Status> started;
    spawn(scope, run_start(started));
    loop = std::thread([this] { real.io().run(); });
    const Status status = started.get_future().get();
    ASSERT_TRUE(status) << status.error().to_string();
    port = gateway->port();
  }
  Async<void> run_start(std::promise<Status>& started) {
    auto status = co_await gateway->start();
    started.set_value(status);
  }
  void stop() {
    if (!loop.joinable()) return;
    on_loop([this] { spawn(scope, run_stop()); });
    loop.join();
  }
  Async<void> run_stop() { co_await gateway->stop(); }
  // Runs on the gateway's loop and waits for it.
  template <class Work>
  void on_loop(Work work) {
    std::promise<void> done;
    boost::asio::post(real.io(), [&] {
      work();
      done.set_value();
    });
    done.get_future().get();
  }

  // A client's connection.
  struct Client {
    explicit Client(uint16_t port) {
      socket.connect({boost::asio::ip::make_address("127.0.0.1"), port});
    }
    void write(const std::string& bytes) { boost::asio::write(socket, boost::asio::buffer(bytes)); }
    http::response<http::string_body> read() {
      http::response<http::string_body> response;
      boost::system::error_code failed;
      http::read(socket, buffer, response, failed);
      if (failed) response.result(http::status::unknown);
      return response;
    }
    boost::asio::io_context io;
    tcp::socket socket{io};
    boost::beast::flat_buffer buffer;
  };
  using Headers = std::vector<std::pair<std::string, std::string>>;
  std::string bytes_of(const std::string& method, const std::string& path, const std::string& body,
                       const Headers& headers = {}) const {
    std::string out = method + " " + path + " HTTP/1.1\r\n";
    bool host = false;
    for (const auto& [name, value] : headers) {
      out += name + ": " + value + "\r\n";
      host = host || name == "Host";
    }
    if (!host) out += "Host: localhost:" + std::to_string(port) + "\r\n";
    if (!body.empty()) out += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    return out + "\r\n" + body;
  }
  http::response<http::string_body> ask(const std::string& method, const std::string& path,
                                        const std::string& body = {}, const Headers& headers = {}) {
    Client client{port};
    client.write(bytes_of(method, path, body, headers));
    return client.read();
  }
  static json::value parsed(const http::response<http::string_body>& response) {
    return json::parse(response.body());
  }
  static std::string error_code_of(const http::response<http::string_body>& response) {
    return std::string(parsed(response).at("error").at("code").as_string());
  }
  static std::vector<std::string> events_of(const std::string& body) {
    std::vector<std::string> events;
    for (size_t at = 0; at < body.size();) {
      const size_t end = body.find("\n\n", at);
      EXPECT_NE(end, std::string::npos);
      EXPECT_EQ(body.substr(at, 6), "data: ");
      events.push_back(body.substr(at + 6, end - at - 6));
      at = end + 2;
    }
    return events;
  }

  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  FakeBackend backend;
  GatewayOptions options;
  std::vector<security::AuditLine> audit;
  std::unique_ptr<Gateway> gateway;
  std::thread loop;
  std::string folder;
  uint16_t port = 0;
};

}  // namespace troupe::gateway
