// Makes copies of sources that have bugs which can be switched on.
//
//   plant_bugs BUGS SOURCE_ROOT FILE OUT    a copy of FILE with all of its bugs
//   plant_bugs BUGS --names OUT             a header with the names
//
// BUGS has entries of lines: "bug NAME", "what TEXT", then "seam" (it is in the simulator's own
// code), or "file PATH", "old", the lines to replace, "new", the lines instead, "end". The old
// lines must be there exactly once, so that a change of the source cannot lose a bug unseen.
// PLANTED in the new lines says whether the bug is switched on.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

struct Bug {
  std::string name;
  std::string what;
  std::string file;  // Empty: in the simulator.
  std::string old_text;
  std::string new_text;
};

[[noreturn]] void fail(const std::string& why) {
  std::cerr << "plant_bugs: " << why << "\n";
  std::exit(1);
}

std::string rest_of(const std::string& line, size_t from) {
  return line.size() > from ? line.substr(from) : std::string();
}

std::vector<Bug> read_bugs(const std::string& path) {
  std::ifstream in(path);
  if (!in) fail("cannot read " + path);
  std::vector<Bug> bugs;
  std::string* text = nullptr;  // Where lines go now.
  for (std::string line; std::getline(in, line);) {
    if (line == "end") {
      bugs.back().old_text.pop_back();  // The last line may be the beginning of one.
      bugs.back().new_text.pop_back();
      text = nullptr;
    } else if (line == "new") {
      text = &bugs.back().new_text;
    } else if (text != nullptr) {
      *text += line + "\n";
    } else if (line.rfind("bug ", 0) == 0) {
      bugs.push_back({rest_of(line, 4), {}, {}, {}, {}});
    } else if (line.rfind("what ", 0) == 0) {
      bugs.back().what = rest_of(line, 5);
    } else if (line.rfind("file ", 0) == 0) {
      bugs.back().file = rest_of(line, 5);
    } else if (line == "old") {
      text = &bugs.back().old_text;
    } else if (!line.empty() && line != "seam" && line[0] != '#') {
      fail("not understood: " + line);
    }
  }
  return bugs;
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

void plant(std::string& source, const Bug& bug) {
  const size_t at = source.find(bug.old_text);
  if (at == std::string::npos) fail(bug.name + ": its lines are not in " + bug.file);
  if (source.find(bug.old_text, at + 1) != std::string::npos) {
    fail(bug.name + ": its lines are more than once in " + bug.file);
  }
  std::string changed = bug.new_text;
  replace_all(changed, "PLANTED", "::troupe::sim::is_planted(\"" + bug.name + "\")");
  source.replace(at, bug.old_text.size(), changed);
}

std::string copy_of(const std::vector<Bug>& bugs, const std::string& root,
                    const std::string& file) {
  std::ifstream in(root + "/" + file);
  if (!in) fail("cannot read " + file);
  std::stringstream text;
  text << in.rdbuf();
  std::string source = text.str();
  for (const Bug& bug : bugs) {
    if (bug.file == file) plant(source, bug);
  }
  return "// Made from " + file + ".\n#include \"tests/sim/planted.h\"\n" + source;
}

std::string names_of(const std::vector<Bug>& bugs) {
  std::string out = "// Made by plant_bugs.\n";
  for (const Bug& bug : bugs) out += "{\"" + bug.name + "\", \"" + bug.what + "\"},\n";
  return out;
}

}  // namespace

int main(int count, char** values) {
  if (count < 4) fail("usage: plant_bugs BUGS (SOURCE_ROOT FILE OUT | --names OUT)");
  const std::vector<Bug> bugs = read_bugs(values[1]);
  const bool names = std::string(values[2]) == "--names";
  if (!names && count < 5) fail("no file");
  const std::string out = names ? names_of(bugs) : copy_of(bugs, values[2], values[3]);
  std::ofstream file(names ? values[3] : values[4]);
  file << out;
  return file.good() ? 0 : 1;
}
