// What the security tests share: a scratch directory, two clusters, and certificates from them.
#pragma once

#include <stdlib.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

#include "security/authority.h"
#include "security/credentials.h"

namespace troupe::security {

class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "troupe_security_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no scratch directory");
    path_ = name;
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// OpenSSL compares certificates with the real time, so the tests' certificates are of now.
inline WallTime real_now() {
  return std::chrono::time_point_cast<Duration>(std::chrono::system_clock::now());
}

inline ClusterId cluster_id(int number) {
  return ClusterId{RawId{1, static_cast<uint64_t>(number)}};
}

inline Authority make_authority(int cluster = 1) {
  return Authority::create(cluster_id(cluster), real_now()).value();
}

inline CredentialsPem issue_pem(const Authority& authority, Role role, std::string name,
                                WallTime now = real_now()) {
  const IssuedIdentity issued =
      authority.issue({.role = role, .name = std::move(name)}, now).value();
  return {authority.certificate_pem(), issued.certificate_pem, issued.key_pem};
}

inline unsigned mode_of(const std::filesystem::path& path) {
  struct stat facts {};
  return ::stat(path.c_str(), &facts) == 0 ? facts.st_mode & 0777U : 0U;
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream stream{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{stream}, {}};
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream{path, std::ios::binary | std::ios::trunc} << text;
}

}  // namespace troupe::security
