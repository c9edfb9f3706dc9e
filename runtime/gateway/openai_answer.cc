#include "gateway/openai_answer.h"

#include <boost/json.hpp>

namespace troupe::gateway {
namespace json = boost::json;

namespace {

json::value or_null(const std::string& text) {
  return text.empty() ? json::value(nullptr) : json::value(text);
}

json::object to_object(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens}};
}

// The engine's entries, one a token.
json::array entries_of(const std::vector<std::string>& pieces) {
  json::array all;
  for (const std::string& piece : pieces) {
    boost::system::error_code failed;
    json::value parsed = json::parse(piece, failed);
    if (failed || !parsed.is_array()) continue;
    for (json::value& entry : parsed.get_array()) {
      if (entry.is_object()) all.push_back(std::move(entry));
    }
  }
  return all;
}

json::value member(const json::value& entry, std::string_view name) {
  const json::object* object = entry.if_object();
  const json::value* value = object != nullptr ? object->if_contains(name) : nullptr;
  return value != nullptr ? *value : json::value(nullptr);
}

std::string_view token_of(const json::value& entry) {
  const json::value* token = entry.if_object() ? entry.get_object().if_contains("token") : nullptr;
  return token != nullptr && token->is_string() ? std::string_view(token->get_string())
                                                : std::string_view{};
}

json::object chat_entry(const json::value& entry) {
  const std::string_view token = token_of(entry);
  json::array bytes;
  for (const char c : token) bytes.push_back(static_cast<uint8_t>(c));
  return {{"token", token}, {"logprob", member(entry, "logprob")}, {"bytes", std::move(bytes)}};
}

json::value chat_logprobs(const json::array& entries) {
  json::array content;
  for (const json::value& entry : entries) {
    json::object row = chat_entry(entry);
    json::array top;
    const json::value others = member(entry, "top");
    if (others.is_array()) {
      for (const json::value& other : others.get_array()) top.push_back(chat_entry(other));
    }
    row["top_logprobs"] = std::move(top);
    content.push_back(std::move(row));
  }
  return json::object{{"content", std::move(content)}};
}

json::value completion_logprobs(const json::array& entries, size_t text_offset) {
  json::array tokens;
  json::array values;
  json::array tops;
  json::array offsets;
  for (const json::value& entry : entries) {
    const std::string_view token = token_of(entry);
    tokens.push_back(json::value(token));
    values.push_back(member(entry, "logprob"));
    json::object top;
    const json::value others = member(entry, "top");
    if (others.is_array()) {
      for (const json::value& other : others.get_array()) {
        top[token_of(other)] = member(other, "logprob");
      }
    }
    tops.push_back(std::move(top));
    offsets.push_back(text_offset);
    text_offset += token.size();
  }
  return json::object{{"tokens", std::move(tokens)},
                      {"token_logprobs", std::move(values)},
                      {"top_logprobs", std::move(tops)},
                      {"text_offset", std::move(offsets)}};
}

json::value logprobs_of(const ApiRequest& request, const std::vector<std::string>& pieces,
                        size_t text_offset) {
  if (!request.logprobs) return nullptr;
  const json::array entries = entries_of(pieces);
  return request.chat ? chat_logprobs(entries) : completion_logprobs(entries, text_offset);
}

json::object envelope(const ApiRequest& request, const std::string& id, int64_t created,
                      bool piece) {
  const char* object = !request.chat ? "text_completion"
                       : piece       ? "chat.completion.chunk"
                                     : "chat.completion";
  return {{"id", id}, {"object", object}, {"created", created}, {"model", request.model}};
}

std::string one_choice(json::object out, json::object choice, bool usage_follows) {
  json::array choices;
  choices.push_back(std::move(choice));
  out["choices"] = std::move(choices);
  if (usage_follows) out["usage"] = nullptr;
  return json::serialize(out);
}

}  // namespace

AnswerWriter::AnswerWriter(const ApiRequest& request, std::string request_id,
                           int64_t created_unix_s)
    : request_(request),
      id_((request.chat ? "chatcmpl-" : "cmpl-") + std::move(request_id)),
      created_(created_unix_s) {}

std::string AnswerWriter::whole(const std::vector<ChoiceText>& texts, const Usage& usage) const {
  json::array choices;
  for (size_t i = 0; i < texts.size(); ++i) {
    const ChoiceText& text = texts[i];
    json::object choice{{"index", i}};
    if (request_.chat) {
      choice["message"] = json::object{{"role", "assistant"}, {"content", text.text}};
    } else {
      const std::string& prompt = request_.prompts[i / request_.n].text;
      choice["text"] = request_.echo ? prompt + text.text : text.text;
    }
    choice["logprobs"] = logprobs_of(request_, text.logprobs, 0);
    choice["finish_reason"] = or_null(text.finish_reason);
    choices.push_back(std::move(choice));
  }
  json::object out = envelope(request_, id_, created_, false);
  out["choices"] = std::move(choices);
  out["usage"] = to_object(usage);
  return json::serialize(out);
}

std::string AnswerWriter::first(size_t index) const {
  json::object choice{{"index", index}};
  if (request_.chat) {
    choice["delta"] = json::object{{"role", "assistant"}, {"content", ""}};
  } else if (request_.echo) {
    choice["text"] = request_.prompts[index / request_.n].text;
  } else {
    return {};
  }
  choice["logprobs"] = nullptr;
  choice["finish_reason"] = nullptr;
  return one_choice(envelope(request_, id_, created_, true), std::move(choice),
                    request_.include_usage);
}

std::string AnswerWriter::piece(size_t index, const Chunk& chunk, size_t text_offset) const {
  json::object choice{{"index", index}};
  if (request_.chat) {
    json::object delta;
    if (!chunk.text.empty()) delta["content"] = chunk.text;
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = chunk.text;
  }
  choice["logprobs"] = chunk.logprobs.empty()
                           ? json::value(nullptr)
                           : logprobs_of(request_, {chunk.logprobs}, text_offset);
  choice["finish_reason"] = or_null(chunk.finish_reason);
  return one_choice(envelope(request_, id_, created_, true), std::move(choice),
                    request_.include_usage);
}

std::string AnswerWriter::usage(const Usage& usage) const {
  json::object out = envelope(request_, id_, created_, true);
  out["choices"] = json::array{};
  out["usage"] = to_object(usage);
  return json::serialize(out);
}

}  // namespace troupe::gateway
