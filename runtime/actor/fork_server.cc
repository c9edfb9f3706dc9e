#include "actor/fork_server.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "protocol/codec.h"
#include "protocol/fork_server.h"
#include "transport/descriptor_passing.h"

namespace troupe::actor {
namespace {

constexpr int inherited_descriptor = 3;

// The child is the worker's, which learns of its end and reaps it; glibc's fork cannot ask for
// that. So what glibc does for the one thread of the child is done here: it keeps the thread's id,
// and a list of its robust mutexes, in memory that the kernel is told of. Returns as fork does.
pid_t fork_sibling() {
  uint64_t thread_id = 0;
  void* robust_list = nullptr;
  size_t robust_size = 0;
  if (::prctl(PR_GET_TID_ADDRESS, &thread_id) != 0) return -1;
  if (::syscall(SYS_get_robust_list, 0, &robust_list, &robust_size) != 0) return -1;
  clone_args how{};
  how.flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  how.child_tid = thread_id;
  const auto child = static_cast<pid_t>(::syscall(SYS_clone3, &how, sizeof how));
  if (child == 0 && robust_list != nullptr) {
    ::syscall(SYS_set_robust_list, robust_list, robust_size);
  }
  return child;
}

// What the kernel knows of where this program's parts lie (proc(5), fields of /proc/PID/stat), to
// be told again with an environment elsewhere.
std::optional<prctl_mm_map> layout_of_memory() {
  std::ifstream stat{"/proc/self/stat"};
  std::string text{std::istreambuf_iterator<char>{stat}, {}};
  const size_t name_end = text.rfind(')');  // The name may have spaces in it.
  if (name_end == text.npos) return std::nullopt;
  std::istringstream rest{text.substr(name_end + 1)};
  std::vector<std::string> fields(3);  // Numbered from 1, and the name is the second.
  for (std::string field; rest >> field;) fields.push_back(field);
  if (fields.size() < 52) return std::nullopt;
  const auto number = [&](size_t field) {
    return std::strtoull(fields[field].c_str(), nullptr, 10);
  };
  prctl_mm_map map{};
  map.start_code = number(26);
  map.end_code = number(27);
  map.start_stack = number(28);
  map.start_data = number(45);
  map.end_data = number(46);
  map.start_brk = number(47);
  map.arg_start = number(48);
  map.arg_end = number(49);
  map.exe_fd = ~0U;
  return map;
}

// Also for those who read /proc/PID/environ, if the kernel lets us say where it is.
void replace_environment(const std::vector<protocol::NamedValue>& variables,
                         std::optional<prctl_mm_map> map) {
  size_t size = 1;
  for (const auto& [name, value] : variables) size += name.size() + value.size() + 2;
  char* const block = new char[size];  // Stays, as an environment does.
  ::clearenv();
  char* entry = block;
  for (const auto& [name, value] : variables) {
    char* end = std::copy(name.begin(), name.end(), entry);
    *end++ = '=';
    end = std::copy(value.begin(), value.end(), end);
    *end++ = '\0';
    ::putenv(entry);
    entry = end;
  }
  if (!map) return;
  map->brk = reinterpret_cast<uintptr_t>(::sbrk(0));
  map->env_start = reinterpret_cast<uintptr_t>(block);
  map->env_end = reinterpret_cast<uintptr_t>(entry);
  ::prctl(PR_SET_MM, PR_SET_MM_MAP, &*map, sizeof *map, 0);
}

// In the child: becomes what the worker asked for.
void become(const protocol::ForkProcess& wanted, std::vector<FileDescriptor> given, char* argument,
            const std::optional<prctl_mm_map>& map) {
  ::setpgid(0, 0);
  if (given.size() > 2 && ::fchdir(given[2].get()) != 0) ::_exit(127);
  ::dup2(given[0].get(), inherited_descriptor);
  ::dup2(given[1].get(), STDOUT_FILENO);
  ::dup2(given[1].get(), STDERR_FILENO);
  given.clear();
  ::syscall(SYS_close_range, inherited_descriptor + 1, ~0U, 0);
  replace_environment(wanted.environment, map);
  const std::string id = wanted.process.to_string();  // Tells processes apart in ps.
  std::copy_n(id.begin(), std::min(id.size(), std::strlen(argument)), argument);
}

}  // namespace

void serve_forks(int argc, char** argv) {
  if (argc < 2 || argv[1] != protocol::fork_server_argument) return;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto map = layout_of_memory();
  std::vector<uint8_t> packet(protocol::fork_packet_bytes_max);
  for (;;) {
    std::vector<FileDescriptor> given;
    const ssize_t size = transport::receive_with_descriptors(inherited_descriptor, packet, given);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) ::_exit(0);  // The worker is gone.
    const auto wanted =
        protocol::decode<protocol::ForkProcess>({packet.data(), static_cast<size_t>(size)});
    protocol::ProcessForked reply;
    if (!wanted || given.size() < 2) {
      reply.error_number = EBADMSG;
    } else {
      const pid_t child = fork_sibling();
      if (child == 0) return become(*wanted, std::move(given), argv[1], map);
      if (child < 0) reply.error_number = static_cast<uint32_t>(errno);
      if (child > 0) reply.pid = static_cast<uint32_t>(child);
    }
    const Bytes answer = protocol::encode(reply);
    ssize_t sent = 0;
    do {
      sent = transport::send_with_descriptors(inherited_descriptor, answer, {});
    } while (sent < 0 && errno == EINTR);
    if (sent < 0) ::_exit(0);
  }
}

}  // namespace troupe::actor
