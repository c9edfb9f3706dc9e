#include "metadata/backup_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "base/file_descriptor.h"
#include "metadata/rocks_files.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;

constexpr size_t chunk_bytes = size_t{256} << 10;
constexpr size_t text_bytes_max = size_t{16} << 20;
constexpr std::string_view seal_word = "end ";

std::string hexadecimal(const XXH128_hash_t& digest) {
  return fmt::format("{:016x}{:016x}", digest.high64, digest.low64);
}

// Hashes as it reads.
class Reading {
 public:
  static Result<Reading> open(const fs::path& path) {
    Reading reading{path, FileDescriptor{::open(path.c_str(), O_RDONLY | O_CLOEXEC)}};
    if (!reading.file_.is_open()) return disk_error("open", path, errno);
    XXH3_128bits_reset(reading.hash_.get());
    return reading;
  }
  // Empty at the end. Valid until the next call.
  Result<std::string_view> next() {
    ssize_t count = 0;
    do {
      count = ::read(file_.get(), buffer_.data(), buffer_.size());
    } while (count < 0 && errno == EINTR);
    if (count < 0) return disk_error("read", path_, errno);
    const std::string_view part{buffer_.data(), static_cast<size_t>(count)};
    XXH3_128bits_update(hash_.get(), part.data(), part.size());
    content_.size_bytes += part.size();
    return part;
  }
  FileContent content() && {
    content_.hash = hexadecimal(XXH3_128bits_digest(hash_.get()));
    return std::move(content_);
  }

 private:
  struct FreeHash {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };

  Reading(fs::path path, FileDescriptor file)
      : path_(std::move(path)), file_(std::move(file)), hash_(XXH3_createState()) {
    TROUPE_ASSERT(hash_ != nullptr, "out of memory for a hash");
  }

  fs::path path_;
  FileDescriptor file_;
  std::unique_ptr<XXH3_state_t, FreeHash> hash_;
  std::vector<char> buffer_ = std::vector<char>(chunk_bytes);
  FileContent content_;
};

// Removes the file again unless finish() succeeded.
class Writing {
 public:
  static Result<Writing> open(const fs::path& path, const FileHelp& help) {
    Writing writing{
        path, FileDescriptor{::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)},
        help};
    if (!writing.file_.is_open()) return disk_error("make", path, errno);
    return writing;
  }
  Writing(Writing&&) = default;
  Writing& operator=(Writing&&) = delete;
  ~Writing() {
    if (file_.is_open()) ::unlink(path_.c_str());
  }

  Status append(std::string_view part) {
    if (help_.faults != nullptr) {
      if (const int fault = help_.faults->before_append(path_, part.size())) {
        return disk_error("write", path_, fault);
      }
    }
    while (!part.empty()) {
      const ssize_t count = ::write(file_.get(), part.data(), part.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return disk_error("write", path_, errno);
      part.remove_prefix(static_cast<size_t>(count));
    }
    return ok();
  }
  Status finish() {
    if (help_.faults != nullptr) {
      if (const int fault = help_.faults->before_sync(path_)) {
        return disk_error("sync", path_, fault);
      }
    }
    if (::fsync(file_.get()) != 0) return disk_error("sync", path_, errno);
    file_.reset();
    return ok();
  }

 private:
  Writing(fs::path path, FileDescriptor file, const FileHelp& help)
      : path_(std::move(path)), file_(std::move(file)), help_(help) {}

  fs::path path_;
  FileDescriptor file_;
  FileHelp help_;
};

Status check_stop(const FileHelp& help) {
  if (help.stop != nullptr && *help.stop) return error(Code::cancelled, "the head is stopping");
  return ok();
}

}  // namespace

std::string hash_of(std::string_view text) {
  return hexadecimal(XXH3_128bits(text.data(), text.size()));
}

Result<FileContent> read_content(const fs::path& path, const FileHelp& help) {
  TROUPE_TRY(Reading reading, Reading::open(path));
  for (;;) {
    TROUPE_CHECK(check_stop(help));
    TROUPE_TRY(const std::string_view part, reading.next());
    if (part.empty()) return std::move(reading).content();
  }
}

Result<FileContent> copy_file(const fs::path& from, const fs::path& to, const FileHelp& help) {
  TROUPE_TRY(Reading reading, Reading::open(from));
  TROUPE_TRY(Writing writing, Writing::open(to, help));
  for (;;) {
    TROUPE_CHECK(check_stop(help));
    TROUPE_TRY(const std::string_view part, reading.next());
    if (part.empty()) break;
    TROUPE_CHECK(writing.append(part));
  }
  TROUPE_CHECK(writing.finish());
  return std::move(reading).content();
}

Status write_text(const fs::path& path, std::string_view text, const FileHelp& help) {
  const fs::path temporary = path.string() + ".tmp";
  {
    TROUPE_TRY(Writing writing, Writing::open(temporary, help));
    TROUPE_CHECK(writing.append(text));
    TROUPE_CHECK(writing.finish());
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int number = errno;
    ::unlink(temporary.c_str());
    return disk_error("rename", temporary, number);
  }
  return sync_directory(path.parent_path());
}

Result<std::string> read_text(const fs::path& path) {
  TROUPE_TRY(Reading reading, Reading::open(path));
  std::string text;
  for (;;) {
    TROUPE_TRY(const std::string_view part, reading.next());
    if (part.empty()) return text;
    text += part;
    if (text.size() > text_bytes_max) {
      return error(Code::data_loss, path.string() + " is damaged: it is far too long");
    }
  }
}

Status sync_directory(const fs::path& path) {
  const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!file.is_open()) return disk_error("open", path, errno);
  if (::fsync(file.get()) != 0) return disk_error("sync", path, errno);
  return ok();
}

std::string seal(std::string text) {
  const std::string hash = hash_of(text);
  return fmt::format("{}{}{}\n", std::move(text), seal_word, hash);
}

Result<std::string> unseal(std::string_view sealed, const fs::path& path) {
  // 32 digits of hash and the end of the line behind the word.
  const size_t tail = seal_word.size() + 33;
  if (sealed.size() >= tail) {
    std::string text{sealed.substr(0, sealed.size() - tail)};
    if (sealed == seal(text)) return text;
  }
  return error(Code::data_loss, path.string() + " is damaged: its hash is not that of its content");
}

}  // namespace troupe
