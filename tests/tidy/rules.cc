#include "rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>

#include "scan.h"

namespace troupe::tidy {
namespace {

using Folders = std::set<std::string_view>;

// What each folder may include besides itself.
const std::map<std::string_view, Folders>& arrows() {
  static const Folders core = {"runtime/base",     "runtime/protocol", "runtime/transport",
                               "runtime/security", "runtime/metadata", "object_store",
                               "runtime/packages"};
  static const auto with = [](Folders folders, std::initializer_list<std::string_view> more) {
    folders.insert(more);
    return folders;
  };
  static const Folders plugin = {"plugins/llm", "scheduler", "runtime/base", "sdk/include"};
  static const Folders below_core = {"runtime/base", "runtime/protocol", "runtime/transport"};
  static const std::map<std::string_view, Folders> allowed = {
      {"runtime/base", {}},
      {"runtime/protocol", {"runtime/base"}},
      {"runtime/transport", {"runtime/base", "runtime/protocol"}},
      {"runtime/security", below_core},
      {"runtime/metadata", below_core},
      {"object_store", below_core},
      {"runtime/packages", with(below_core, {"runtime/security"})},
      {"runtime/client",
       with(below_core, {"runtime/security", "object_store", "runtime/packages"})},
      {"runtime/head", with(core, {"runtime/client", "scheduler"})},
      // The interface that it implements is the head's.
      {"runtime/etcd", with(below_core, {"runtime/security", "runtime/head"})},
      {"runtime/worker", with(core, {"runtime/client"})},
      {"runtime/actor", with(core, {"runtime/client", "sdk/include"})},
      {"runtime/gateway", with(core, {"runtime/client"})},
      {"scheduler", {"runtime/base"}},
      // libtroupe holds the actor host too, so that user code and host share one client.
      {"sdk", with(below_core, {"runtime/client", "runtime/security", "runtime/packages",
                                "runtime/actor", "object_store", "sdk/include"})},
      {"sdk/include", with(below_core, {"runtime/client", "object_store"})},
      {"plugins/llm", {"runtime/base"}},
      {"plugins/training", plugin},
      {"plugins/inference", plugin},
      {"tools",
       with(core, {"runtime/client", "runtime/head", "runtime/etcd", "runtime/worker",
                   "runtime/actor", "runtime/gateway", "scheduler", "sdk", "sdk/include"})},
      // A program like a user's.
      {"tools/drill", {"runtime/base", "sdk/include"}},
  };
  return allowed;
}

bool starts_with(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}
bool ends_with(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}
bool is_in(std::string_view path, std::string_view folder) {
  return starts_with(path, folder) && path.size() > folder.size() && path[folder.size()] == '/';
}

// The longest folder with arrows that the path lies in; empty for tests, bench and others.
std::string_view folder_of(std::string_view path) {
  std::string_view found;
  for (const auto& [folder, allowed] : arrows())
    if (is_in(path, folder) && folder.size() > found.size()) found = folder;
  return found;
}

// Where an include path leads: runtime/, plugins/ and tools/ are on the search path, and so is the
// root.
std::string_view folder_of_include(std::string_view path) {
  if (is_in(path, "troupe")) return "sdk/include";
  if (const std::string_view folder = folder_of(path); !folder.empty()) return folder;
  for (const std::string_view root : {"runtime/", "plugins/", "tools/"})
    for (const auto& [folder, allowed] : arrows())
      if (starts_with(folder, root) && is_in(path, folder.substr(root.size()))) return folder;
  return {};
}

bool is_cpp(std::string_view path) {
  for (const std::string_view end : {".h", ".cc", ".c", ".cu", ".cuh", ".inc"})
    if (ends_with(path, end)) return true;
  return false;
}

struct Adapter {
  std::string_view name;
  std::string_view folder;
  std::vector<std::string_view> prefixes;
  std::vector<std::string_view> suffixes;
  std::string_view also = {};  // A file that programs include if they use the library, too.
};

const std::vector<Adapter>& adapters() {
  static const std::vector<Adapter> list = {
      {"RocksDB", "runtime/metadata", {"rocksdb/"}, {}},
      {"oneDNN", "plugins/llm", {"dnnl", "oneapi/"}, {}},
      {"Cap'n Proto",
       "runtime/protocol",
       {"capnp/", "kj/"},
       {".capnp.h"},
       "sdk/include/troupe/capnp.h"},
      {"CUDA",
       "plugins/llm/cuda",
       {"cuda", "cublas", "cudnn", "cooperative_groups", "driver_types", "nvml", "cub/", "thrust/"},
       {}},
      {"NCCL", "plugins/llm/cuda", {"nccl"}, {}},
      {"Abseil", "scheduler", {"absl/"}, {}},
  };
  return list;
}

bool belongs_to(const Adapter& adapter, std::string_view include) {
  const auto starts = [&](std::string_view prefix) { return starts_with(include, prefix); };
  const auto ends = [&](std::string_view suffix) { return ends_with(include, suffix); };
  return std::any_of(adapter.prefixes.begin(), adapter.prefixes.end(), starts) ||
         std::any_of(adapter.suffixes.begin(), adapter.suffixes.end(), ends);
}

// ---- Coroutines -------------------------------------------------------------------------------

// The end of the expression that starts at `at`: its semicolon, or what closes around it.
size_t end_of_expression(std::string_view code, size_t at) {
  int depth = 0;
  for (size_t i = at; i < code.size(); ++i) {
    const char c = code[i];
    if (c == '(' || c == '{' || c == '[') ++depth;
    if ((c == ')' || c == '}' || c == ']') && --depth < 0) return i;
    if (depth == 0 && (c == ';' || c == ',')) return i;
  }
  return code.size();
}

// Is the brace at `open` a list or an aggregate temporary, and not a lambda's body?
bool is_braced_argument(std::string_view code, size_t open) {
  size_t at = before_space(code, open);
  if (at == std::string_view::npos) return false;
  if (code[at] == '(' || code[at] == ',') return true;
  if (code[at] == '>') {  // Type<X>{...}; a trailing return type is dealt with below.
    int depth = 0;
    for (;; --at) {
      if (code[at] == '>') ++depth;
      if (code[at] == '<' && --depth == 0) break;
      if (at == 0) return false;
    }
    at = before_space(code, at);
    if (at == std::string_view::npos) return false;
  }
  if (!is_word(code[at])) return false;
  const size_t end = at + 1;
  while (at > 0 && is_word(code[at - 1])) --at;
  const std::string_view name = code.substr(at, end - at);
  if (name.front() < 'A' || name.front() > 'Z') return false;  // mutable, noexcept, seconds.
  while (at > 0 && (is_word(code[at - 1]) || code[at - 1] == ':')) --at;
  const size_t before = before_space(code, at);
  const bool trailing_return = before != std::string_view::npos && before > 0 &&
                               code[before] == '>' && code[before - 1] == '-';
  return !trailing_return;
}

bool has_braced_argument(std::string_view code, size_t at) {
  const size_t end = end_of_expression(code, at);
  int parentheses = 0;
  for (size_t i = at; i < end; ++i) {
    if (code[i] == '(') ++parentheses;
    if (code[i] == ')') --parentheses;
    if (code[i] != '{') continue;
    if (parentheses > 0 && is_braced_argument(code, i)) return true;
    i = closing(code, i);  // A lambda's body has statements of its own.
  }
  return false;
}

// Does a `?` stand before `at` in the same expression?
bool is_in_conditional(std::string_view code, size_t at) {
  int depth = 0;
  for (size_t i = at; i-- > 0;) {
    const char c = code[i];
    if (c == ')' || c == ']') ++depth;
    if ((c == '(' || c == '[') && depth > 0) {
      --depth;
      continue;
    }
    if (depth > 0) continue;
    if (c == ';' || c == '{' || c == '}' || c == ',') return false;
    if (c == '?') return true;
  }
  return false;
}

// Does `&&` or `||` stand right before the expression at `at`? GCC 12 awaits it in any case, or
// crashes.
bool is_short_circuited(std::string_view code, size_t at) {
  size_t i = before_space(code, at);
  while (i != std::string_view::npos && (code[i] == '!' || code[i] == '(')) {
    i = before_space(code, i);
  }
  return i != std::string_view::npos && i > 0 && code[i] == code[i - 1] &&
         (code[i] == '&' || code[i] == '|');
}

// Does the condition of a while begin with the expression at `at`? GCC 12 crashes on some of these
// at -O0, as tests are compiled.
bool is_condition_of_while(std::string_view code, size_t at) {
  constexpr std::string_view loop = "while";
  size_t i = before_space(code, at);
  while (i != std::string_view::npos && (code[i] == '!' || code[i] == '(')) {
    i = before_space(code, i);
  }
  if (i == std::string_view::npos || i + 1 < loop.size()) return false;
  const size_t begin = i + 1 - loop.size();
  return code.substr(begin, loop.size()) == loop && (begin == 0 || !is_word(code[begin - 1]));
}

}  // namespace

Findings check_arrows(const File& file) {
  Findings findings;
  const std::string_view from = folder_of(file.path);
  if (from.empty() || !is_cpp(file.path)) return findings;
  const Folders& allowed = arrows().at(from);
  for (const Include& include : includes(file.text)) {
    const std::string_view to = folder_of_include(include.path);
    if (to.empty()) {
      const bool of_house = include.quoted && include.path.find('/') != std::string::npos;
      if (of_house)
        findings.push_back({file.path, include.line, include.path + " is in no known folder"});
      continue;
    }
    if (to == from || allowed.count(to) != 0) continue;
    findings.push_back({file.path, include.line,
                        fmt::format("{} may not include {} ({})", from, to, include.path)});
  }
  return findings;
}

Findings check_adapters(const File& file) {
  Findings findings;
  if (!is_cpp(file.path) || is_in(file.path, "tests") || is_in(file.path, "bench")) return findings;
  for (const Include& include : includes(file.text)) {
    for (const Adapter& adapter : adapters()) {
      if (!belongs_to(adapter, include.path) || is_in(file.path, adapter.folder) ||
          file.path == adapter.also) {
        continue;
      }
      findings.push_back({file.path, include.line,
                          fmt::format("{} belongs to {}, and {} to {}", include.path, adapter.name,
                                      adapter.name, adapter.folder)});
    }
  }
  return findings;
}

Findings check_coroutines(const File& file) {
  Findings findings;
  if (!is_cpp(file.path)) return findings;
  const std::string code = code_only(file.text);
  const std::vector<size_t> awaits = find_words(code, "co_await");
  const auto report = [&](size_t at, std::string what) {
    findings.push_back({file.path, line_of(code, at), std::move(what)});
  };
  for (const size_t at : awaits) {
    if (has_braced_argument(code, at))
      report(at, "co_await with a braced argument: name it on the line before");
    if (is_in_conditional(code, at)) report(at, "co_await in a branch of ?:");
    if (is_short_circuited(code, at))
      report(at, "co_await behind && or ||: await it in a statement of its own");
    if (is_condition_of_while(code, at))
      report(at, "co_await begins a while's condition: await it in the body");
  }
  for (size_t open = code.find('('); open != std::string::npos; open = code.find('(', open + 1)) {
    const size_t brace = skip_space(code, open + 1);
    if (brace >= code.size() || code[brace] != '{') continue;
    const size_t close = closing(code, brace);
    const std::string_view body = std::string_view(code).substr(brace, close - brace);
    if (body.find(';') != body.npos && !find_words(body, "co_await").empty())
      report(open, "co_await in a statement expression ({ })");
  }
  return findings;
}

Findings check_name(const File& file) {
  static const Folders banned = {"util",   "utils",   "utility", "utilities", "common",
                                 "helper", "helpers", "manager", "managers",  "misc"};
  Findings findings;
  std::string word;
  const auto end_word = [&] {
    std::transform(word.begin(), word.end(), word.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (banned.count(word) != 0)
      findings.push_back({file.path, 1, "'" + word + "' in a name explains nothing"});
    word.clear();
  };
  for (const char c : file.path) {
    if (c == '/' || c == '_' || c == '-' || c == '.') {
      end_word();
    } else {
      word += c;
    }
  }
  end_word();
  return findings;
}

Findings check_pragma_once(const File& file) {
  if (!ends_with(file.path, ".h") && !ends_with(file.path, ".cuh")) return {};
  if (file.path == "sdk/include/troupe/plugin.h") return {};  // C99, with a guard.
  const std::string code = code_only(file.text);
  if (code.find("#pragma once") != std::string::npos) return {};
  return {{file.path, 1, "no #pragma once"}};
}

Findings check_sleep(const File& file) {
  Findings findings;
  if (!is_cpp(file.path) || (!is_in(file.path, "runtime") && !is_in(file.path, "tests")))
    return findings;
  const std::string code = code_only(file.text);
  for (const std::string_view word : {"sleep_for", "sleep_until", "usleep", "nanosleep"})
    for (const size_t at : find_words(code, word)) {
      // Our own sleep_for(clock, ...) waits on the clock that it was given; the SDK's is for
      // coroutines, on the session's.
      const bool ours =
          word.starts_with("sleep") && (at < 2 || code[at - 1] != ':' ||
                                        std::string_view{code}.substr(0, at).ends_with("troupe::"));
      if (ours) continue;
      findings.push_back({file.path, line_of(code, at), std::string(word) + ": time is given"});
    }
  return findings;
}

Findings check_machine_paths(const File& file) {
  Findings findings;
  if (is_in(file.path, "tests/tidy")) return findings;  // Names them.
  for (const std::string_view root : {"/home/", "/Users/", "/root/"}) {
    for (size_t at = file.text.find(root); at != std::string::npos;
         at = file.text.find(root, at + 1)) {
      if (at > 0 && (is_word(file.text[at - 1]) || file.text[at - 1] == '}')) continue;
      findings.push_back({file.path, line_of(file.text, at),
                          std::string(root) + "... is a path of someone's machine"});
    }
  }
  return findings;
}

Findings check_all(const File& file) {
  Findings all;
  for (const auto rule : {check_arrows, check_adapters, check_coroutines, check_name,
                          check_pragma_once, check_sleep, check_machine_paths}) {
    const Findings found = rule(file);
    all.insert(all.end(), found.begin(), found.end());
  }
  return all;
}

}  // namespace troupe::tidy
