// `troupe drill`: makes a fault in a throw-away cluster and says whether it kept its promises. The
// drills themselves are in tools/drill, a program of the SDK.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/file_descriptor.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/state_folder.h"

namespace troupe::tools {
namespace json = boost::json;
namespace fs = std::filesystem;

namespace {

struct Drill {
  const char* name;
  int rounds;
  double detect_within_s;
  double recover_within_s;
};

// What README.md and ARCHITECTURE.md promise, from the fault on; of disk-full recovery counts from
// the moment when there is room again. A silent worker has its window of 5 s, and half a second in
// which the next heartbeat was due.
constexpr std::array<Drill, 5> drills{{
    {"head-kill", 3, 1.0, 3.0},
    {"worker-kill", 3, 0.2, 2.0},
    {"partition", 1, 6.0, 8.0},
    {"disk-full", 1, 1.0, 2.0},
    {"restore", 1, 2.0, 30.0},
}};

Result<fs::path> make_folder() {
  std::error_code failed;
  std::string pattern = fs::temp_directory_path(failed) / "troupe-drill-XXXXXX";
  if (failed || ::mkdtemp(pattern.data()) == nullptr) {
    return error(Code::unavailable,
                 fmt::format("make the folder {}: {}", pattern, std::strerror(errno)));
  }
  return fs::path{pattern};
}

// Ends whatever the drills have left running in the folder, and removes it, once this process has
// ended in whatever way: it is a process of its own, which waits for the end of a pipe.
class Cleaner {
 public:
  static Result<Cleaner> start(const fs::path& folder) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) return error(Code::exhausted, "pipe: out of descriptors");
    const FileDescriptor reading{ends[0]};
    FileDescriptor writing{ends[1]};
    const pid_t pid = ::fork();
    if (pid < 0) return error(Code::exhausted, std::string("fork: ") + std::strerror(errno));
    if (pid == 0) {
      writing.reset();
      ::setsid();  // Ctrl-C is not for it.
      const FileDescriptor null{::open("/dev/null", O_RDWR | O_CLOEXEC)};
      for (int fd = 0; fd < 3; ++fd) ::dup2(null.get(), fd);
      char byte = 0;
      while (::read(reading.get(), &byte, 1) < 0 && errno == EINTR) {
      }
      clean(folder);
      ::_exit(0);
    }
    return Cleaner{std::move(writing), pid};
  }
  Cleaner(Cleaner&& other) noexcept
      : writing_(std::move(other.writing_)), pid_(std::exchange(other.pid_, -1)) {}
  Cleaner& operator=(Cleaner&&) = delete;
  ~Cleaner() {
    if (pid_ < 0) return;
    writing_.reset();
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

 private:
  Cleaner(FileDescriptor writing, pid_t pid) : writing_(std::move(writing)), pid_(pid) {}

  static void clean(const fs::path& folder) {
    std::error_code ignored;
    for (const Drill& drill : drills) {
      const fs::path state = folder / drill.name / "state";
      if (fs::exists(state / "cluster.json", ignored)) run_down({.state = state});
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while ((end_unrecorded(folder) > 0 || fs::exists(folder, ignored)) &&
           std::chrono::steady_clock::now() < end) {
      fs::remove_all(folder, ignored);  // Fails while somebody adds to it.
      ::poll(nullptr, 0, 10);
    }
  }

  // A `troupe up` that was killed may just have started a daemon that it could not note any more.
  // Returns how many of our executables run in the folder.
  static size_t end_unrecorded(const fs::path& folder) {
    size_t found = 0;
    std::error_code failed;
    const fs::path ours = fs::read_symlink("/proc/self/exe", failed).parent_path();
    for (fs::directory_iterator entry{"/proc", failed}, last; !failed && entry != last;
         entry.increment(failed)) {
      const int pid = std::atoi(entry->path().filename().c_str());
      if (pid <= 0 || pid == ::getpid()) continue;
      // Read after the descriptor was taken: from then on it cannot become another's.
      const FileDescriptor handle{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
      std::error_code gone;
      if (fs::read_symlink(entry->path() / "exe", gone).parent_path() != ours || gone) continue;
      const auto line = read_file(entry->path() / "cmdline");
      if (!line || line->find(folder.string() + "/") == line->npos) continue;
      ::syscall(SYS_pidfd_send_signal, handle.get(), SIGKILL, nullptr, 0);
      ++found;
    }
    return found;
  }

  FileDescriptor writing_;
  pid_t pid_;
};

// What the drill's program prints. Errors: cancelled (Ctrl-C; it was ended).
Result<std::string> hold(const std::string& name, const fs::path& state, int rounds) {
  std::error_code failed;
  const std::string program =
      fs::read_symlink("/proc/self/exe", failed).parent_path() / "troupe-drill";
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return error(Code::exhausted, "pipe: out of descriptors");
  const FileDescriptor reading{ends[0]};
  FileDescriptor writing{ends[1]};
  std::vector<std::string> arguments{program, name, state, std::to_string(rounds)};
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t self = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return error(Code::exhausted, std::string("fork: ") + std::strerror(errno));
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != self) ::_exit(127);  // It died before.
    ::dup2(writing.get(), 1);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  writing.reset();
  std::string text;
  bool is_open = true;
  while (is_open && !was_interrupted()) {
    pollfd waiting{reading.get(), POLLIN, 0};
    if (::poll(&waiting, 1, 100) <= 0) continue;
    std::array<char, 4096> buffer;
    const ssize_t got = ::read(reading.get(), buffer.data(), buffer.size());
    if (got > 0) text.append(buffer.data(), static_cast<size_t>(got));
    is_open = got > 0;
  }
  if (is_open) ::kill(pid, SIGKILL);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (was_interrupted()) return error(Code::cancelled, "interrupted");
  if (!text.empty()) return text;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127) {
    return error(Code::not_found, "cannot run " + program);
  }
  return error(Code::internal, fmt::format("{} ended without a word (status {})", program, status));
}

Result<json::object> judge(const Drill& drill, const std::string& text) {
  boost::system::error_code failed;
  const json::value said = json::parse(text, failed);
  if (failed || !said.is_object()) return error(Code::internal, "the drill said: " + text);
  const auto detect = said.at("detect_s").to_number<double>();
  const auto recover = said.at("recover_s").to_number<double>();
  json::array why = said.at("complaints").as_array();
  if (why.empty() && detect > drill.detect_within_s) why.emplace_back("it was noticed too late");
  if (why.empty() && recover > drill.recover_within_s) why.emplace_back("it was whole too late");
  const bool is_lost = said.at("lost").to_number<uint64_t>() > 0;
  const auto rounded = [](double seconds) { return std::round(seconds * 1000) / 1000; };
  return json::object{{"drill", drill.name},
                      {"result", why.empty() && !is_lost ? "pass" : "fail"},
                      {"rounds", drill.rounds},
                      {"detect_s", rounded(detect)},
                      {"detect_within_s", drill.detect_within_s},
                      {"recover_s", rounded(recover)},
                      {"recover_within_s", drill.recover_within_s},
                      {"acknowledged", said.at("acknowledged")},
                      {"lost", said.at("lost")},
                      {"why", std::move(why)}};
}

Result<json::array> hold_all(const DrillCommand& command) {
  TROUPE_TRY(const fs::path folder, make_folder());
  TROUPE_TRY(const Cleaner cleaner, Cleaner::start(folder));
  json::array rows;
  for (Drill drill : drills) {
    if (command.name != "all" && command.name != drill.name) continue;
    if (command.rounds > 0) drill.rounds = command.rounds;
    if (command.detect_within_s > 0) drill.detect_within_s = command.detect_within_s;
    if (command.recover_within_s > 0) drill.recover_within_s = command.recover_within_s;
    fmt::print(stderr, "{}: {} in {}\n", drill.name,
               drill.rounds == 1 ? "one round" : fmt::format("{} rounds", drill.rounds),
               (folder / drill.name).string());
    std::error_code failed;
    fs::create_directory(folder / drill.name, failed);
    if (failed) return error(Code::unavailable, "make a folder for the drill: " + failed.message());
    TROUPE_TRY(const std::string text,
               hold(drill.name, folder / drill.name / "state", drill.rounds));
    TROUPE_TRY(auto row, judge(drill, text));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

int run_drill(const CommonOptions& common, const DrillCommand& command) {
  watch_interrupts();
  const auto rows = hold_all(command);
  if (!rows) return fail(rows.error());
  print(*rows, common.format);
  bool passed = true;
  for (const json::value& row : *rows) passed = passed && row.at("result").as_string() == "pass";
  return passed ? 0 : 1;
}

}  // namespace troupe::tools
