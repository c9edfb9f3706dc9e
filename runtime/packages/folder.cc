#include "packages/folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "packages/names.h"
#include "security/digest.h"

namespace troupe::packages {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view unpacked_suffix = ".d";
constexpr std::string_view temporary_mark = ".part";

bool is_kind(const std::string& path, mode_t kind) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && (status.st_mode & S_IFMT) == kind;
}

uint64_t size_of(const fs::path& directory) {
  uint64_t size = 0;
  std::error_code failed;
  for (fs::recursive_directory_iterator entry{directory, failed}, end; !failed && entry != end;
       entry.increment(failed)) {
    std::error_code gone;
    if (!entry->is_symlink(gone) && entry->is_regular_file(gone)) size += entry->file_size(gone);
  }
  return size;
}

// The names in it are on the disk.
Status sync_folder(const std::string& path) {
  const FileDescriptor folder{::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!folder.is_open() || ::fsync(folder.get()) != 0) return file_error("sync " + path, errno);
  return ok();
}

}  // namespace

Folder::Incoming::Incoming(std::string path, std::string temporary, std::string hash,
                           FileDescriptor file, Keep keep)
    : path_(std::move(path)),
      temporary_(std::move(temporary)),
      hash_(std::move(hash)),
      file_(std::move(file)),
      keep_(keep),
      hasher_(std::make_unique<security::Hasher>()) {}

Folder::Incoming::~Incoming() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Status Folder::Incoming::append(BytesView bytes) {
  TROUPE_CHECK(write_all(file_.get(), bytes, temporary_));
  hasher_->add(bytes);
  size_bytes_ += bytes.size();
  return ok();
}

Result<PackageFilePointer> Folder::Incoming::finish() {
  const std::string found = security::to_hex(hasher_->finish());
  if (found != hash_) {
    return error(Code::data_loss, fmt::format("{} bytes came with the hash {} in the place of {}",
                                              size_bytes_, found, hash_));
  }
  const bool durable = keep_ == Keep::durable;
  if (durable && ::fsync(file_.get()) != 0) return file_error("sync " + temporary_, errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return file_error("make " + path_, errno);
  temporary_.clear();
  file_.reset();
  if (durable) TROUPE_CHECK(sync_folder(fs::path{path_}.parent_path()));
  return open_hashed(path_, hash_);
}

Result<Folder> Folder::open(std::string path) {
  std::error_code failed;
  fs::create_directories(fs::path{path}.parent_path(), failed);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return file_error("make the folder for packages " + path, errno);
  }
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) ||
      status.st_uid != ::geteuid()) {
    return error(Code::invalid, path + " is no folder of this user: packages are not kept in it");
  }
  // Who could write here could run code in every job.
  if (::chmod(path.c_str(), 0700) != 0) return file_error("close " + path, errno);
  for (const auto& entry : fs::directory_iterator(path, failed)) {
    if (entry.path().filename().string().find(temporary_mark) == std::string::npos) continue;
    remove_unpacked(entry.path());
  }
  return Folder{std::move(path)};
}

bool Folder::has_file(const std::string& hash) const {
  return is_kind(file_of(hash), S_IFREG);
}
bool Folder::has_unpacked(const std::string& hash) const {
  return is_kind(unpacked_of(hash), S_IFDIR);
}

void Folder::touch(const std::string& hash, bool is_unpacked) const {
  const std::string path = is_unpacked ? unpacked_of(hash) : file_of(hash);
  ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0);
}

std::vector<Folder::Entry> Folder::list() const {
  std::vector<Entry> entries;
  std::error_code failed;
  for (const auto& found : fs::directory_iterator(path_, failed)) {
    std::string name = found.path().filename();
    Entry entry;
    entry.is_unpacked = name.ends_with(unpacked_suffix);
    if (entry.is_unpacked) name.resize(name.size() - unpacked_suffix.size());
    struct stat status {};
    if (!is_hash(name) || ::lstat(found.path().c_str(), &status) != 0) continue;
    constexpr int64_t ns_per_s = 1'000'000'000;
    entry.hash = std::move(name);
    entry.used_ns = status.st_mtim.tv_sec * ns_per_s + status.st_mtim.tv_nsec;
    entry.size_bytes =
        entry.is_unpacked ? size_of(found.path()) : static_cast<uint64_t>(status.st_size);
    entries.push_back(std::move(entry));
  }
  return entries;
}

Result<std::unique_ptr<Folder::Incoming>> Folder::receive(const std::string& hash,
                                                          Keep keep) const {
  if (!is_hash(hash)) return error(Code::invalid, "a package's hash has 64 hexadecimal digits");
  std::string temporary = fmt::format("{}/{}{}-XXXXXX", path_, hash, temporary_mark);
  FileDescriptor file{::mkostemp(temporary.data(), O_CLOEXEC)};
  if (!file.is_open()) {
    const Error failure = file_error("make " + temporary, errno);
    // That the folder is gone says nothing about the package.
    if (failure.code() != Code::not_found) return failure;
    return error(Code::internal, failure.message() + ": the folder was removed");
  }
  return std::make_unique<Incoming>(file_of(hash), std::move(temporary), hash, std::move(file),
                                    keep);
}

Status Folder::unpack_file(const PackageFile& archive, const ArchiveOptions& options) const {
  const std::string temporary = unpacked_of(archive.hash) + std::string(temporary_mark);
  remove_unpacked(temporary);
  TROUPE_CHECK(unpack(archive, temporary, options));
  // Of a read-only directory its name can be changed; its parent is ours.
  if (::rename(temporary.c_str(), unpacked_of(archive.hash).c_str()) != 0) {
    const int number = errno;
    remove_unpacked(temporary);
    return file_error("make " + unpacked_of(archive.hash), number);
  }
  ::unlink(file_of(archive.hash).c_str());
  return ok();
}

void Folder::remove(const Entry& entry) const {
  if (entry.is_unpacked) {
    // At once out of the way of who comes for it anew.
    const std::string leaving = unpacked_of(entry.hash) + std::string(temporary_mark) + "-leaves";
    remove_unpacked(leaving);
    if (::rename(unpacked_of(entry.hash).c_str(), leaving.c_str()) == 0) remove_unpacked(leaving);
  } else {
    ::unlink(file_of(entry.hash).c_str());
  }
}

}  // namespace troupe::packages
