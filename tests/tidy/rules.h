// The house rules that a compiler does not check. Each is a pure function over one file.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace troupe::tidy {

struct Finding {
  std::string file;
  int line = 0;
  std::string what;
};
using Findings = std::vector<Finding>;

// `path` is relative to the root of the tree, with forward slashes.
struct File {
  std::string path;
  std::string text;
};

// Includes follow the arrows of DESIGN.md.
Findings check_arrows(const File& file);
// A third party's headers appear in its adapter's folder alone.
Findings check_adapters(const File& file);
// What GCC 12 miscompiles, or crashes on: co_await with a braced argument, in a branch of ?:,
// behind && or ||, at the beginning of a while's condition, or in ({ }).
Findings check_coroutines(const File& file);
// No file or folder is called util, common, helper, manager or the like.
Findings check_name(const File& file);
Findings check_pragma_once(const File& file);
// Nothing sleeps in runtime/ and tests/: time is given.
Findings check_sleep(const File& file);
// No path of someone's own machine.
Findings check_machine_paths(const File& file);

// All of them.
Findings check_all(const File& file);

}  // namespace troupe::tidy
