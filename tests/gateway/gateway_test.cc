#include "gateway_fixture.h"

namespace troupe::gateway {
namespace {

constexpr auto completion = R"({"model":"m","prompt":"Say hello"})";
constexpr auto streamed =
    R"({"model":"m","prompt":"Say","stream":true,"stream_options":{"include_usage":true}})";

TEST_F(GatewayTest, CompletesAPrompt) {
  start();
  const auto response = ask("POST", "/v1/completions", completion, {{"x-request-id", "abc-1"}});
  EXPECT_EQ(response.result_int(), 200U);
  EXPECT_EQ(response["x-request-id"], "abc-1");
  const auto body = parsed(response);
  EXPECT_EQ(body.at("object").as_string(), "text_completion");
  EXPECT_EQ(body.at("id").as_string(), "cmpl-abc-1");
  EXPECT_EQ(body.at("choices").at(0).at("text").as_string(), "Hello");
  EXPECT_EQ(body.at("choices").at(0).at("finish_reason").as_string(), "stop");
  EXPECT_EQ(body.at("usage").at("prompt_tokens").to_number<int>(), 3);
  EXPECT_EQ(body.at("usage").at("total_tokens").to_number<int>(), 5);
  const auto arguments = json::parse(backend.arguments.at(0));
  EXPECT_EQ(arguments.at("prompt").as_string(), "Say hello");
  EXPECT_EQ(arguments.at("max_tokens").to_number<int>(), 16);
  EXPECT_EQ(arguments.at("request_id").as_string(), "abc-1");
}

TEST_F(GatewayTest, EchoesThePromptOnRequest) {
  start();
  const auto response =
      ask("POST", "/v1/completions", R"({"model":"m","prompt":"Oh. ","echo":true})");
  EXPECT_EQ(parsed(response).at("choices").at(0).at("text").as_string(), "Oh. Hello");
}

TEST_F(GatewayTest, GivesNChoicesForEachPromptAtTheSameTime) {
  start();
  const auto response =
      ask("POST", "/v1/completions", R"({"model":"m","prompt":["a","b"],"n":2,"seed":7})");
  const auto body = parsed(response);
  ASSERT_EQ(body.at("choices").as_array().size(), 4U);
  EXPECT_EQ(body.at("choices").at(3).at("index").to_number<int>(), 3);
  EXPECT_EQ(body.at("usage").at("prompt_tokens").to_number<int>(), 6);
  EXPECT_EQ(body.at("usage").at("completion_tokens").to_number<int>(), 8);
  std::vector<std::string> asked;
  for (const auto& text : backend.arguments) {
    const auto value = json::parse(text);
    asked.push_back(std::string(value.at("prompt").as_string()) +
                    std::to_string(value.at("seed").to_number<int>()));
  }
  EXPECT_THAT(asked, testing::UnorderedElementsAre("a7", "a8", "b7", "b8"));
}

TEST_F(GatewayTest, StreamsEventsWithUsageAndDone) {
  start();
  const auto response = ask("POST", "/v1/completions", streamed);
  EXPECT_EQ(response[http::field::content_type], "text/event-stream");
  const auto events = events_of(response.body());
  ASSERT_EQ(events.size(), 4U);
  EXPECT_EQ(json::parse(events[0]).at("choices").at(0).at("text").as_string(), "Hel");
  EXPECT_TRUE(json::parse(events[0]).at("usage").is_null());
  EXPECT_EQ(json::parse(events[1]).at("choices").at(0).at("finish_reason").as_string(), "stop");
  EXPECT_EQ(json::parse(events[2]).at("usage").at("completion_tokens").to_number<int>(), 2);
  EXPECT_EQ(events[3], "[DONE]");
}

TEST_F(GatewayTest, ChatsWholeAndStreamed) {
  start();
  const auto whole = ask("POST", "/v1/chat/completions",
                         R"({"model":"m","messages":[{"role":"system","content":"Be brief."},
                             {"role":"user","content":[{"type":"text","text":"Hi"}]}]})");
  EXPECT_EQ(parsed(whole).at("choices").at(0).at("message").at("content").as_string(), "Hello");
  EXPECT_EQ(json::parse(backend.arguments.at(0)).at("prompt").as_string(),
            "System: Be brief.\n\nUser: Hi\n\nAssistant:");
  const auto stream =
      ask("POST", "/v1/chat/completions",
          R"({"model":"m","stream":true,"messages":[{"role":"user","content":"Hi"}]})");
  const auto events = events_of(stream.body());
  ASSERT_EQ(events.size(), 4U);
  EXPECT_EQ(json::parse(events[0]).at("choices").at(0).at("delta").at("role").as_string(),
            "assistant");
  EXPECT_EQ(json::parse(events[2]).at("choices").at(0).at("delta").at("content").as_string(), "lo");
}

TEST_F(GatewayTest, PassesLogprobsOnInTheFormOfEachRoute) {
  Script script = hello_script();
  script.chunks[0].logprobs =
      R"([{"token":"Hel","logprob":-0.5,"top":[{"token":"Ha","logprob":-1}]}])";
  script.chunks[1].logprobs = R"([{"token":"lo","logprob":-0.1,"top":[]}])";
  backend.scripts = {script, script};
  start();
  const auto plain = ask("POST", "/v1/completions", R"({"model":"m","prompt":"x","logprobs":1})");
  const auto given = parsed(plain).at("choices").at(0).at("logprobs");
  EXPECT_EQ(given.at("tokens").at(1).as_string(), "lo");
  EXPECT_EQ(given.at("text_offset").at(1).to_number<int>(), 3);
  EXPECT_EQ(given.at("top_logprobs").at(0).at("Ha").to_number<double>(), -1.0);
  const auto chat = ask(
      "POST", "/v1/chat/completions",
      R"({"model":"m","logprobs":true,"top_logprobs":1,"messages":[{"role":"user","content":"x"}]})");
  const auto content = parsed(chat).at("choices").at(0).at("logprobs").at("content");
  EXPECT_EQ(content.at(0).at("top_logprobs").at(0).at("token").as_string(), "Ha");
}

TEST_F(GatewayTest, ListsModelsHealthReadinessMetricsAndStatistics) {
  start();
  EXPECT_EQ(parsed(ask("GET", "/v1/models")).at("data").at(0).at("id").as_string(), "m");
  EXPECT_EQ(parsed(ask("GET", "/v1/models/m")).at("id").as_string(), "m");
  EXPECT_EQ(error_code_of(ask("GET", "/v1/models/x")), "model_not_found");
  EXPECT_EQ(ask("GET", "/health").result_int(), 200U);
  EXPECT_EQ(ask("GET", "/ready").result_int(), 200U);
  on_loop([this] { backend.infos[0].replicas_alive = 0; });
  EXPECT_EQ(ask("GET", "/ready").result_int(), 503U);
  ask("POST", "/v1/completions", completion);
  const auto metrics = ask("GET", "/metrics").body();
  EXPECT_THAT(
      metrics,
      testing::HasSubstr(R"(troupe_gateway_requests_total{route="/v1/completions",code="200"} 1)"));
  EXPECT_THAT(metrics,
              testing::HasSubstr(R"(troupe_gateway_completion_tokens_total{model="m"} 2)"));
  const auto stats = parsed(ask("GET", "/v1/troupe/stats")).at("models").at("m");
  EXPECT_EQ(stats.at("requests").to_number<int>(), 1);
  EXPECT_GT(stats.at("response_ms_p50").to_number<double>(), 0);
  EXPECT_TRUE(stats.at("last_recovery_seconds").is_null());
}

TEST_F(GatewayTest, RefusesWhatItDoesNotKnow) {
  start();
  EXPECT_EQ(ask("GET", "/nothing").result_int(), 404U);
  const auto method = ask("GET", "/v1/completions");
  EXPECT_EQ(method.result_int(), 405U);
  EXPECT_EQ(method[http::field::allow], "POST");
  EXPECT_EQ(ask("POST", "/v1/completions", completion, {{"Content-Type", "text/xml"}}).result_int(),
            415U);
  EXPECT_EQ(error_code_of(ask("POST", "/v1/completions", "{\"model\":")), "invalid_json");
  const auto model = ask("POST", "/v1/completions", R"({"model":"x","prompt":"p"})");
  EXPECT_EQ(model.result_int(), 404U);
  EXPECT_EQ(error_code_of(model), "model_not_found");
  const auto made = ask("GET", "/health", {}, {{"x-request-id", "no spaces please"}});
  EXPECT_EQ(made["x-request-id"].size(), 32U);
}

TEST_F(GatewayTest, EnforcesItsLimits) {
  options.limits.body_bytes_max = 1000;
  options.limits.header_bytes_max = 2000;
  start();
  EXPECT_EQ(ask("POST", "/v1/completions", std::string(1001, ' ')).result_int(), 413U);
  EXPECT_EQ(ask("GET", "/health", {}, {{"x-long", std::string(3000, 'a')}}).result_int(), 431U);
  Client client{port};
  client.write("POST /v1/completions HTTP/1.1\r\nHost: localhost:" + std::to_string(port) +
               "\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + std::string(2000, 'a') +
               "\r\n0\r\n\r\n");
  EXPECT_EQ(client.read().result_int(), 413U);
}

TEST_F(GatewayTest, KeepsConnectionsAndAnswersPipelinedRequestsInOrder) {
  start();
  Client client{port};
  std::string all;
  for (int i = 0; i < 20; ++i) {
    all += bytes_of("POST", "/v1/completions", i % 2 == 0 ? completion : streamed,
                    {{"x-request-id", "r" + std::to_string(i)}});
  }
  client.write(all);
  for (int i = 0; i < 20; ++i) {
    const auto response = client.read();
    EXPECT_EQ(response.result_int(), 200U);
    EXPECT_EQ(response["x-request-id"], "r" + std::to_string(i));
  }
  client.write(bytes_of("GET", "/health", {}, {{"Connection", "close"}}));
  EXPECT_EQ(client.read().result_int(), 200U);
  EXPECT_EQ(client.read().result_int(), 0U);
}

TEST_F(GatewayTest, ADisconnectCancelsTheGeneration) {
  backend.scripts = {{{}, {}, true}};
  std::promise<void> hung;
  std::promise<void> dropped;
  backend.on_hang = [&] { hung.set_value(); };
  backend.on_dropped = [&] { dropped.set_value(); };
  start();
  {
    Client client{port};
    client.write(bytes_of("POST", "/v1/completions", completion));
    hung.get_future().get();
  }
  dropped.get_future().get();  // Else the test's time limit says so.
  EXPECT_EQ(backend.running, 0);
}

TEST_F(GatewayTest, TellsClientsToComeBackWhenItIsFull) {
  options.in_flight_max = 1;
  options.drain = 0s;
  backend.scripts = {{{}, {}, true}};
  std::promise<void> hung;
  backend.on_hang = [&] { hung.set_value(); };
  start();
  Client first{port};
  first.write(bytes_of("POST", "/v1/completions", completion));
  hung.get_future().get();
  const auto refused = ask("POST", "/v1/completions", completion);
  EXPECT_EQ(refused.result_int(), 429U);
  EXPECT_EQ(refused[http::field::retry_after], "1");
}

TEST_F(GatewayTest, MapsTheEnginesErrors) {
  const std::vector<std::pair<Code, unsigned>> expected{{Code::invalid, 400},
                                                        {Code::not_found, 404},
                                                        {Code::deadline_exceeded, 504},
                                                        {Code::internal, 500},
                                                        {Code::data_loss, 500}};
  start();
  for (const auto& [code, status] : expected) {
    on_loop([&, code = code] { backend.scripts = {{{}, error(code, "why"), false}}; });
    EXPECT_EQ(ask("POST", "/v1/completions", completion).result_int(), status);
  }
  on_loop([&] {
    const Script full{{}, error(Code::exhausted, "full").after(1500ms), false};
    backend.scripts = {full, full};
  });
  const auto busy = ask("POST", "/v1/completions", completion);
  EXPECT_EQ(busy.result_int(), 429U);
  EXPECT_EQ(busy[http::field::retry_after], "2");
}

TEST_F(GatewayTest, ReplacesALostReplicaBeforeTheFirstToken) {
  backend.scripts = {{{}, error(Code::unavailable, "gone"), false}};
  start();
  const auto response = ask("POST", "/v1/completions", streamed);
  EXPECT_EQ(events_of(response.body()).back(), "[DONE]");
  EXPECT_THAT(ask("GET", "/metrics").body(),
              testing::HasSubstr(R"(troupe_gateway_retries_total{model="m"} 1)"));
  EXPECT_EQ(parsed(ask("GET", "/v1/troupe/stats")).at("models").at("m").at("retries"), 1);
}

TEST_F(GatewayTest, BeginsAWholeAnswerAnewWhenItsReplicaIsLostMidway) {
  backend.scripts = {{{piece("Wrong", 1)}, error(Code::outcome_unknown, "gone"), false}};
  start();
  const auto response = ask("POST", "/v1/completions", completion);
  EXPECT_EQ(parsed(response).at("choices").at(0).at("text").as_string(), "Hello");
  EXPECT_EQ(parsed(response).at("usage").at("completion_tokens").to_number<int>(), 2);
}

TEST_F(GatewayTest, EndsAStreamWithAnErrorAfterTheFirstToken) {
  backend.scripts = {{{piece("Hel", 1)}, error(Code::unavailable, "gone"), false}};
  start();
  const auto response = ask("POST", "/v1/completions", streamed, {{"x-request-id", "id7"}});
  const auto events = events_of(response.body());
  ASSERT_EQ(events.size(), 2U);
  EXPECT_THAT(std::string(json::parse(events[1]).at("error").at("message").as_string()),
              testing::HasSubstr("id7"));
}

TEST_F(GatewayTest, LosesNoRequestOfManyWhenReplicasFail) {
  for (int i = 0; i < 40; ++i) {
    Script script = hello_script();
    if (i % 2 == 0) script = {{}, error(Code::outcome_unknown, "killed"), false};
    backend.scripts.push_back(script);
  }
  options.retry.attempts_max = 100;
  start();
  std::atomic<int> good = 0;
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([&] {
      for (int j = 0; j < 10; ++j) {
        good += ask("POST", "/v1/completions", completion).result_int() == 200 ? 1 : 0;
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(good, 80);
}

TEST_F(GatewayTest, AsksForAKeyAndLeavesAuditLines) {
  std::string pattern = "/tmp/troupe-gateway-XXXXXX";
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  folder = pattern;
  options.api_keys = std::filesystem::path(folder) / "api_keys.json";
  auto keys = security::ApiKeys::load(options.api_keys).value();
  SystemRandom random;
  const auto key = keys.create("ci", security::Scope::inference, {}, random).value();
  start();
  EXPECT_EQ(ask("GET", "/health").result_int(), 200U);
  EXPECT_EQ(ask("GET", "/v1/models").result_int(), 401U);
  const auto wrong = ask("GET", "/v1/models", {}, {{"Authorization", "Bearer trp_0"}});
  EXPECT_EQ(wrong.result_int(), 401U);
  EXPECT_EQ(error_code_of(wrong), "invalid_api_key");
  EXPECT_EQ(ask("GET", "/v1/models", {}, {{"Authorization", "Bearer " + key}}).result_int(), 200U);
  on_loop([&] {
    ASSERT_EQ(audit.size(), 3U);
    EXPECT_EQ(audit[0].reason, "no api key");
    EXPECT_EQ(audit[1].decision, security::Decision::refused);
    EXPECT_EQ(audit[2].who, "api_key ci");
  });
}

TEST_F(GatewayTest, OnlyAdminsReadWhatTellsOfEverybody) {
  std::string pattern = "/tmp/troupe-gateway-XXXXXX";
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  folder = pattern;
  options.api_keys = std::filesystem::path(folder) / "api_keys.json";
  auto keys = security::ApiKeys::load(options.api_keys).value();
  SystemRandom random;
  const auto user = keys.create("user", security::Scope::inference, {}, random).value();
  const auto admin = keys.create("boss", security::Scope::admin, {}, random).value();
  start();
  for (const char* path : {"/metrics", "/v1/troupe/stats"}) {
    const auto refused = ask("GET", path, {}, {{"Authorization", "Bearer " + user}});
    EXPECT_EQ(refused.result_int(), 403U) << path;
    EXPECT_EQ(error_code_of(refused), "admin_key_required");
    EXPECT_EQ(ask("GET", path).result_int(), 401U);
    EXPECT_EQ(ask("GET", path, {}, {{"Authorization", "Bearer " + admin}}).result_int(), 200U);
  }
  EXPECT_EQ(ask("GET", "/v1/models", {}, {{"Authorization", "Bearer " + user}}).result_int(), 200U);
}

TEST_F(GatewayTest, ChecksHostAndOrigin) {
  start();
  EXPECT_EQ(ask("GET", "/health", {}, {{"Host", "evil.example"}}).result_int(), 403U);
  EXPECT_EQ(ask("GET", "/health", {}, {{"Origin", "http://evil.example"}}).result_int(), 403U);
  EXPECT_EQ(ask("GET", "/health", {}, {{"Origin", "null"}}).result_int(), 403U);
  const std::string own = "127.0.0.1:" + std::to_string(port);
  EXPECT_EQ(ask("GET", "/health", {}, {{"Host", own}, {"Origin", "http://" + own}}).result_int(),
            200U);
}

TEST_F(GatewayTest, RefusesToShowItselfUnprotected) {
  const auto status_of = [this](GatewayOptions wanted) {
    Gateway refused{real.environment(), real.io(), backend, std::move(wanted)};
    Status status = ok();
    struct Start {
      static Async<void> run(Gateway& of, Status& into) { into = co_await of.start(); }
    };
    spawn(scope, Start::run(refused, status));
    real.io().restart();
    real.io().run();
    return status;
  };
  const auto plain = status_of({.http_address = "0.0.0.0"});
  EXPECT_EQ(plain.error().code(), Code::denied);
  EXPECT_THAT(plain.error().message(), testing::HasSubstr("Use HTTPS"));
  EXPECT_EQ(status_of({.https_address = "0.0.0.0"}).error().code(), Code::denied);
  EXPECT_EQ(status_of({.http_address = "here"}).error().code(), Code::invalid);
}

TEST_F(GatewayTest, SurvivesMalformedRequests) {
  start();
  const std::string good = bytes_of("POST", "/v1/completions", completion);
  SeededRandom random{42};
  for (int i = 0; i < 300; ++i) {
    std::string bytes = good;
    const uint64_t changes = 1 + random.below(8);
    for (uint64_t change = 0; change < changes; ++change) {
      bytes[random.below(bytes.size())] = static_cast<char>(random.below(256));
    }
    Client client{port};
    client.write(bytes.substr(0, 1 + random.below(bytes.size())));
    boost::system::error_code ignored;
    client.socket.shutdown(tcp::socket::shutdown_send, ignored);
    (void)client.read();
  }
  EXPECT_EQ(ask("POST", "/v1/completions", completion).result_int(), 200U);
  on_loop([this] { EXPECT_EQ(backend.running, 0); });
}

}  // namespace
}  // namespace troupe::gateway
