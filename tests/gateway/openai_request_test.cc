#include "gateway/openai_request.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "gateway/engine_json.h"

namespace troupe::gateway {
namespace {

std::string completion_with(const std::string& fields) {
  return R"({"model":"m","prompt":"p",)" + fields + "}";
}

TEST(OpenAiRequest, NamesTheWrongParameter) {
  const std::vector<std::pair<std::string, std::string>> wrong{
      {R"("max_tokens":0)", "max_tokens"},
      {R"("max_tokens":1.5)", "max_tokens"},
      {R"("max_tokens":18446744073709551615)", "max_tokens"},
      {R"("temperature":2.1)", "temperature"},
      {R"("temperature":"hot")", "temperature"},
      {R"("top_p":-0.1)", "top_p"},
      {R"("n":0)", "n"},
      {R"("n":65)", "n"},
      {R"("stop":[""])", "stop"},
      {R"("stop":5)", "stop"},
      {R"("stop":["a","b","c","d","e"])", "stop"},
      {R"("stream":1)", "stream"},
      {R"("stream_options":{})", "stream_options"},
      {R"("logprobs":21)", "logprobs"},
      {R"("presence_penalty":3)", "presence_penalty"},
      {R"("seed":"x")", "seed"},
      {R"("suffix":"x")", "suffix"},
      {R"("best_of":3)", "best_of"},
      {R"("logit_bias":{"5":1})", "logit_bias"},
      {R"("response_format":{"type":"json_object"})", "response_format"}};
  for (const auto& [fields, param] : wrong) {
    const auto parsed = parse_completion(completion_with(fields));
    ASSERT_TRUE(std::holds_alternative<ApiError>(parsed)) << fields;
    EXPECT_EQ(std::get<ApiError>(parsed).param, param) << fields;
    EXPECT_EQ(std::get<ApiError>(parsed).status, 400);
  }
}

TEST(OpenAiRequest, TakesEveryFormOfPrompt) {
  const auto prompts = [](const std::string& text) {
    const auto parsed = parse_completion(R"({"model":"m","prompt":)" + text + "}");
    return std::holds_alternative<ApiRequest>(parsed) ? std::get<ApiRequest>(parsed).prompts
                                                      : std::vector<Prompt>{};
  };
  EXPECT_EQ(prompts(R"("a")").at(0).text, "a");
  EXPECT_EQ(prompts(R"(["a","b"])").at(1).text, "b");
  EXPECT_EQ(prompts("[1,2]").at(0).tokens, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(prompts("[[1],[2,3]]").at(1).tokens, (std::vector<int32_t>{2, 3}));
  for (const char* bad : {"[]", "5", "[1,\"a\"]", "[[]]", "[-1]", "[1.5]", "{}", "null"}) {
    EXPECT_TRUE(prompts(bad).empty()) << bad;
  }
}

TEST(OpenAiRequest, IgnoresNullAndUnknownFields) {
  const auto parsed = parse_completion(completion_with(R"("stop":null,"user":"u","n":null)"));
  EXPECT_TRUE(std::holds_alternative<ApiRequest>(parsed));
}

TEST(OpenAiRequest, TakesAsManyStopsAsAnEngine) {
  const auto parsed = parse_completion(completion_with(R"("stop":["a","b","c","d"])"));
  ASSERT_TRUE(std::holds_alternative<ApiRequest>(parsed));
  const auto& stop = std::get<ApiRequest>(parsed).parameters.at("stop");
  EXPECT_EQ(boost::json::serialize(stop), R"(["a","b","c","d"])");
}

TEST(OpenAiRequest, ChecksMessages) {
  for (const char* bad : {"[]", "{}", R"([{"role":"tool","content":"x"}])", R"([{"role":"user"}])",
                          "[5]", R"([{"role":"user","content":[{"type":"image_url"}]}])"}) {
    const auto parsed = parse_chat(std::string(R"({"model":"m","messages":)") + bad + "}");
    EXPECT_TRUE(std::holds_alternative<ApiError>(parsed)) << bad;
  }
}

TEST(OpenAiRequest, RefusesDeepJson) {
  const std::string deep = std::string(10'000, '[') + std::string(10'000, ']');
  EXPECT_TRUE(std::holds_alternative<ApiError>(parse_completion(deep)));
}

TEST(EngineJson, ReadsItemsAndRefusesBadOnes) {
  const auto chunk =
      parse_chunk(R"({"text":"a","tokens":[7],"finish_reason":null,"prompt_tokens":3})");
  EXPECT_EQ(chunk->text, "a");
  EXPECT_EQ(chunk->prompt_tokens, 3U);
  EXPECT_TRUE(chunk->finish_reason.empty());
  for (const char* bad : {"", "[]", R"({"text":5})", R"({"tokens":[-1]})", R"({"finish_reason":1})",
                          R"({"prompt_tokens":"x"})"}) {
    EXPECT_EQ(parse_chunk(bad).error().code(), Code::internal) << bad;
  }
}

}  // namespace
}  // namespace troupe::gateway
