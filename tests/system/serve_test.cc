// Train, serve, ask, kill: the plugins over a real cluster, and what bad input gives.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {
namespace json = boost::json;

std::string read(const std::filesystem::path& path) {
  std::ifstream file{path, std::ios::binary};
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Text with a rhythm that a tiny model learns in seconds.
void write_text(const std::filesystem::path& path) {
  std::ofstream file{path};
  const char* animals[] = {"cat", "dog", "bird", "fish"};
  for (int i = 0; i < 4000; ++i) {
    file << "The " << animals[i % 4] << " said: number " << i % 10 << ".\n";
  }
}

class ServeSystem : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster = new Cluster;
    // A GPU a worker, that is not there: nothing here uses one, but they are given out.
    const Outcome started = cluster->up({"--workers", "2", "--gpus", "1", "--gateway-port", "0"});
    ASSERT_EQ(started.status, 0) << started.err;
    write_text(cluster->folder() / "text");
    const Outcome trained = cluster->troupe({"submit",
                                             "--name",
                                             "train",
                                             "--",
                                             std::string(TROUPE_BIN) + "/troupe-train",
                                             "--text",
                                             cluster->folder() / "text",
                                             "--out",
                                             model(),
                                             "--workers",
                                             "2",
                                             "--steps",
                                             "30",
                                             "--layers",
                                             "2",
                                             "--embd",
                                             "64",
                                             "--heads",
                                             "2",
                                             "--vocab",
                                             "320",
                                             "--seq",
                                             "32",
                                             "--batch",
                                             "8"});
    ASSERT_EQ(trained.status, 0) << trained.err << trained.out;
    const Outcome deployed =
        cluster->troupe({"deploy", "tiny", "--model", model(), "--replicas", "2"});
    ASSERT_EQ(deployed.status, 0) << deployed.err;
    const auto status = json::parse(cluster->troupe({"status", "-o", "json"}).out);
    url = std::string(status.at("gateway").as_string());
    key = read(cluster->state() / "gateway.key");
    key.pop_back();
  }
  static void TearDownTestSuite() {
    delete cluster;
    cluster = nullptr;
  }
  static std::string model() { return cluster->folder() / "model"; }

  struct Answer {
    int status = 0;
    std::string body;
  };
  static Answer post(const std::string& path, const std::string& body,
                     const std::string& with_key = key) {
    const auto data = cluster->folder() / ("body" + std::to_string(++bodies));
    std::ofstream{data, std::ios::binary} << body;
    const Outcome outcome =
        run({"/usr/bin/curl", "-sS", "-N", "--max-time", "60", "-w", "\n%{http_code}", "-H",
             "Authorization: Bearer " + with_key, "-H", "Content-Type: application/json", "-H",
             "Expect:", "--data-binary", "@" + data.string(), url + path});
    const auto line = outcome.out.rfind('\n');
    if (outcome.status != 0 || line == outcome.out.npos) return {0, outcome.err};
    return {std::atoi(outcome.out.c_str() + line + 1), outcome.out.substr(0, line)};
  }
  static Answer complete(const std::string& fields) {
    return post("/v1/completions", "{\"model\": \"tiny\", " + fields + "}");
  }
  static void expect_error(const Answer& answer, int status, const std::string& part) {
    EXPECT_EQ(answer.status, status) << answer.body;
    boost::system::error_code failed;
    const auto value = json::parse(answer.body, failed);
    ASSERT_FALSE(failed) << answer.body;
    const auto& error = value.at("error").as_object();
    EXPECT_NE(std::string(error.at("message").as_string()).find(part), std::string::npos)
        << answer.body;
    EXPECT_FALSE(error.at("type").as_string().empty());
  }
  // Deploys what cannot work; the error, after the deployment was removed again.
  static std::string deploy_and_fail(const std::vector<std::string>& arguments) {
    std::vector<std::string> all{"deploy", "broken", "--replicas", "1", "--timeout", "60"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Outcome outcome = cluster->troupe(all);
    EXPECT_NE(outcome.status, 0) << outcome.out;
    (void)cluster->troupe({"undeploy", "broken"});
    // The cluster goes on.
    EXPECT_EQ(complete(R"("prompt": "The", "max_tokens": 2)").status, 200);
    return outcome.err;
  }
  static std::vector<int> pids_of(const std::string& deployment) {
    std::vector<int> pids;
    const auto described = json::parse(cluster->troupe({"describe", deployment, "-o", "json"}).out);
    for (const auto& replica : described.at("replicas").as_array()) {
      pids.push_back(replica.at("pid").to_number<int>());
    }
    std::sort(pids.begin(), pids.end());
    return pids;
  }
  static std::string copy_of_model(const std::string& name) {
    const auto copy = cluster->folder() / name;
    std::filesystem::copy(model(), copy, std::filesystem::copy_options::recursive);
    return copy;
  }

  static Cluster* cluster;
  static std::string url;
  static std::string key;
  static inline std::atomic<int> bodies = 0;
};
Cluster* ServeSystem::cluster = nullptr;
std::string ServeSystem::url;
std::string ServeSystem::key;

TEST_F(ServeSystem, TrainingLeavesAHuggingFaceDirectoryMetricsAndACurve) {
  for (const char* file : {"config.json", "model.safetensors", "tokenizer.json",
                           "generation_config.json", "metrics.jsonl", "loss.svg"}) {
    EXPECT_TRUE(std::filesystem::exists(std::filesystem::path(model()) / file)) << file;
  }
  std::ifstream metrics{std::filesystem::path(model()) / "metrics.jsonl"};
  double first = 0;
  double last = 0;
  for (std::string line; std::getline(metrics, line);) {
    const auto item = json::parse(line).as_object();
    if (const auto* loss = item.if_contains("loss"); loss != nullptr && loss->is_number()) {
      last = loss->to_number<double>();
      if (first == 0) first = last;
    }
  }
  EXPECT_LT(last, first * 0.9);
  EXPECT_TRUE(read(std::filesystem::path(model()) / "loss.svg").starts_with("<svg"));
}

TEST_F(ServeSystem, CompletesAndStreamsTheSameText) {
  const auto whole = complete(R"("prompt": "The cat", "max_tokens": 24, "temperature": 0)");
  ASSERT_EQ(whole.status, 200) << whole.body;
  const std::string text(json::parse(whole.body).at("choices").at(0).at("text").as_string());
  EXPECT_FALSE(text.empty());
  const auto streamed =
      complete(R"("prompt": "The cat", "max_tokens": 24, "temperature": 0, "stream": true)");
  ASSERT_EQ(streamed.status, 200) << streamed.body;
  std::string joined;
  bool done = false;
  std::istringstream lines{streamed.body};
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line == "data: [DONE]") done = true;
    if (!line.starts_with("data: {")) continue;
    joined += std::string(json::parse(line.substr(6)).at("choices").at(0).at("text").as_string());
  }
  EXPECT_TRUE(done);
  EXPECT_EQ(joined, text);
}

TEST_F(ServeSystem, AReplicasGaugesAreDescribed) {
  EXPECT_TRUE(eventually([] {
    const auto replica = json::parse(cluster->troupe({"describe", "tiny#0", "-o", "json"}).out);
    return replica.at("gauges").as_object().size() > 3;
  }));
}

TEST_F(ServeSystem, ChatAnswersToTheEndOfTheContext) {
  const auto answer = post("/v1/chat/completions",
                           R"({"model": "tiny", "temperature": 0,
                               "messages": [{"role": "user", "content": "The"}]})");
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto value = json::parse(answer.body);
  EXPECT_TRUE(value.at("choices").at(0).at("message").at("content").is_string());
  const auto usage = value.at("usage").as_object();
  const bool whole = usage.at("total_tokens").to_number<int>() == 32;  // --seq of the training.
  const bool ended = value.at("choices").at(0).at("finish_reason").as_string() == "stop";
  EXPECT_TRUE(whole || ended) << answer.body;
}

TEST_F(ServeSystem, BadRequestsGetOpenAiErrors) {
  expect_error(post("/v1/completions", "{\"model\": "), 400, "JSON");
  expect_error(post("/v1/completions", R"({"model": "nobody", "prompt": "x"})"), 404, "nobody");
  expect_error(complete(R"("prompt": "x", "temperature": -1)"), 400, "temperature");
  expect_error(complete(R"("prompt": "x", "max_tokens": "many")"), 400, "max_tokens");
  std::string lengthy;
  for (int i = 0; i < 400; ++i) lengthy += "The cat said. ";
  expect_error(complete("\"prompt\": \"" + lengthy + "\""), 400, "context");
  expect_error(post("/v1/completions", std::string(6 << 20, 'x')), 413, "limit");
  expect_error(post("/v1/completions", R"({"model": "tiny", "prompt": "x"})", "trp_wrong"), 401,
               "key");
}

TEST_F(ServeSystem, BadDeploymentsAreExplained) {
  const std::string lib = TROUPE_LIB;
  EXPECT_NE(deploy_and_fail({"--model", model(), "--plugin", "nobody"}).find("nobody"),
            std::string::npos);
  EXPECT_NE(deploy_and_fail({"--model", model(), "--plugin", lib + "/libother_abi.so"}).find("ABI"),
            std::string::npos);
  EXPECT_NE(deploy_and_fail({"--model", model(), "--plugin", lib + "/libno_symbol.so"})
                .find("troupe_plugin_query"),
            std::string::npos);
  EXPECT_NE(deploy_and_fail({"--model", model(), "--class", "nobody"}).find("engine"),
            std::string::npos);
  const std::string truncated = copy_of_model("truncated");
  std::filesystem::resize_file(truncated + "/model.safetensors", 5000);
  EXPECT_NE(deploy_and_fail({"--model", truncated}).find("safetensors"), std::string::npos);
  const std::string other = copy_of_model("other-vocabulary");
  std::string config = read(other + "/config.json");
  // As many as the text gave; the model's own tables then have one row too many.
  const auto vocabulary = json::parse(config).at("vocab_size").to_number<int>();
  const std::string real = "\"vocab_size\": " + std::to_string(vocabulary);
  const std::string wrong = std::to_string(vocabulary - 1);
  const auto at = config.find(real);
  ASSERT_NE(at, config.npos) << config;
  config.replace(at, real.size(), "\"vocab_size\": " + wrong);
  std::ofstream{other + "/config.json"} << config;
  EXPECT_NE(deploy_and_fail({"--model", other}).find(wrong), std::string::npos);
  const Outcome missing = cluster->troupe({"deploy", "broken", "--model", "/no/such/model"});
  EXPECT_EQ(missing.status, 3) << missing.err;
}

TEST_F(ServeSystem, ADeploymentThatIsReplacedServesAllTheTime) {
  const auto ask = [](const std::string& fields) {
    return post("/v1/completions", "{\"model\": \"again\", " + fields + "}").status;
  };
  const auto deploy = [](std::vector<std::string> more) {
    std::vector<std::string> all{"deploy", "again", "--replicas", "2", "--timeout", "60"};
    all.insert(all.end(), more.begin(), more.end());
    return cluster->troupe(all);
  };
  const Outcome first = deploy({"--model", model()});
  ASSERT_EQ(first.status, 0) << first.err;
  const auto before = pids_of("again");
  std::atomic<bool> done = false;
  std::atomic<int> asked = 0;
  std::atomic<int> good = 0;
  std::thread client{[&] {
    while (!done) {
      ++asked;
      if (ask(R"("prompt": "The", "max_tokens": 4)") == 200) ++good;
    }
  }};
  // A model that cannot be loaded: said, and what was there goes on.
  const std::string truncated = copy_of_model("truncated-again");
  std::filesystem::resize_file(truncated + "/model.safetensors", 5000);
  const Outcome broken = deploy({"--model", truncated});
  EXPECT_EQ(broken.status, 1) << broken.out;
  EXPECT_NE(broken.err.find("safetensors"), std::string::npos) << broken.err;
  EXPECT_EQ(cluster->describe("again", "state"), "failed");
  EXPECT_EQ(pids_of("again"), before);
  // And one that can: ready means that all of it is new.
  const Outcome second = deploy({"--model", copy_of_model("model-again")});
  EXPECT_EQ(second.status, 0) << second.err;
  for (const int pid : pids_of("again")) {
    EXPECT_EQ(std::count(before.begin(), before.end(), pid), 0);
  }
  EXPECT_EQ(pids_of("again").size(), 2u);
  done = true;
  client.join();
  EXPECT_GT(asked, 0);
  EXPECT_EQ(good, asked.load());
  EXPECT_EQ(cluster->troupe({"undeploy", "again"}).status, 0);
}

TEST_F(ServeSystem, WorkersGiveOutDifferentGpus) {
  const Outcome deployed =
      cluster->troupe({"deploy", "on-gpu", "--model", model(), "--replicas", "2", "--gpus", "1"});
  ASSERT_EQ(deployed.status, 0) << deployed.err;
  std::set<std::string> visible;
  for (const int pid : pids_of("on-gpu")) {
    std::ifstream environment{"/proc/" + std::to_string(pid) + "/environ", std::ios::binary};
    for (std::string variable; std::getline(environment, variable, '\0');) {
      if (variable.starts_with("CUDA_VISIBLE_DEVICES=")) visible.insert(variable);
    }
  }
  // On a machine with a single one they share it, as they were told to.
  const bool single =
      std::filesystem::exists("/dev/nvidia0") && !std::filesystem::exists("/dev/nvidia1");
  std::set<std::string> expected{"CUDA_VISIBLE_DEVICES=0"};
  if (!single) expected.insert("CUDA_VISIBLE_DEVICES=1");
  EXPECT_EQ(visible, expected);
  EXPECT_EQ(cluster->troupe({"undeploy", "on-gpu"}).status, 0);
}

TEST_F(ServeSystem, AdminKeysAreForTheStatisticsOfAllModels) {
  const auto key_of = [](std::vector<std::string> more) {
    std::vector<std::string> all{"key", "create", "-o", "json"};
    all.insert(all.end(), more.begin(), more.end());
    return std::string(json::parse(cluster->troupe(all).out).at("key").as_string());
  };
  const auto status_with = [](const std::string& with_key) {
    return run({"/usr/bin/curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H",
                "Authorization: Bearer " + with_key, url + "/metrics"})
        .out;
  };
  const std::string user = key_of({"user"});
  const std::string admin = key_of({"admin", "--admin"});
  // The gateway reads its keys again every two seconds.
  EXPECT_TRUE(eventually([&] { return status_with(admin) == "200"; }));
  EXPECT_EQ(status_with(user), "403");
  EXPECT_EQ(
      post("/v1/completions", R"({"model": "tiny", "prompt": "x", "max_tokens": 1})", user).status,
      200);
}

TEST_F(ServeSystem, NoRequestIsLostWhenAReplicaIsKilled) {
  constexpr int clients = 4;
  constexpr int each = 12;
  std::atomic<int> finished = 0;
  std::atomic<int> good = 0;
  std::mutex mutex;
  std::string first_failure;
  std::vector<std::thread> threads;
  for (int c = 0; c < clients; ++c) {
    threads.emplace_back([&, c] {
      for (int i = 0; i < each; ++i) {
        const auto answer = complete(R"("prompt": "The dog", "max_tokens": 24, "seed": )" +
                                     std::to_string(c * each + i));
        ++finished;
        if (answer.status == 200) {
          ++good;
        } else {
          const std::lock_guard lock{mutex};
          if (first_failure.empty())
            first_failure = std::to_string(answer.status) + " " + answer.body;
        }
      }
    });
  }
  EXPECT_TRUE(eventually([&] { return finished >= clients; }));
  const auto described = json::parse(cluster->troupe({"describe", "tiny", "-o", "json"}).out);
  const int pid = described.at("replicas").at(0).at("pid").to_number<int>();
  EXPECT_EQ(::kill(pid, SIGKILL), 0);
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, clients * each) << first_failure;
  EXPECT_TRUE(eventually([&] { return cluster->describe("tiny", "state") == "ready"; }));
  const Outcome report = cluster->troupe({"report", "tiny", "-o", "json"});
  EXPECT_EQ(report.status, 0) << report.err;
}

}  // namespace
}  // namespace troupe::test
