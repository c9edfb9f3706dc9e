// The engine as its host sees it, on a tiny random model.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>
#include <fstream>

#include "base/random.h"
#include "fake_host.h"
#include "llm/bpe_trainer.h"
#include "llm/checkpoint.h"
#include "llm/gpt2.h"

namespace troupe::inference {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using testing::HasSubstr;
using Call = std::unique_ptr<troupe_call>;

constexpr int64_t context = 64;

// What the items of a call say together.
struct Said {
  std::string text;
  std::vector<int32_t> tokens;
  std::string finish_reason;
  int64_t prompt_tokens = -1;
  int64_t completion_tokens = 0;
  json::array logprobs;

  void add(const std::string& item) {
    const json::object object = json::parse(item).as_object();  // Refuses what is no UTF-8.
    EXPECT_TRUE(finish_reason.empty()) << "an item after the last";
    text += object.at("text").as_string();
    for (const auto& token : object.at("tokens").as_array()) {
      tokens.push_back(token.to_number<int32_t>());
    }
    if (object.at("finish_reason").is_string()) {
      finish_reason = std::string(object.at("finish_reason").as_string());
    }
    if (const auto* count = object.if_contains("prompt_tokens")) {
      EXPECT_EQ(prompt_tokens, -1);
      prompt_tokens = count->to_number<int64_t>();
    }
    completion_tokens = object.at("completion_tokens").to_number<int64_t>();
    EXPECT_EQ(completion_tokens, std::ssize(tokens));
    if (const auto* entries = object.if_contains("logprobs")) {
      for (const auto& entry : entries->as_array()) logprobs.push_back(entry);
    }
  }
};

Said said(const Call& call) {
  EXPECT_TRUE(call->finished);
  EXPECT_EQ(call->code, TROUPE_OK) << call->reply;
  Said out;
  for (const std::string& item : call->items) out.add(item);
  if (!call->streams) out.add(call->reply);
  return out;
}

class EngineTest : public testing::Test {
 protected:
  EngineTest()
      : tokenizer_(llm::train_bpe("the cat sat on the mat; das Kätzchen saß — the hat, the rat",
                                  {.vocab_size = 290})
                       .value()) {
    std::string pattern = (fs::temp_directory_path() / "troupe_engine_XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    config_ = {.vocab_size = tokenizer_.vocab_size() + 3,  // Padded.
               .n_positions = context,
               .n_embd = 32,
               .n_layer = 2,
               .n_head = 4};
    parameters_.resize(llm::Gpt2Layout(config_).total());
    SeededRandom random(7);
    llm::initialize_gpt2<float>(config_, random, parameters_);
    // Far from the flat distribution that fresh parameters give.
    const llm::Gpt2Layout layout(config_);
    for (const llm::Parameter& parameter : layout.parameters()) {
      if (!parameter.is_matrix()) continue;
      for (size_t i = 0; i < parameter.count; ++i) parameters_[parameter.offset + i] *= 12;
    }
    save(model(), tokenizer_, std::nullopt);
  }
  ~EngineTest() override { fs::remove_all(root_); }

  fs::path model() const { return root_ / "model"; }

  void save(const fs::path& directory, const llm::Tokenizer& tokenizer,
            std::optional<int32_t> eos) const {
    ASSERT_TRUE(llm::save_gpt2(directory, config_, parameters_, {.eos_token_id = eos}));
    ASSERT_TRUE(tokenizer.save(directory / "tokenizer.json"));
  }

  std::string settings(const std::string& more = "", const fs::path& directory = {}) const {
    const std::string path = (directory.empty() ? model() : directory).string();
    return fmt::format(R"({{"model":"{}","precision":"f32"{}}})", path, more);
  }

  static std::string request(const std::string& more) {
    return fmt::format(R"({{"prompt":"the cat","ignore_eos":true,{}}})", more);
  }

  json::object info(FakeActor& actor) const {
    return json::parse(actor.call("info", "")->reply).as_object();
  }
  void expect_idle(FakeActor& actor) const {
    const json::object now = info(actor);
    EXPECT_EQ(now.at("running"), 0);
    EXPECT_EQ(now.at("waiting"), 0);
    EXPECT_EQ(now.at("kv_blocks_free"), now.at("kv_blocks_total"));
  }

  std::vector<int32_t> plain_greedy(std::vector<int32_t> tokens, size_t count) {
    auto plain = llm::Gpt2<float>::create(config_).value();
    std::ranges::copy(parameters_, plain.parameters().begin());
    const auto width = static_cast<size_t>(config_.vocab_size);
    std::vector<int32_t> out;
    while (out.size() < count) {
      std::vector<float> logits(tokens.size() * width);
      EXPECT_TRUE(
          plain.logits({.batch = 1, .length = std::ssize(tokens), .tokens = tokens}, logits));
      const auto last = logits.end() - static_cast<long>(width);
      out.push_back(
          static_cast<int32_t>(std::max_element(last, last + tokenizer_.vocab_size()) - last));
      tokens.push_back(out.back());
    }
    return out;
  }

  fs::path root_;
  llm::Tokenizer tokenizer_;
  llm::Gpt2Config config_;
  std::vector<float> parameters_;
};

TEST_F(EngineTest, GreedyEqualsAPlainLoop) {
  FakeActor actor(settings());
  ASSERT_EQ(actor.code, TROUPE_OK) << actor.error;
  const auto streamed = actor.call("generate", request(R"("temperature":0,"max_tokens":30)"));
  const auto whole =
      actor.call("generate", request(R"("temperature":0,"max_tokens":30)"), {.streams = false});
  ASSERT_TRUE(actor.run());
  const Said answer = said(streamed);
  const auto expected = plain_greedy(tokenizer_.encode("the cat"), 30);
  EXPECT_EQ(answer.tokens, expected);
  EXPECT_EQ(answer.text, tokenizer_.decode(expected));
  EXPECT_EQ(answer.finish_reason, "length");
  EXPECT_EQ(answer.prompt_tokens, std::ssize(tokenizer_.encode("the cat")));
  EXPECT_GT(streamed->items.size(), 5u);
  EXPECT_TRUE(streamed->reply.empty());
  EXPECT_TRUE(whole->items.empty());
  EXPECT_EQ(said(whole).text, answer.text);
  EXPECT_GT(std::ranges::count_if(expected, [&](int32_t t) { return t != expected[0]; }), 3);
  expect_idle(actor);
}

TEST_F(EngineTest, BatchedEqualsAlone) {
  const auto nth = [](int i) {
    return fmt::format(R"({{"prompt":"{} the mat","seed":{},"ignore_eos":true,"max_tokens":{}}})",
                       std::string(static_cast<size_t>(i), 'a'), i, 10 + i);
  };
  FakeActor together(settings());
  std::vector<Call> calls;
  for (int i = 0; i < 12; ++i) calls.push_back(together.call("generate", nth(i)));
  ASSERT_TRUE(together.run());
  for (int i = 0; i < 12; ++i) {
    FakeActor alone(settings());
    const auto call = alone.call("generate", nth(i));
    ASSERT_TRUE(alone.run());
    EXPECT_EQ(said(call).tokens, said(calls[static_cast<size_t>(i)]).tokens) << i;
  }
}

TEST_F(EngineTest, ChunkedPromptsGiveTheSameText) {
  FakeActor whole(settings());
  FakeActor chunked(settings(R"(,"max_batch_tokens":3,"max_sequences":2)"));
  const std::string asked =
      R"({"prompt":"the cat sat on the mat; the rat","temperature":0,"ignore_eos":true})";
  const auto a = whole.call("generate", asked);
  const auto b = chunked.call("generate", asked);
  ASSERT_TRUE(whole.run() && chunked.run());
  EXPECT_EQ(said(a).tokens, said(b).tokens);
  EXPECT_EQ(said(a).completion_tokens, 16);  // The default.
}

TEST_F(EngineTest, AStopStringEndsTheTextBeforeIt) {
  FakeActor actor(settings());
  const auto free = actor.call("generate", request(R"("temperature":0,"max_tokens":40)"));
  ASSERT_TRUE(actor.run());
  const Said all = said(free);
  const std::string stop = tokenizer_.decode(std::span(all.tokens).subspan(5, 3));
  const json::object asked{{"prompt", "the cat"},
                           {"temperature", 0},
                           {"max_tokens", 40},
                           {"ignore_eos", true},
                           {"stop", json::array{"never", stop}}};
  const auto call = actor.call("generate", json::serialize(asked));
  ASSERT_TRUE(actor.run());
  EXPECT_EQ(said(call).finish_reason, "stop");
  EXPECT_EQ(said(call).text, all.text.substr(0, all.text.find(stop)));
  EXPECT_LT(said(call).tokens.size(), 40u);
}

TEST_F(EngineTest, TheEndOfTextTokenStops) {
  const auto tokens = plain_greedy(tokenizer_.encode("the cat"), 12);
  const int32_t end = tokens[5];
  const auto first = std::ranges::find(tokens, end) - tokens.begin();
  save(root_ / "ending", tokenizer_, end);
  FakeActor actor(settings("", root_ / "ending"));
  const auto stops = actor.call("generate", R"({"prompt":"the cat","temperature":0})");
  const auto ignores = actor.call("generate", request(R"("temperature":0,"max_tokens":12)"));
  ASSERT_TRUE(actor.run());
  EXPECT_EQ(said(stops).finish_reason, "stop");
  EXPECT_EQ(std::ssize(said(stops).tokens), first);
  EXPECT_EQ(said(ignores).tokens, tokens);
}

TEST_F(EngineTest, StopsAtTheEndOfTheContext) {
  FakeActor actor(settings());
  const auto long_one = actor.call("generate", request(R"("max_tokens":100000)"));
  json::array many;
  for (int64_t i = 0; i < context; ++i) many.push_back(40);
  const auto refused =
      actor.call("generate", json::serialize(json::object{{"prompt_tokens", many}}));
  many.pop_back();
  const auto fits = actor.call(
      "generate", json::serialize(json::object{{"prompt_tokens", many}, {"ignore_eos", true}}));
  ASSERT_TRUE(actor.run());
  EXPECT_EQ(said(long_one).prompt_tokens + said(long_one).completion_tokens, context);
  EXPECT_EQ(said(long_one).finish_reason, "length");
  EXPECT_EQ(said(fits).completion_tokens, 1);
  EXPECT_EQ(refused->code, TROUPE_INVALID);
  EXPECT_THAT(refused->reply, HasSubstr("64 tokens. However, your prompt has 64 tokens"));
}

TEST_F(EngineTest, CancellingFreesTheBlocks) {
  FakeActor actor(settings(R"(,"max_sequences":1)"));
  const auto running = actor.call("generate", request(R"("max_tokens":50)"));
  const auto waiting = actor.call("generate", request(R"("max_tokens":50)"));
  EXPECT_EQ(actor.step(), TROUPE_STEP_AGAIN);
  EXPECT_EQ(info(actor).at("running"), 1);
  EXPECT_EQ(info(actor).at("waiting"), 1);
  running->cancelled = waiting->cancelled = true;
  EXPECT_EQ(actor.step(), TROUPE_STEP_IDLE);
  EXPECT_EQ(running->code, TROUPE_CANCELLED);
  EXPECT_EQ(waiting->code, TROUPE_CANCELLED);
  expect_idle(actor);
}

TEST_F(EngineTest, PreemptionDoesNotChangeTheText) {
  FakeActor large(settings());
  FakeActor tiny(settings(R"(,"kv_blocks":5)"));
  std::vector<Call> a, b;
  for (int i = 0; i < 6; ++i) {
    const std::string asked = fmt::format(
        R"({{"prompt":"the rat {}","temperature":{},"seed":3,"max_tokens":50,"ignore_eos":true}})",
        i, i % 2);
    a.push_back(large.call("generate", asked));
    b.push_back(tiny.call("generate", asked));
  }
  ASSERT_TRUE(large.run() && tiny.run());
  EXPECT_EQ(info(large).at("preemptions_total"), 0);
  EXPECT_GT(info(tiny).at("preemptions_total").to_number<int>(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(said(a[i]).tokens, said(b[i]).tokens) << i;
    EXPECT_EQ(said(a[i]).text, said(b[i]).text) << i;
  }
  expect_idle(tiny);
}

TEST_F(EngineTest, ASlowClientHoldsUpOnlyItself) {
  FakeActor actor(settings(R"(,"max_sequences":1)"));
  const std::string asked = request(R"("temperature":0,"max_tokens":30)");
  const auto slow = actor.call("generate", asked, {.room = 2});
  const auto fast = actor.call("generate", asked);
  for (int i = 0; i < 500 && !fast->finished; ++i) ASSERT_EQ(actor.step(), TROUPE_STEP_AGAIN);
  ASSERT_TRUE(fast->finished);
  EXPECT_FALSE(slow->finished);
  EXPECT_EQ(slow->items.size(), 2u);
  slow->room = SIZE_MAX;
  ASSERT_TRUE(actor.run());
  EXPECT_EQ(said(slow).text, said(fast).text);
  EXPECT_EQ(said(slow).tokens, said(fast).tokens);
  expect_idle(actor);
}

TEST_F(EngineTest, TheLastItemWaitsForASlowClientWithoutBlocks) {
  FakeActor actor(settings());
  const auto call = actor.call("generate", request(R"("max_tokens":1,"seed":1)"), {.room = 0});
  EXPECT_EQ(actor.step(), TROUPE_STEP_AGAIN);
  EXPECT_EQ(actor.step(), TROUPE_STEP_AGAIN);
  EXPECT_FALSE(call->finished);
  expect_idle(actor);
  call->room = 1;
  EXPECT_EQ(actor.step(), TROUPE_STEP_IDLE);
  EXPECT_EQ(said(call).finish_reason, "length");
}

TEST_F(EngineTest, AFullQueueRefuses) {
  FakeActor actor(settings(R"(,"max_waiting":2)"));
  const auto a = actor.call("generate", request(R"("max_tokens":2)"));
  const auto b = actor.call("generate", request(R"("max_tokens":2)"));
  const auto c = actor.call("generate", request(R"("max_tokens":2)"));
  EXPECT_EQ(c->code, TROUPE_EXHAUSTED);
  EXPECT_THAT(c->reply, HasSubstr("retry after"));
  ASSERT_TRUE(actor.run());
  EXPECT_EQ(said(a).completion_tokens, 2);
  EXPECT_EQ(said(b).completion_tokens, 2);
}

TEST_F(EngineTest, LogprobsComeOneAToken) {
  FakeActor actor(settings());
  const auto call =
      actor.call("generate", request(R"("temperature":0,"max_tokens":8,"logprobs":3)"));
  ASSERT_TRUE(actor.run());
  const Said answer = said(call);
  ASSERT_EQ(answer.logprobs.size(), 8u);
  for (const auto& entry : answer.logprobs) {
    const auto& top = entry.at("top").as_array();
    ASSERT_EQ(top.size(), 3u);
    EXPECT_EQ(top[0].at("token"), entry.at("token"));
    EXPECT_LE(entry.at("logprob").to_number<double>(), 0);
  }
}

TEST_F(EngineTest, EchoBeginsWithThePrompt) {
  FakeActor actor(settings());
  const auto call = actor.call("generate", request(R"("max_tokens":3,"echo":true)"));
  ASSERT_TRUE(actor.run());
  EXPECT_EQ(said(call).text, "the cat" + tokenizer_.decode(said(call).tokens));
}

TEST_F(EngineTest, RefusesBadRequests) {
  FakeActor actor(settings());
  const std::vector<std::pair<std::string, std::string>> bad{
      {"{", "no valid JSON"},
      {"[]", "must be a JSON object"},
      {"{\"prompt\":\"\xff\"}", "no valid JSON"},
      {"{}", "Missing required parameter: 'prompt'"},
      {R"({"prompt":""})", "has no tokens"},
      {R"({"prompt":5})", "Invalid type for 'prompt': expected a string"},
      {R"({"prompt_tokens":[]})", "has no tokens"},
      {R"({"prompt_tokens":"a"})", "expected an array of integers"},
      {R"({"prompt_tokens":[1,99999]})", "Invalid 'prompt_tokens[1]': 99999"},
      {R"({"prompt_tokens":[-1]})", "Invalid 'prompt_tokens[0]'"},
      {R"({"prompt":"a","prompt_tokens":[1]})", "exclude each other"},
      {R"({"prompt":"a","max_tokens":0})", "Expected a value >= 1, but got 0 instead"},
      {R"({"prompt":"a","max_tokens":1.5})", "expected an integer, but got a decimal"},
      {R"({"prompt":"a","temperature":-1})", "Invalid 'temperature'"},
      {R"({"prompt":"a","temperature":"hot"})", "expected a decimal, but got a string"},
      {R"({"prompt":"a","temperature":1e999})", "temperature"},
      {R"({"prompt":"a","top_p":2})", "Invalid 'top_p'"},
      {R"({"prompt":"a","top_k":-2})", "Invalid 'top_k'"},
      {R"({"prompt":"a","presence_penalty":3})", "presence_penalty"},
      {R"({"prompt":"a","seed":"x"})", "'seed'"},
      {R"({"prompt":"a","stop":"x"})", "expected an array of strings"},
      {R"({"prompt":"a","stop":["a","b","c","d","e"]})", "maximum length 4"},
      {R"({"prompt":"a","stop":[""]})", "Invalid 'stop[0]'"},
      {R"({"prompt":"a","logprobs":21})", "Expected a value <= 20"},
      {R"({"prompt":"a","ignore_eos":1})", "expected a boolean"},
  };
  for (const auto& [argument, message] : bad) {
    const auto call = actor.call("generate", argument);
    EXPECT_EQ(call->code, TROUPE_INVALID) << argument;
    EXPECT_THAT(call->reply, HasSubstr(message)) << argument;
  }
  EXPECT_EQ(actor.call("sing", "{}")->code, TROUPE_NOT_FOUND);
  EXPECT_EQ(actor.step(), TROUPE_STEP_IDLE);
  expect_idle(actor);
}

TEST_F(EngineTest, NullMeansAbsentAndUnknownMembersAreIgnored) {
  FakeActor actor(settings());
  const auto call = actor.call(
      "generate", request(R"("max_tokens":2,"logprobs":null,"stop":null,"seed":-5,"new":1)"));
  ASSERT_TRUE(actor.run());
  EXPECT_EQ(said(call).completion_tokens, 2);
}

TEST_F(EngineTest, RefusesToStartWithBadSettings) {
  const auto expect = [](const std::string& config, int32_t code, const std::string& message) {
    const FakeActor actor(config);
    EXPECT_EQ(actor.code, code) << config;
    EXPECT_THAT(actor.error, HasSubstr(message)) << config;
  };
  expect("{}", TROUPE_INVALID, "needs a 'model'");
  expect("nonsense", TROUPE_INVALID, "no valid JSON");
  expect(settings(R"(,"colour":1)"), TROUPE_INVALID, "no setting 'colour'");
  expect(settings(R"(,"threads":0)"), TROUPE_INVALID, "'threads'");
  expect(settings(R"(,"max_batch_tokens":3)"), TROUPE_INVALID, "'max_batch_tokens'");
  expect(fmt::format(R"({{"model":"{}","precision":"f16"}})", model().string()), TROUPE_INVALID,
         "'f16' is none of auto, f32, bf16");
  expect(settings("", root_ / "nowhere"), TROUPE_NOT_FOUND, "nowhere");

  const fs::path strange = root_ / "strange";
  save(strange, llm::train_bpe("one two", {.vocab_size = 257}).value(), std::nullopt);
  llm::Gpt2Config wide = config_;
  wide.vocab_size = 600;
  const std::vector<float> zeros(llm::Gpt2Layout(wide).total());
  ASSERT_TRUE(llm::save_gpt2(strange, wide, zeros));
  expect(settings("", strange), TROUPE_INVALID, "do not belong together");

  fs::remove(model() / "config.json");
  expect(settings(), TROUPE_NOT_FOUND, "config.json");
}

TEST_F(EngineTest, RefusesTruncatedWeights) {
  const fs::path weights = model() / "model.safetensors";
  fs::resize_file(weights, fs::file_size(weights) / 2);
  const FakeActor truncated(settings());
  EXPECT_NE(truncated.code, TROUPE_OK);
  EXPECT_THAT(truncated.error, HasSubstr("model.safetensors"));
  std::ofstream(weights) << "not weights at all";
  const FakeActor corrupt(settings());
  EXPECT_NE(corrupt.code, TROUPE_OK);
  EXPECT_THAT(corrupt.error, HasSubstr("model.safetensors"));
  fs::remove(weights);
  EXPECT_EQ(FakeActor(settings()).code, TROUPE_NOT_FOUND);
}

TEST_F(EngineTest, PauseGivesAllBlocksBack) {
  FakeActor actor(settings());
  FakeActor undisturbed(settings());
  const std::string asked = request(R"("temperature":0,"max_tokens":20)");
  const auto call = actor.call("generate", asked);
  const auto expected = undisturbed.call("generate", asked);
  for (int i = 0; i < 5; ++i) ASSERT_EQ(actor.step(), TROUPE_STEP_AGAIN);
  ASSERT_EQ(actor.pause(), TROUPE_OK);
  EXPECT_EQ(info(actor).at("kv_blocks_free"), info(actor).at("kv_blocks_total"));
  EXPECT_EQ(actor.step(), TROUPE_STEP_IDLE);
  EXPECT_FALSE(call->finished);
  ASSERT_EQ(actor.resume(), TROUPE_OK);
  ASSERT_TRUE(actor.run() && undisturbed.run());
  EXPECT_EQ(said(call).tokens, said(expected).tokens);
}

TEST_F(EngineTest, TellsOfItself) {
  FakeActor actor(settings(R"(,"name":"tiny","kv_blocks":40)"));
  const auto call = actor.call("generate", request(R"("max_tokens":4)"));
  ASSERT_TRUE(actor.run());
  const json::object now = info(actor);
  EXPECT_EQ(now.at("name"), "tiny");
  EXPECT_EQ(now.at("max_context"), context);
  EXPECT_EQ(now.at("kv_blocks_total"), 40);
  EXPECT_EQ(now.at("tokens_generated_total"), 4);
  EXPECT_EQ(now.at("requests_total"), 1);
  EXPECT_EQ(now.at("prompt_tokens_total"), said(call).prompt_tokens);
  EXPECT_GT(now.at("busy_seconds_total").to_number<double>(), 0);
  EXPECT_EQ(actor.context.metrics.at("tokens_generated_total"), 4);
  const std::string tokens = actor.call("tokenize", R"({"text":"the mat"})")->reply;
  EXPECT_EQ(json::parse(actor.call("detokenize", tokens)->reply).at("text"), "the mat");
  EXPECT_EQ(actor.call("detokenize", R"({"tokens":[-1]})")->code, TROUPE_INVALID);
  EXPECT_EQ(actor.call("tokenize", "{}")->code, TROUPE_INVALID);
}

TEST_F(EngineTest, DestroyingItFinishesEveryCall) {
  Call call;
  {
    FakeActor actor(settings());
    call = actor.call("generate", request(R"("max_tokens":40)"));
    actor.step();
  }
  EXPECT_TRUE(call->finished);
  EXPECT_NE(call->code, TROUPE_OK);
}

TEST_F(EngineTest, AThousandRandomRequestsAllFinish) {
  FakeActor actor(settings(R"(,"kv_blocks":9,"max_sequences":6,"max_batch_tokens":24)"));
  SeededRandom random(2026);
  std::vector<Call> calls;
  size_t cancelled = 0;
  while (calls.size() < 1000) {
    while (calls.size() < 1000 && random.chance(0.5)) {
      json::array prompt;
      for (uint64_t n = 1 + random.below(60); n > 0; --n) {
        prompt.push_back(static_cast<int64_t>(1 + random.below(280)));
      }
      json::object asked{{"prompt_tokens", std::move(prompt)},
                         {"max_tokens", 1 + random.below(20)},
                         {"seed", random.below(100)},
                         {"temperature", random.uniform()},
                         {"stop", {"e", "at"}}};
      calls.push_back(actor.call("generate", json::serialize(asked),
                                 {.streams = random.chance(0.7), .room = random.below(12)}));
    }
    for (const Call& call : calls) {
      if (call->finished) continue;
      if (random.chance(0.2)) call->room = 4;
      if (random.chance(0.002)) call->cancelled = true;
    }
    ASSERT_GE(actor.step(), 0);
  }
  for (const Call& call : calls) call->room = SIZE_MAX;
  ASSERT_TRUE(actor.run());
  size_t answered = 0;
  for (const Call& call : calls) {
    ASSERT_TRUE(call->finished);
    if (call->code == TROUPE_OK) {
      ++answered;
      EXPECT_FALSE(said(call).finish_reason.empty());
      EXPECT_EQ(said(call).text.find('e'), std::string::npos);
    } else if (call->code == TROUPE_CANCELLED) {
      ++cancelled;
    } else {
      EXPECT_EQ(call->code, TROUPE_EXHAUSTED) << call->reply;
    }
  }
  EXPECT_GT(answered, 300u);
  EXPECT_GT(cancelled, 0u);
  expect_idle(actor);
}

}  // namespace
}  // namespace troupe::inference
