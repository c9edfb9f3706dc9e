#include "drill/cluster.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/file_descriptor.h"

namespace troupe::drill {

namespace json = boost::json;
namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

std::string read_all(const fs::path& path) {
  std::ifstream in{path, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

FileDescriptor new_file(const fs::path& path) {
  return FileDescriptor{::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)};
}

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;
};

// The tool beside this program. Its output goes to files, which nobody has to read meanwhile.
Result<Outcome> run_tool(const fs::path& folder, std::vector<std::string> arguments) {
  std::error_code failed;
  const fs::path tool = fs::read_symlink("/proc/self/exe", failed).parent_path() / "troupe";
  arguments.insert(arguments.begin(), tool.string());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const FileDescriptor out = new_file(folder / "tool.out");
  const FileDescriptor err = new_file(folder / "tool.err");
  if (!out.is_open() || !err.is_open()) {
    return error(Code::unavailable,
                 fmt::format("write in {}: {}", folder.string(), std::strerror(errno)));
  }
  const pid_t self = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return error(Code::exhausted, std::string("fork: ") + std::strerror(errno));
  if (pid == 0) {
    // It does not outlive a drill that is ended.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != self) ::_exit(127);
    ::dup2(out.get(), 1);
    ::dup2(err.get(), 2);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return Outcome{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
                 read_all(folder / "tool.out"), read_all(folder / "tool.err")};
}

}  // namespace

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void pause(std::chrono::milliseconds time) {
  ::poll(nullptr, 0, static_cast<int>(time.count()));
}

Cluster::~Cluster() {
  if (!up_) return;
  const Status ended = down();
  (void)ended;  // Whoever started the drill looks after what is left.
}

Status Cluster::up(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"up", "--gateway-port", "-1"});
  TROUPE_TRY(const auto summary, ask(std::move(arguments)));
  (void)summary;
  up_ = true;
  return ok();
}

Status Cluster::down() {
  up_ = false;
  TROUPE_TRY(const auto summary, ask({"down"}));
  (void)summary;
  return ok();
}

Result<json::value> Cluster::ask(std::vector<std::string> arguments) const {
  const std::string name = arguments.front();
  for (const std::string& more :
       {std::string("--state"), state_.string(), std::string("-o"), std::string("json")}) {
    arguments.push_back(more);
  }
  TROUPE_TRY(const Outcome outcome, run_tool(state_.parent_path(), std::move(arguments)));
  boost::system::error_code failed;
  json::value value = json::parse(outcome.out, failed);
  if (outcome.status == 0 && !failed) return value;
  std::string said = outcome.err;
  while (!said.empty() && said.back() == '\n') said.pop_back();
  return error(Code::unavailable,
               fmt::format("'troupe {}' ended with {}: {}", name, outcome.status, said));
}

Result<json::value> Cluster::read_record() const {
  boost::system::error_code failed;
  json::value record = json::parse(read_all(state_ / "cluster.json"), failed);
  if (failed) return error(Code::data_loss, "cluster.json is damaged: " + failed.message());
  return record;
}

Status Cluster::write_record(const json::value& record) const {
  const fs::path beside = state_ / "cluster.json.drill";
  std::ofstream{beside} << json::serialize(record) << "\n";
  std::error_code failed;
  fs::rename(beside, state_ / "cluster.json", failed);
  if (failed) return error(Code::unavailable, "write cluster.json: " + failed.message());
  return ok();
}

Result<pid_t> Cluster::pid_of(const std::string& daemon) const {
  TROUPE_TRY(const json::value record, read_record());
  for (const json::value& item : record.at("daemons").as_array()) {
    if (item.at("name").as_string() == daemon) return item.at("pid").to_number<pid_t>();
  }
  return error(Code::not_found, "the cluster has no " + daemon);
}

Result<Clock::time_point> Cluster::kill(const std::string& daemon) const {
  TROUPE_TRY(const pid_t pid, pid_of(daemon));
  const FileDescriptor handle{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
  if (!handle.is_open()) return error(Code::not_found, daemon + " does not run");
  const auto moment = Clock::now();
  ::syscall(SYS_pidfd_send_signal, handle.get(), SIGKILL, nullptr, 0);
  pollfd gone{handle.get(), POLLIN, 0};
  if (::poll(&gone, 1, 10'000) != 1) {
    return error(Code::deadline_exceeded, daemon + " did not end when it was killed");
  }
  return moment;
}

bool Cluster::has_alive(size_t workers) const {
  const auto nodes = ask({"list", "nodes"});
  if (!nodes) return false;
  size_t alive = 0;
  for (const json::value& node : nodes->as_array()) {
    if (node.at("state").as_string() == "alive") ++alive;
  }
  return alive == workers;
}

std::string Cluster::log_of(const std::string& daemon) const {
  return read_all(state_ / "logs" / (daemon + ".log"));
}

}  // namespace troupe::drill
