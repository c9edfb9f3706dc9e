#include "security/api_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "security/identity.h"
#include "security/private_files.h"

namespace troupe::security {
namespace {

namespace json = boost::json;
constexpr std::string_view prefix = "trp_";

std::string to_json(const std::vector<ApiKey>& keys) {
  json::array rows;
  for (const ApiKey& key : keys) {
    rows.push_back({{"name", key.name},
                    {"scope", std::string(scope_name(key.scope))},
                    {"created_unix_s", key.created.time_since_epoch().count()},
                    {"sha256", to_hex(key.hash)}});
  }
  return json::serialize(json::object{{"version", 1}, {"keys", std::move(rows)}}) + "\n";
}

std::string_view text_of(const json::object& row, std::string_view field) {
  const json::value* value = row.if_contains(field);
  const json::string* text = value ? value->if_string() : nullptr;
  return text ? std::string_view{*text} : std::string_view{};
}

// None if a field is missing or of the wrong kind: a key must not lose its scope by damage.
std::optional<ApiKey> key_from(const json::value& value) {
  const json::object* row = value.if_object();
  if (!row) return std::nullopt;
  ApiKey key;
  key.name = text_of(*row, "name");
  const std::string_view scope = text_of(*row, "scope");
  const json::value* created = row->if_contains("created_unix_s");
  if (!valid_name(key.name) || !from_hex(text_of(*row, "sha256"), key.hash)) return std::nullopt;
  if (!created || !created->is_int64()) return std::nullopt;
  key.created = std::chrono::sys_seconds{std::chrono::seconds{created->get_int64()}};
  if (scope != scope_name(Scope::inference) && scope != scope_name(Scope::admin)) {
    return std::nullopt;
  }
  key.scope = scope == scope_name(Scope::admin) ? Scope::admin : Scope::inference;
  return key;
}

Result<std::vector<ApiKey>> from_json(std::string_view text, const std::filesystem::path& path) {
  const auto damaged = [&](std::string_view why) {
    return error(Code::data_loss, fmt::format("{} is damaged: {}", path.string(), why));
  };
  boost::system::error_code failed;
  const json::value parsed = json::parse(text, failed);
  if (failed) return damaged(failed.message());
  const json::object* file = parsed.if_object();
  const json::value* version = file ? file->if_contains("version") : nullptr;
  if (!version || !version->is_int64()) return damaged("it has no version");
  if (version->get_int64() != 1) {
    return error(Code::unimplemented,
                 fmt::format("{} was written by a newer Troupe", path.string()));
  }
  const json::value* rows = file->if_contains("keys");
  if (!rows || !rows->is_array()) return damaged("it has no keys");
  std::vector<ApiKey> keys;
  for (const json::value& row : rows->get_array()) {
    std::optional<ApiKey> key = key_from(row);
    if (!key) return damaged(fmt::format("key {} is incomplete", keys.size()));
    keys.push_back(std::move(*key));
  }
  return keys;
}

}  // namespace

std::string_view scope_name(Scope scope) {
  return scope == Scope::admin ? "admin" : "inference";
}

Result<ApiKeys> ApiKeys::load(std::filesystem::path path) {
  ApiKeys keys{std::move(path)};
  const Result<std::string> text = read_private_file(keys.path_);
  if (!text && text.error().code() == Code::not_found) return keys;
  if (!text) return text.error();
  TROUPE_TRY(keys.keys_, from_json(*text, keys.path_));
  return keys;
}

Status ApiKeys::save(std::vector<ApiKey> keys) {
  TROUPE_CHECK(write_private_file(path_, to_json(keys)));
  keys_ = std::move(keys);
  return ok();
}

Result<std::string> ApiKeys::create(std::string_view name, Scope scope, WallTime now,
                                    Random& random) {
  if (!valid_name(name)) return error(Code::invalid, "a key's name is 1 to 64 of A-Za-z0-9._-");
  if (std::ranges::find(keys_, name, &ApiKey::name) != keys_.end()) {
    return error(Code::conflict, fmt::format("there is a key {} already", name));
  }
  std::string text{prefix};
  for (int i = 0; i < 4; ++i) text += fmt::format("{:016x}", random.next());
  std::vector<ApiKey> keys = keys_;
  keys.push_back({.name = std::string(name),
                  .scope = scope,
                  .created = std::chrono::floor<std::chrono::seconds>(now),
                  .hash = sha256(text)});
  TROUPE_CHECK(save(std::move(keys)));
  return text;
}

Status ApiKeys::revoke(std::string_view name) {
  std::vector<ApiKey> keys = keys_;
  if (std::erase_if(keys, [&](const ApiKey& key) { return key.name == name; }) == 0) {
    return error(Code::not_found, fmt::format("there is no key {}", name));
  }
  return save(std::move(keys));
}

Result<ApiKey> ApiKeys::verify(std::string_view presented, Scope needed) const {
  // A hash of the input tells nothing of the keys by its time; the comparisons all take place.
  const Digest hash = sha256(presented);
  const ApiKey* found = nullptr;
  for (const ApiKey& key : keys_) {
    if (equal_in_constant_time(key.hash, hash)) found = &key;
  }
  if (!found) return error(Code::denied, "no valid API key");
  if (needed == Scope::admin && found->scope != Scope::admin) {
    return error(Code::denied, fmt::format("key {} is not an admin's", found->name));
  }
  return *found;
}

}  // namespace troupe::security
