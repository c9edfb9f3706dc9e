// A guard against getting slower: the instructions of a handful of paths, which are repeatable
// where seconds are not, against those in bench/baseline.json. Runs itself under callgrind; fails
// if a row grew by more than a tenth. --write makes what was measured the new baseline.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>

#include "bench/gate/compare.h"
#include "bench/gate/rows.h"

extern char** environ;

namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

using bench::Figures;

// Under callgrind: each row leaves a dump with its name.
void run_rows() {
  for (const bench::Row& row : bench::gate_rows()) {
    const auto path = row.make();
    for (uint64_t i = 0; i < row.times / 8; ++i) path();
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
    for (uint64_t i = 0; i < row.times; ++i) path();
    CALLGRIND_DUMP_STATS_AT(row.name.data());
    CALLGRIND_STOP_INSTRUMENTATION;
  }
}

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::temp_directory_path() / "troupe-gate-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

void run_under_callgrind(const fs::path& folder) {
  const std::string self = fs::read_symlink("/proc/self/exe").string();
  const std::string out = "--callgrind-out-file=" + (folder / "out").string();
  std::vector<std::string> words{
      "valgrind", "--tool=callgrind", "--instr-atstart=no", "--quiet", out, self, "--rows"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t pid = 0;
  if (::posix_spawnp(&pid, "valgrind", nullptr, nullptr, arguments.data(), environ) != 0) {
    throw std::runtime_error("valgrind does not start: tools/install-deps.sh installs it");
  }
  int status = 0;
  if (::waitpid(pid, &status, 0) != pid || status != 0) {
    throw std::runtime_error("the rows failed under callgrind");
  }
}

// A dump says "desc: Trigger: Client Request: NAME" and "summary: INSTRUCTIONS".
Figures read_dumps(const fs::path& folder) {
  std::map<std::string, uint64_t> times;
  for (const bench::Row& row : bench::gate_rows()) times[std::string{row.name}] = row.times;
  constexpr std::string_view trigger = "desc: Trigger: Client Request: ";
  constexpr std::string_view summary = "summary: ";
  Figures figures;
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::ifstream dump{entry.path()};
    std::string name;
    for (std::string line; std::getline(dump, line);) {
      if (line.starts_with(trigger)) name = line.substr(trigger.size());
      if (line.starts_with(summary) && times.contains(name)) {
        figures[name] += std::strtod(line.c_str() + summary.size(), nullptr) /
                         static_cast<double>(times.at(name));
      }
    }
  }
  if (figures.size() != times.size()) throw std::runtime_error("callgrind left no figure of a row");
  return figures;
}

Figures read_baseline() {
  std::ifstream file{TROUPE_BASELINE};
  std::stringstream text;
  text << file.rdbuf();
  Figures figures;
  if (text.str().empty()) return figures;
  const json::value parsed = json::parse(text.str());
  for (const auto& row : parsed.as_object()) {
    figures[std::string{row.key()}] = row.value().to_number<double>();
  }
  return figures;
}

void write_baseline(const Figures& figures) {
  std::ofstream file{TROUPE_BASELINE};
  file << "{\n";
  size_t left = figures.size();
  for (const auto& [name, value] : figures) {
    file << "  \"" << name << "\": " << std::lround(value) << (--left > 0 ? ",\n" : "\n");
  }
  file << "}\n";
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "--rows") {
    run_rows();
    // The ports' watchers need no orderly end.
    std::fflush(nullptr);
    ::_exit(0);
  }
  if (argc > 2 || (!what.empty() && what != "--write")) {
    std::cerr << "usage: bench_gate [--write]\n";
    return 2;
  }
  const Folder folder;
  run_under_callgrind(folder.path());
  const Figures figures = read_dumps(folder.path());
  if (what == "--write") write_baseline(figures);
  const auto complaints = bench::compare(figures, read_baseline(), std::cout);
  for (const std::string& complaint : complaints) std::cerr << complaint << "\n";
  return complaints.empty() ? 0 : 1;
} catch (const std::exception& failed) {
  std::cerr << failed.what() << "\n";
  return 1;
}
