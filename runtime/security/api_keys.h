// The gateway's API keys. Only their hashes are kept: who reads the file cannot use it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "base/status.h"
#include "security/digest.h"

namespace troupe::security {

// What a key opens. An admin may do all that inference may.
enum class Scope : uint8_t { inference, admin };
std::string_view scope_name(Scope scope);

struct ApiKey {
  std::string name;  // Unique; see valid_name().
  Scope scope = Scope::inference;
  std::chrono::sys_seconds created;
  Digest hash;  // SHA-256 of the key's text.
};

// The keys of one file (JSON, 0600). Changes are on disk before they return, and block on it.
// verify() touches memory only.
class ApiKeys {
 public:
  // A missing file holds no keys. Errors: denied (others can read it), data_loss (damaged).
  static Result<ApiKeys> load(std::filesystem::path path);

  // Makes a key and gives its text, "trp_" and 64 digits, which is not kept: show it once.
  // Errors: conflict (the name is taken), invalid (no name), and those of writing the file.
  Result<std::string> create(std::string_view name, Scope scope, WallTime now, Random& random);
  // Errors: not_found, and those of writing the file.
  Status revoke(std::string_view name);

  // Whose key it is. Takes the same time whichever key it is or is not.
  // Errors: denied (no such key; without saying why), denied (it is not of the scope).
  Result<ApiKey> verify(std::string_view presented, Scope needed) const;

  const std::vector<ApiKey>& keys() const { return keys_; }

 private:
  explicit ApiKeys(std::filesystem::path path) : path_(std::move(path)) {}
  Status save(std::vector<ApiKey> keys);

  std::filesystem::path path_;
  std::vector<ApiKey> keys_;
};

}  // namespace troupe::security
