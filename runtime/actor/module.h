// A plugin or a user's shared object, loaded and checked.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "sdk/include/troupe/plugin.h"

namespace troupe::actor {

// Checked once, so that what uses a class need not: names and required functions are there. The
// shared object stays loaded until the process ends, so a Module may be copied and dropped.
class Module {
 public:
  // `module` is the path of a shared object if it has a slash or ends in ".so", else the name of a
  // plugin, found as libtroupe_<name>.so in the first of `folders` that has it. Runs the module's
  // initialisers; may block. Errors: not_found (no such file), invalid (no shared object, no
  // troupe_plugin_query, a broken table), unimplemented (another ABI major), and what the module's
  // query failed with.
  static Result<Module> load(const std::string& module,
                             const std::vector<std::filesystem::path>& folders,
                             const troupe_host& host);

  const std::string& path() const { return path_; }
  std::string_view name() const { return plugin_->name; }
  std::string_view version() const { return plugin_->version; }
  // Errors: not_found (says which classes there are).
  Result<const troupe_actor_class*> find_class(std::string_view name) const;

 private:
  Module(std::string path, const troupe_plugin* plugin) : path_(std::move(path)), plugin_(plugin) {}
  std::string path_;
  const troupe_plugin* plugin_;
};

}  // namespace troupe::actor
