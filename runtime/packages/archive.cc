#include "packages/archive.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <set>
#include <vector>

#include "packages/names.h"
#include "security/digest.h"

namespace troupe::packages {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view magic = "troupe archive 1\n";
constexpr char directory_kind = 'd';
constexpr char file_kind = 'f';
constexpr char executable_kind = 'x';
constexpr char link_kind = 'l';
constexpr char end_kind = 'e';

struct Entry {
  std::string name;
  char kind = file_kind;
  uint64_t size_bytes = 0;
  std::string target;  // Of a link.
};

template <class Number>
void append_number(Bytes& out, Number number) {
  for (size_t i = 0; i < sizeof(Number); ++i) {
    out.push_back(static_cast<uint8_t>(number >> (8 * i)));
  }
}

// ---- Packing ----------------------------------------------------------------------------------

// What lies in a directory, with everything below it.
class Walk {
 public:
  Walk(const fs::path& root, const ArchiveOptions& options) : root_(root), options_(options) {}

  Result<std::vector<Entry>> run() {
    TROUPE_CHECK(enter(""));
    std::ranges::sort(entries_, {}, &Entry::name);
    return std::move(entries_);
  }

 private:
  Status enter(const std::string& name) {
    std::error_code failed;
    fs::directory_iterator found{root_ / name, failed};
    while (!failed && found != fs::directory_iterator{}) {
      const std::string leaf = found->path().filename();
      if (leaf != ".git" || !options_.leaves_git_out) {
        TROUPE_CHECK(take(name.empty() ? leaf : fmt::format("{}/{}", name, leaf)));
      }
      found.increment(failed);
    }
    if (failed) return file_error("read the directory " + (root_ / name).string(), failed.value());
    return ok();
  }

  Status take(const std::string& name) {
    const std::string path = root_ / name;
    struct stat status {};
    if (::lstat(path.c_str(), &status) != 0) return file_error("look at " + path, errno);
    if (!is_plain_name(name)) return error(Code::invalid, path + ": the name is too long");
    Entry entry{name, file_kind, 0, {}};
    if (S_ISDIR(status.st_mode)) {
      entry.kind = directory_kind;
    } else if (S_ISREG(status.st_mode)) {
      if ((status.st_mode & S_IXUSR) != 0) entry.kind = executable_kind;
      entry.size_bytes = static_cast<uint64_t>(status.st_size);
    } else if (S_ISLNK(status.st_mode)) {
      TROUPE_CHECK(read_link(path, entry));
    } else {
      return error(Code::invalid, fmt::format("{} is no file, directory or link: a {} holds "
                                              "nothing else",
                                              path, options_.what));
    }
    return add(std::move(entry));
  }

  Status read_link(const std::string& path, Entry& entry) {
    std::error_code failed;
    entry.kind = link_kind;
    entry.target = fs::read_symlink(path, failed);
    if (failed) return file_error("read the link " + path, failed.value());
    entry.size_bytes = entry.target.size();
    if (stays_inside(entry.name, entry.target)) return ok();
    return error(
        Code::invalid,
        fmt::format("{} is a link to {}, which leads out of the {}: replace it by what it leads to",
                    path, entry.target, options_.what));
  }

  Status add(Entry entry) {
    bytes_ += entry.size_bytes;
    if (bytes_ > options_.bytes_max) {
      return error(
          Code::invalid,
          fmt::format("the {} {} has more than {} MiB: leave data out of it and read it from a "
                      "shared file system, or as objects",
                      options_.what, root_.string(), options_.bytes_max >> 20));
    }
    const bool goes_down = entry.kind == directory_kind;
    const std::string name = entry.name;
    entries_.push_back(std::move(entry));
    if (entries_.size() > options_.entries_max) {
      return error(Code::invalid, fmt::format("the {} {} has more than {} files", options_.what,
                                              root_.string(), options_.entries_max));
    }
    return goes_down ? enter(name) : ok();
  }

  const fs::path& root_;
  const ArchiveOptions& options_;
  std::vector<Entry> entries_;
  uint64_t bytes_ = 0;
};

class Writer {
 public:
  static Result<Writer> make(const std::string& given) {
    std::error_code failed;
    const fs::path folder = given.empty() ? fs::temp_directory_path(failed) : fs::path{given};
    if (failed) return file_error("find the folder for temporary files", failed.value());
    std::string name = folder / "troupe-package-XXXXXX";
    FileDescriptor file{::mkostemp(name.data(), O_CLOEXEC)};
    if (!file.is_open()) return file_error("make " + name, errno);
    ::unlink(name.c_str());
    return Writer{std::move(file), folder.string()};
  }

  Status add(const fs::path& root, const Entry& entry) {
    Bytes head;
    head.push_back(static_cast<uint8_t>(entry.kind));
    append_number(head, static_cast<uint32_t>(entry.name.size()));
    head.insert(head.end(), entry.name.begin(), entry.name.end());
    append_number(head, entry.size_bytes);
    TROUPE_CHECK(put(head));
    if (entry.kind == link_kind) return put(as_bytes(entry.target));
    return entry.kind == directory_kind ? ok() : copy(root / entry.name, entry.size_bytes);
  }

  Status put(BytesView bytes) {
    hasher_.add(bytes);
    size_bytes_ += bytes.size();
    return write_all(file_.get(), bytes, "a temporary file in " + folder_);
  }

  PackageFilePointer finish() {
    return std::make_shared<const PackageFile>(
        PackageFile{std::move(file_), security::to_hex(hasher_.finish()), size_bytes_});
  }

 private:
  Writer(FileDescriptor file, std::string folder)
      : file_(std::move(file)), folder_(std::move(folder)) {}

  Status copy(const std::string& path, uint64_t size_bytes) {
    TROUPE_TRY(const auto from, open_hashed(path, {}));
    if (from->size_bytes != size_bytes) {
      return error(Code::conflict, path + " changed while it was packed: try again");
    }
    for (uint64_t at = 0; at < size_bytes;) {
      TROUPE_TRY(const Bytes chunk, read_chunk(*from, at));
      TROUPE_CHECK(put(chunk));
      at += chunk.size();
    }
    return ok();
  }

  FileDescriptor file_;
  std::string folder_;
  security::Hasher hasher_;
  uint64_t size_bytes_ = 0;
};

// ---- Unpacking --------------------------------------------------------------------------------

Error damaged(std::string_view how) {
  return error(Code::data_loss, fmt::format("the archive of a directory is damaged: {}", how));
}

class Reader {
 public:
  explicit Reader(const PackageFile& file) : file_(file) {}

  Result<Bytes> take(uint64_t count) {
    Bytes out;
    while (out.size() < count) {
      TROUPE_TRY(const BytesView more, piece(count - out.size()));
      out.insert(out.end(), more.begin(), more.end());
    }
    return out;
  }
  // Up to so many of the next bytes, valid until the next call.
  Result<BytesView> piece(uint64_t count) {
    if (used_ == chunk_.size()) {
      TROUPE_TRY(chunk_, read_chunk(file_, at_));
      if (chunk_.empty()) return damaged("it ends too early");
      at_ += chunk_.size();
      used_ = 0;
    }
    const auto size = static_cast<size_t>(std::min<uint64_t>(count, chunk_.size() - used_));
    const BytesView view{chunk_.data() + used_, size};
    used_ += size;
    return view;
  }
  template <class Number>
  Result<Number> number() {
    TROUPE_TRY(const Bytes bytes, take(sizeof(Number)));
    Number value = 0;
    for (size_t i = 0; i < sizeof(Number); ++i) {
      value |= static_cast<Number>(static_cast<Number>(bytes[i]) << (8 * i));
    }
    return value;
  }
  bool at_end() const { return used_ == chunk_.size() && at_ == file_.size_bytes; }

 private:
  const PackageFile& file_;
  Bytes chunk_;
  size_t used_ = 0;
  uint64_t at_ = 0;
};

class Unpacking {
 public:
  Unpacking(const PackageFile& archive, std::string root, const ArchiveOptions& options)
      : reader_(archive), root_(std::move(root)), options_(options) {}

  Status run() {
    TROUPE_TRY(const Bytes first, reader_.take(magic.size()));
    if (as_text(first) != magic) return damaged("it does not begin as one");
    if (::mkdir(root_.c_str(), 0700) != 0) return file_error("make " + root_, errno);
    made_ = true;
    for (;;) {
      TROUPE_TRY(const Bytes kind, reader_.take(1));
      if (static_cast<char>(kind[0]) == end_kind) break;
      TROUPE_CHECK(add(static_cast<char>(kind[0])));
    }
    if (!reader_.at_end()) return damaged("something follows its end");
    return seal();
  }
  // The directory is there, and ours.
  bool made() const { return made_; }

 private:
  Status add(char kind) {
    TROUPE_TRY(const auto name_size, reader_.number<uint32_t>());
    if (name_size > name_bytes_max) return damaged("a name is too long");
    TROUPE_TRY(const Bytes name_bytes, reader_.take(name_size));
    TROUPE_TRY(const auto size, reader_.number<uint64_t>());
    const std::string name{as_text(name_bytes)};
    const std::string_view parent = parent_of(name);
    // Each has a directory of ours above it, never a link.
    if (!is_plain_name(name) || (!parent.empty() && !directories_.contains(parent))) {
      return damaged(fmt::format("'{}' is no name inside of it", name));
    }
    bytes_ += size;
    if (++entries_ > options_.entries_max || size > options_.bytes_max ||
        bytes_ > options_.bytes_max) {
      return damaged("it is larger than such a directory may be");
    }
    const std::string path = root_ + "/" + name;
    switch (kind) {
      case directory_kind:
        if (::mkdir(path.c_str(), 0700) != 0) return file_error("make " + path, errno);
        directories_.insert(name);
        return size == 0 ? ok() : damaged("a directory has content");
      case link_kind:
        return add_link(name, path, size);
      case file_kind:
        return add_file(path, size, 0444);
      case executable_kind:
        return add_file(path, size, 0555);
      default:
        return damaged("an entry is of no known kind");
    }
  }

  Status add_link(const std::string& name, const std::string& path, uint64_t size) {
    if (size > name_bytes_max) return damaged("a link's target is too long");
    TROUPE_TRY(const Bytes bytes, reader_.take(size));
    const std::string target{as_text(bytes)};
    if (!stays_inside(name, target)) {
      return damaged(fmt::format("the link '{}' leads out of it", name));
    }
    if (::symlink(target.c_str(), path.c_str()) != 0) return file_error("make " + path, errno);
    return ok();
  }

  Status add_file(const std::string& path, uint64_t size, mode_t mode) {
    const FileDescriptor file{
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode)};
    if (!file.is_open()) return file_error("make " + path, errno);
    for (uint64_t left = size; left > 0;) {
      TROUPE_TRY(const BytesView piece, reader_.piece(left));
      TROUPE_CHECK(write_all(file.get(), piece, path));
      left -= piece.size();
    }
    if (::fchmod(file.get(), mode) != 0) return file_error("close " + path, errno);
    return ok();
  }

  Status seal() {
    for (const std::string& name : directories_) {
      const std::string path = root_ + "/" + name;
      if (::chmod(path.c_str(), 0555) != 0) return file_error("close " + path, errno);
    }
    if (::chmod(root_.c_str(), 0555) != 0) return file_error("close " + root_, errno);
    return ok();
  }

  Reader reader_;
  const std::string root_;
  const ArchiveOptions& options_;
  std::set<std::string, std::less<>> directories_;
  uint64_t entries_ = 0;
  uint64_t bytes_ = 0;
  bool made_ = false;
};

}  // namespace

ArchiveOptions checkpoint_archive(std::string temporary_folder) {
  return {.bytes_max = package_bytes_max,
          .what = "checkpoint",
          .leaves_git_out = false,
          .temporary_folder = std::move(temporary_folder)};
}

Result<PackageFilePointer> pack(const std::string& directory, const ArchiveOptions& options) {
  std::error_code failed;
  const fs::path root = fs::canonical(directory, failed);
  if (failed) {
    return file_error(fmt::format("find the {} {}", options.what, directory), failed.value());
  }
  if (!fs::is_directory(root, failed)) {
    return error(Code::invalid,
                 fmt::format("{} is no directory: it cannot be a {}", directory, options.what));
  }
  TROUPE_TRY(const auto entries, Walk(root, options).run());
  TROUPE_TRY(auto writer, Writer::make(options.temporary_folder));
  TROUPE_CHECK(writer.put(as_bytes(magic)));
  for (const Entry& entry : entries) TROUPE_CHECK(writer.add(root, entry));
  TROUPE_CHECK(writer.put(as_bytes({&end_kind, 1})));
  return writer.finish();
}

Status unpack(const PackageFile& archive, const std::string& directory,
              const ArchiveOptions& options) {
  Unpacking unpacking{archive, directory, options};
  Status done = unpacking.run();
  if (!done && unpacking.made()) remove_unpacked(directory);
  return done;
}

void remove_unpacked(const std::string& directory) {
  std::error_code ignored;
  const auto open = [&](const fs::path& path) {
    fs::permissions(path, fs::perms::owner_all, ignored);
  };
  open(directory);
  for (fs::recursive_directory_iterator entry{directory, ignored}, end; !ignored && entry != end;) {
    if (entry->symlink_status(ignored).type() == fs::file_type::directory) open(entry->path());
    entry.increment(ignored);
  }
  fs::remove_all(directory, ignored);
}

}  // namespace troupe::packages
