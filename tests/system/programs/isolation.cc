// An actor whose node is cut off: `isolation MARKS LIMIT_MS` exits 0 if no two of its processes
// were ever there at once.
#include <signal.h>
#include <troupe/troupe.h>

#include <fstream>

#include "check.h"

namespace {

bool is_alive(pid_t pid) {
  std::ifstream stat{"/proc/" + std::to_string(pid) + "/stat"};
  std::string text;
  std::getline(stat, text);
  const auto state = text.rfind(") ");  // Behind its name.
  return state != std::string::npos && text.substr(state + 2, 1).find_first_of("ZX") != 0;
}

}  // namespace

// Notes its process, and whether the one that is noted in the file still runs.
class Lone {
 public:
  explicit Lone(std::string marks) {
    pid_t before = 0;
    std::ifstream{marks} >> before;
    const std::string note = note_of(before != 0 && is_alive(before));
    std::ofstream{marks + ".new"} << note;
    std::filesystem::rename(marks + ".new", marks);
  }
  std::vector<int64_t> pids() { return {::getpid(), ::getppid()}; }

 private:
  static std::string note_of(bool overlaps) {
    return std::to_string(::getpid()) + (overlaps ? " overlaps" : " alone");
  }
};
TROUPE_ACTOR(Lone(std::string), pids);

int main(int argc, char** argv) try {
  if (argc < 3) return 2;
  const auto session = troupe::connect().value();
  const auto actor =
      session
          .create<Lone>({.max_restarts = -1,
                         .placement = {.labels = {troupe::label::equals("n", "1").soft(),
                                                  troupe::label::not_equals("n", "0")}},
                         .isolation_limit = std::chrono::milliseconds(std::stoll(argv[2]))},
                        std::string(argv[1]))
          .value();
  const auto pids = actor.call<&Lone::pids>().get(deadline).value();
  const auto worker = static_cast<pid_t>(pids[1]);
  // As a machine behind a cut link: its processes go on, and nobody hears of them.
  REQUIRE(::kill(worker, SIGSTOP) == 0);
  int64_t next = pids[0];
  std::string note;
  const bool has_next = eventually([&] {
    std::ifstream{argv[1]} >> next >> note;
    return next != pids[0];
  });
  ::kill(worker, SIGCONT);
  REQUIRE(has_next);
  std::cout << note << "\n";
  return 0;
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
