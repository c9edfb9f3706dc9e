#include "llm/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

namespace troupe::llm {
namespace {

namespace json = boost::json;

// Ids that no token has: some files leave a few out. Tables go by id, so this bounds what a damaged
// file can ask for by its own size.
constexpr size_t holes_max = 4096;

Error invalid(std::string why) {
  return error(Code::invalid, "not a usable tokenizer.json: " + std::move(why));
}

Error unimplemented(std::string_view part) {
  return error(
      Code::unimplemented,
      fmt::format("tokenizer.json asks for {}; only byte-level BPE as in GPT-2 is supported",
                  part));
}

std::string_view as_view(json::string_view text) {
  return {text.data(), text.size()};
}

// The field, or nothing if it is absent or null.
const json::value* field(const json::object& object, std::string_view name) {
  const json::value* value = object.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::string_view string_field(const json::object& object, std::string_view name) {
  const json::value* value = field(object, name);
  return value != nullptr && value->is_string() ? as_view(value->get_string()) : "";
}

bool bool_field(const json::object& object, std::string_view name, bool otherwise) {
  const json::value* value = field(object, name);
  return value != nullptr && value->is_bool() ? value->get_bool() : otherwise;
}

Result<const json::object*> object_field(const json::object& object, std::string_view name) {
  const json::value* value = field(object, name);
  if (value == nullptr || !value->is_object()) {
    return invalid(fmt::format("it has no object '{}'", name));
  }
  return &value->get_object();
}

Status check_type(const json::object& root, std::string_view part, std::string_view wanted) {
  TROUPE_TRY(const json::object* object, object_field(root, part));
  const std::string_view type = string_field(*object, "type");
  if (type != wanted) return unimplemented(fmt::format("the {} '{}'", part, type));
  return ok();
}

// Everything around the model that would change ids or text.
Status check_pipeline(const json::object& root) {
  for (const char* part : {"normalizer", "truncation", "padding"}) {
    if (field(root, part) != nullptr) return unimplemented(fmt::format("a {}", part));
  }
  TROUPE_CHECK(check_type(root, "pre_tokenizer", "ByteLevel"));
  TROUPE_CHECK(check_type(root, "decoder", "ByteLevel"));
  // ByteLevel after the model trims offsets, which we do not give out.
  if (field(root, "post_processor") != nullptr) {
    TROUPE_CHECK(check_type(root, "post_processor", "ByteLevel"));
  }
  const json::object& pre_tokenizer = root.at("pre_tokenizer").get_object();
  if (bool_field(pre_tokenizer, "add_prefix_space", true)) {
    return unimplemented("add_prefix_space");
  }
  if (!bool_field(pre_tokenizer, "use_regex", true)) return unimplemented("use_regex: false");
  return ok();
}

Status check_model(const json::object& model) {
  // Files of 2020 name no type.
  const std::string_view type = string_field(model, "type");
  if (!type.empty() && type != "BPE") return unimplemented(fmt::format("the model '{}'", type));
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!string_field(model, affix).empty()) return unimplemented(fmt::format("a {}", affix));
  }
  if (bool_field(model, "ignore_merges", false)) return unimplemented("ignore_merges");
  const json::value* dropout = field(model, "dropout");
  if (dropout != nullptr && *dropout != 0.0) return unimplemented("dropout");
  return ok();
}

Result<int32_t> parse_id(const json::value* value, int64_t id_max) {
  if (value == nullptr || !value->is_int64() || value->get_int64() < 0 ||
      value->get_int64() > id_max) {
    return invalid(fmt::format("an id is not an integer from 0 to {}", id_max));
  }
  return static_cast<int32_t>(value->get_int64());
}

Status set_token(std::vector<std::string>& tokens, int32_t id, std::string_view content) {
  const auto index = static_cast<size_t>(id);
  if (content.empty()) return invalid(fmt::format("token {} is empty", id));
  if (index >= tokens.size()) tokens.resize(index + 1);
  if (!tokens[index].empty() && tokens[index] != content) {
    return invalid(fmt::format("'{}' and '{}' have one id, {}", tokens[index], content, id));
  }
  tokens[index] = content;
  return ok();
}

// "a b", or ["a", "b"] since `tokenizers` 0.20.
Result<std::pair<int32_t, int32_t>> parse_merge(const json::value& merge, const json::object& vocab,
                                                int64_t id_max) {
  std::string_view left, right;
  if (merge.is_string()) {
    const std::string_view both = as_view(merge.get_string());
    const size_t space = std::min(both.find(' '), both.size());
    left = both.substr(0, space);
    right = both.substr(std::min(space + 1, both.size()));
  } else if (merge.is_array() && merge.get_array().size() == 2 &&
             merge.get_array()[0].is_string() && merge.get_array()[1].is_string()) {
    left = as_view(merge.get_array()[0].get_string());
    right = as_view(merge.get_array()[1].get_string());
  }
  const json::value* left_id = vocab.if_contains(left);
  const json::value* right_id = vocab.if_contains(right);
  if (left_id == nullptr || right_id == nullptr) {
    return invalid(fmt::format("merge {} is not two tokens", json::serialize(merge)));
  }
  TROUPE_TRY(const int32_t first, parse_id(left_id, id_max));
  TROUPE_TRY(const int32_t second, parse_id(right_id, id_max));
  return std::pair{first, second};
}

Result<AddedToken> parse_added(const json::value& value, int64_t id_max) {
  if (!value.is_object()) return invalid("an added token is not an object");
  const json::object& object = value.get_object();
  AddedToken token;
  token.content = string_field(object, "content");
  if (token.content.empty()) return invalid("an added token has no content");
  for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
    if (bool_field(object, flag, false)) {
      return unimplemented(fmt::format("{} in the added token '{}'", flag, token.content));
    }
  }
  token.special = bool_field(object, "special", false);
  TROUPE_TRY(token.id, parse_id(field(object, "id"), id_max));
  return token;
}

Result<BpeVocabulary> parse_root(const json::object& root) {
  TROUPE_CHECK(check_pipeline(root));
  TROUPE_TRY(const json::object* model, object_field(root, "model"));
  TROUPE_CHECK(check_model(*model));

  BpeVocabulary vocabulary;
  TROUPE_TRY(const json::object* vocab, object_field(*model, "vocab"));
  const json::value* added = field(root, "added_tokens");
  if (added != nullptr && !added->is_array()) return invalid("added_tokens is not an array");
  const size_t tokens = vocab->size() + (added == nullptr ? 0 : added->get_array().size());
  const auto id_max = static_cast<int64_t>(tokens + holes_max - 1);
  for (const auto& [token, id_value] : *vocab) {
    TROUPE_TRY(const int32_t id, parse_id(&id_value, id_max));
    TROUPE_CHECK(set_token(vocabulary.tokens, id, as_view(token)));
  }
  const json::value* merges = field(*model, "merges");
  if (merges == nullptr || !merges->is_array()) return invalid("the model has no array 'merges'");
  for (const json::value& value : merges->get_array()) {
    TROUPE_TRY(const auto merge, parse_merge(value, *vocab, id_max));
    vocabulary.merges.push_back(merge);
  }
  if (added == nullptr) return vocabulary;
  for (const json::value& value : added->get_array()) {
    TROUPE_TRY(AddedToken token, parse_added(value, id_max));
    TROUPE_CHECK(set_token(vocabulary.tokens, token.id, token.content));
    vocabulary.added.push_back(std::move(token));
  }
  return vocabulary;
}

json::object byte_level() {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", true}};
}

}  // namespace

Result<BpeVocabulary> parse_tokenizer_json(std::string_view text) {
  json::error_code code;
  const json::value root = json::parse(json::string_view(text.data(), text.size()), code);
  if (code) return invalid("it is not JSON (" + code.message() + ")");
  if (!root.is_object()) return invalid("it is not a JSON object");
  return parse_root(root.get_object());
}

std::string write_tokenizer_json(const BpeVocabulary& vocabulary) {
  json::array added;
  for (const AddedToken& token : vocabulary.added) {
    added.push_back(json::object{{"id", token.id},
                                 {"content", token.content},
                                 {"single_word", false},
                                 {"lstrip", false},
                                 {"rstrip", false},
                                 {"normalized", !token.special},
                                 {"special", token.special}});
  }
  json::object vocab;
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (!vocabulary.tokens[id].empty()) vocab[vocabulary.tokens[id]] = id;
  }
  // "a b" is what every version reads; a token spelled in the byte alphabet has no space.
  json::array merges;
  for (const auto& [left, right] : vocabulary.merges) {
    merges.emplace_back(vocabulary.tokens[static_cast<size_t>(left)] + " " +
                        vocabulary.tokens[static_cast<size_t>(right)]);
  }
  json::object model{{"type", "BPE"},
                     {"dropout", nullptr},
                     {"unk_token", nullptr},
                     {"continuing_subword_prefix", nullptr},
                     {"end_of_word_suffix", nullptr},
                     {"fuse_unk", false},
                     {"byte_fallback", false},
                     {"ignore_merges", false},
                     {"vocab", std::move(vocab)},
                     {"merges", std::move(merges)}};
  const json::object root{{"version", "1.0"},          {"truncation", nullptr},
                          {"padding", nullptr},        {"added_tokens", std::move(added)},
                          {"normalizer", nullptr},     {"pre_tokenizer", byte_level()},
                          {"post_processor", nullptr}, {"decoder", byte_level()},
                          {"model", std::move(model)}};
  return json::serialize(root);
}

}  // namespace troupe::llm
