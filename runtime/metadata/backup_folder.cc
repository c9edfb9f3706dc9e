#include "metadata/backup_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <set>
#include <utility>

#include "base/log.h"
#include "metadata/rocks_files.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view mark_name = "troupe-backups";
constexpr uint64_t format_version = 1;

template <class Number>
bool parse_number(std::string_view text, Number& number) {
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  return failed == std::errc{} && end == text.data() + text.size();
}

std::string_view next_word(std::string_view& line) {
  const size_t space = std::min(line.find(' '), line.size());
  const std::string_view word = line.substr(0, space);
  line.remove_prefix(std::min(space + 1, line.size()));
  return word;
}

// Names of files come from a disk: they must stay in their folder.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

// "HEADING N", N the format that this build writes.
Status check_heading(std::string_view line, std::string_view heading, const fs::path& path) {
  uint64_t version = 0;
  if (!line.starts_with(heading) || !parse_number(line.substr(heading.size()), version)) {
    return error(Code::data_loss, path.string() + " is damaged: it has no heading");
  }
  if (version > format_version) {
    return error(
        Code::unimplemented,
        fmt::format("{} has format {}, written by a newer Troupe; this build reads up to {}",
                    path.string(), version, format_version));
  }
  return ok();
}

constexpr std::string_view mark_heading = "troupe backups ";
constexpr std::string_view record_heading = "troupe backup ";

Result<std::vector<std::string>> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code failed;
  for (fs::directory_iterator entry{folder, failed}, end; !failed && entry != end;
       entry.increment(failed)) {
    names.push_back(entry->path().filename().string());
  }
  if (failed) return disk_error("read", folder, failed.value());
  std::sort(names.begin(), names.end());
  return names;
}

Status lock(const FileDescriptor& file, int how, const fs::path& path) {
  if (::flock(file.get(), how | LOCK_NB) == 0) return ok();
  if (errno != EWOULDBLOCK) return disk_error("lock", path, errno);
  return error(Code::conflict,
               fmt::format("another backup or restore uses {}: try again when it has ended",
                           path.parent_path().string()));
}

Error not_of_backups(const fs::path& path, std::string_view found) {
  return error(Code::invalid,
               fmt::format("{} holds something else than backups ({}): choose an empty folder, or "
                           "one that 'troupe backup' made",
                           path.string(), found));
}

}  // namespace

std::string write_record(const BackupRecord& record) {
  const BackupInfo& info = record.info;
  std::string text = fmt::format("{}{}\n", record_heading, format_version);
  text += fmt::format("number {}\n", info.number);
  text += fmt::format("cluster {}\n", info.cluster.to_string());
  text += fmt::format("schema {}\n", info.schema);
  text += fmt::format("epoch {}\n", info.epoch);
  text += fmt::format("taken_unix_us {}\n",
                      info.taken.time_since_epoch() / std::chrono::microseconds(1));
  text += fmt::format("state_hash {}\n", info.state_hash);
  text += fmt::format("copied_bytes {}\n", info.copied_bytes);
  for (const BackedFile& file : record.files) {
    text += fmt::format("file {} {} {}\n", file.content.hash, file.content.size_bytes, file.name);
  }
  return seal(std::move(text));
}

Result<BackupRecord> read_record(std::string_view sealed, const fs::path& path) {
  TROUPE_TRY(const std::string text, unseal(sealed, path));
  BackupRecord record;
  BackupInfo& info = record.info;
  // Its hash is right, so what cannot be read was written by a build that was wrong.
  const auto unreadable = [&](std::string_view line) {
    return error(Code::data_loss, fmt::format("{} is damaged at '{}'", path.string(), line));
  };
  std::string_view rest = text;
  bool first = true;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (std::exchange(first, false)) {
      TROUPE_CHECK(check_heading(line, record_heading, path));
      continue;
    }
    std::string_view words = line;
    const std::string_view key = next_word(words);
    bool good = true;
    if (key == "number") {
      good = parse_number(words, info.number);
    } else if (key == "cluster") {
      const auto cluster = ClusterId::parse(words);
      good = static_cast<bool>(cluster);
      if (good) info.cluster = *cluster;
    } else if (key == "schema") {
      good = parse_number(words, info.schema);
    } else if (key == "epoch") {
      good = parse_number(words, info.epoch);
    } else if (key == "taken_unix_us") {
      int64_t taken = 0;
      good = parse_number(words, taken);
      info.taken = WallTime{std::chrono::microseconds(taken)};
    } else if (key == "state_hash") {
      info.state_hash = words;
    } else if (key == "copied_bytes") {
      good = parse_number(words, info.copied_bytes);
    } else if (key == "file") {
      BackedFile file;
      file.content.hash = next_word(words);
      good = parse_number(next_word(words), file.content.size_bytes) && is_plain_name(words) &&
             is_plain_name(file.content.hash);
      file.name = words;
      info.size_bytes += file.content.size_bytes;
      record.files.push_back(std::move(file));
    }
    // A newer build of this format may say more.
    if (!good) return unreadable(line);
  }
  if (info.number == 0 || info.cluster.is_nil() || info.state_hash.empty() ||
      record.files.empty()) {
    return unreadable("its end");
  }
  return record;
}

fs::path BackupFolder::record_path(uint32_t number) const {
  return records_folder() / fmt::format("{:06}", number);
}

fs::path BackupFolder::path_of(const BackedFile& file) const {
  return files_folder() / fmt::format("{}-{}", file.content.hash, file.name);
}

Result<BackupFolder> BackupFolder::open_to_write(const fs::path& path, const FileHelp& help) {
  std::error_code failed;
  const fs::file_status status = fs::status(path, failed);
  if (fs::exists(status) && !fs::is_directory(status)) {
    return error(Code::invalid,
                 path.string() + " is no folder: choose an empty folder, or one that is not there");
  }
  TROUPE_CHECK(make_private_directory(path));
  struct stat facts {};
  if (::stat(path.c_str(), &facts) != 0) return disk_error("look at", path, errno);
  if ((facts.st_mode & 022) != 0) {
    return error(Code::denied, fmt::format("other users may write to {} ('chmod 700 {}' ends that)",
                                           path.string(), path.string()));
  }
  const fs::path mark = path / mark_name;
  TROUPE_TRY(const auto names, names_in(path));
  const bool marked = std::find(names.begin(), names.end(), mark_name) != names.end();
  if (!marked && !names.empty()) return not_of_backups(path, names.front());
  FileDescriptor file{::open(mark.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  if (!file.is_open()) return disk_error("open", mark, errno);
  TROUPE_CHECK(lock(file, LOCK_EX, mark));
  BackupFolder folder{path, std::move(file)};
  for (const fs::path& made : {folder.records_folder(), folder.files_folder()}) {
    TROUPE_CHECK(make_private_directory(made));
  }
  // Empty: whoever made it died before it was written, or the disk was full.
  if (::fstat(folder.mark_.get(), &facts) == 0 && facts.st_size == 0) {
    const std::string text = seal(fmt::format("{}{}\n", mark_heading, format_version));
    if (help.faults != nullptr) {
      if (const int fault = help.faults->before_append(mark, text.size())) {
        return disk_error("write", mark, fault);
      }
    }
    const ssize_t written = ::pwrite(folder.mark_.get(), text.data(), text.size(), 0);
    if (written != static_cast<ssize_t>(text.size()) || ::fsync(folder.mark_.get()) != 0) {
      const int number = written < 0 ? errno : ENOSPC;
      [[maybe_unused]] const int cut = ::ftruncate(folder.mark_.get(), 0);
      return disk_error("write", mark, number);
    }
    TROUPE_CHECK(sync_directory(path));
  }
  TROUPE_CHECK(folder.check_mark());
  return folder;
}

Result<BackupFolder> BackupFolder::look_at(const fs::path& path) {
  const fs::path mark = path / mark_name;
  FileDescriptor file{::open(mark.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!file.is_open()) {
    const int number = errno;
    if (number != ENOENT && number != ENOTDIR) return disk_error("open", mark, number);
    std::error_code ignored;
    if (!fs::exists(path, ignored)) {
      return error(Code::not_found, fmt::format("there is no folder {}", path.string()));
    }
    if (!fs::is_directory(path, ignored)) return not_of_backups(path, "it is no folder");
    TROUPE_TRY(const auto names, names_in(path));
    return not_of_backups(path, names.empty() ? "nothing at all" : names.front());
  }
  BackupFolder folder{path, std::move(file)};
  TROUPE_CHECK(folder.check_mark());
  return folder;
}

Result<BackupFolder> BackupFolder::open_to_read(const fs::path& path) {
  TROUPE_TRY(BackupFolder folder, look_at(path));
  TROUPE_CHECK(lock(folder.mark_, LOCK_SH, path / mark_name));
  return folder;
}

Status BackupFolder::check_mark() const {
  const fs::path mark = path_ / mark_name;
  TROUPE_TRY(const std::string sealed, read_text(mark));
  if (sealed.empty()) {
    return error(Code::not_found,
                 fmt::format("there is no backup in {}: the first one failed", path_.string()));
  }
  auto text = unseal(sealed, mark);
  if (!text) {
    return error(Code::data_loss,
                 fmt::format("{}; if this is a folder of backups, empty that file: the next "
                             "'troupe backup' to it writes it anew",
                             text.error().message()));
  }
  return check_heading(std::string_view{*text}.substr(0, text->find('\n')), mark_heading, mark);
}

Result<BackupRecords> BackupFolder::read_records() const {
  BackupRecords records;
  TROUPE_TRY(const auto names, names_in(records_folder()));
  for (const std::string& name : names) {
    uint32_t number = 0;
    if (!parse_number(name, number)) continue;  // Being written, or no file of ours.
    const fs::path path = records_folder() / name;
    const auto text = read_text(path);
    if (!text && text.error().code() == Code::not_found) continue;  // Removed meanwhile.
    if (!text) return text.error();
    auto record = read_record(*text, path);
    if (record && record->info.number != number) {
      record = error(Code::data_loss, fmt::format("{} is damaged: it is the record of backup {}",
                                                  path.string(), record->info.number));
    }
    if (record) {
      records.whole.push_back(std::move(*record));
    } else if (record.error().code() == Code::data_loss) {
      records.damaged.push_back({number, record.error()});
    } else {
      return std::move(record).error();
    }
  }
  std::sort(records.whole.begin(), records.whole.end(),
            [](const auto& a, const auto& b) { return a.info.number < b.info.number; });
  return records;
}

Status BackupFolder::verify(const BackedFile& file, const FileHelp& help) const {
  const fs::path path = path_of(file);
  auto content = read_content(path, help);
  if (!content && content.error().code() == Code::not_found) {
    return error(Code::data_loss, path.string() + " is missing");
  }
  if (!content) return std::move(content).error();
  if (*content == file.content) return ok();
  return error(Code::data_loss,
               path.string() + " is damaged: its hash is not that of what was written");
}

Status BackupFolder::verify(const BackupRecord& record, const FileHelp& help) const {
  for (const BackedFile& file : record.files) TROUPE_CHECK(verify(file, help));
  return ok();
}

Status BackupFolder::remove_strays() const {
  TROUPE_TRY(const BackupRecords records, read_records());
  std::error_code ignored;
  TROUPE_TRY(const auto record_names, names_in(records_folder()));
  for (const std::string& name : record_names) {
    if (name.ends_with(".tmp")) fs::remove(records_folder() / name, ignored);
  }
  if (!records.damaged.empty()) {
    log::warning("backup_strays_kept", {{"why", records.damaged.front().why}});
    return ok();
  }
  std::set<fs::path> named;
  for (const BackupRecord& record : records.whole) {
    for (const BackedFile& file : record.files) named.insert(path_of(file));
  }
  TROUPE_TRY(const auto names, names_in(files_folder()));
  for (const std::string& name : names) {
    const fs::path path = files_folder() / name;
    if (!named.contains(path)) fs::remove(path, ignored);
  }
  return ok();
}

}  // namespace troupe
