#include "actor/module.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <cstddef>
#include <set>

namespace troupe::actor {

namespace fs = std::filesystem;

namespace {

// The tables of minor version 0; later fields are optional.
constexpr size_t plugin_bytes_min = offsetof(troupe_plugin, class_count) + sizeof(size_t);
constexpr size_t class_bytes_min = offsetof(troupe_actor_class, destroy) + sizeof(void*);

bool is_path(const std::string& module) {
  return module.find('/') != std::string::npos || module.ends_with(".so");
}

Result<fs::path> find_file(const std::string& module, const std::vector<fs::path>& folders) {
  std::error_code failed;
  if (is_path(module)) {
    // Absolute, for dlopen searches the system's folders for a name without a slash.
    const fs::path path = fs::absolute(module, failed);
    if (!failed && fs::is_regular_file(path, failed)) return path;
    return error(Code::not_found,
                 fmt::format("module {}: no such file on this node: build it, or copy it to the "
                             "same path on every node",
                             module));
  }
  if (module.empty()) {
    return error(Code::invalid, "no module was named: give a path or a plugin's name");
  }
  std::string searched;
  for (const fs::path& folder : folders) {
    const fs::path path = folder / ("libtroupe_" + module + ".so");
    if (fs::is_regular_file(path, failed)) return fs::absolute(path, failed);
    searched += (searched.empty() ? "" : ", ") + folder.string();
  }
  return error(Code::not_found,
               fmt::format("plugin {}: no libtroupe_{}.so in [{}]: install the plugin, or give "
                           "the path of a shared object",
                           module, module, searched));
}

Status broken(const fs::path& path, std::string_view why) {
  return error(Code::invalid, fmt::format("module {}: {}: rebuild it against troupe/plugin.h",
                                          path.string(), why));
}

Status check_class(const fs::path& path, const troupe_actor_class* entry, size_t index,
                   std::set<std::string_view>& names) {
  if (entry == nullptr) return broken(path, fmt::format("class {} is null", index));
  if (entry->size < class_bytes_min) {
    return broken(path, fmt::format("class {} has a table of {} bytes, {} are needed", index,
                                    entry->size, class_bytes_min));
  }
  if (entry->name == nullptr || *entry->name == '\0') {
    return broken(path, fmt::format("class {} has no name", index));
  }
  const char* missing = entry->create == nullptr    ? "create"
                        : entry->call == nullptr    ? "call"
                        : entry->destroy == nullptr ? "destroy"
                                                    : nullptr;
  if (missing != nullptr) {
    return broken(path, fmt::format("class {} has no {} function", entry->name, missing));
  }
  if (!names.insert(entry->name).second) {
    return broken(path, fmt::format("two classes are named {}", entry->name));
  }
  return ok();
}

Status check_plugin(const fs::path& path, const troupe_plugin* plugin) {
  if (plugin == nullptr) return broken(path, "its query gave no table");
  // The first three fields are the same in every version; no other is read before they fit.
  if (plugin->abi_major != TROUPE_ABI_MAJOR) {
    return error(Code::unimplemented,
                 fmt::format("module {} was built for plugin ABI {}.{}, this node runs {}.{}: "
                             "rebuild the module with this node's SDK",
                             path.string(), plugin->abi_major, plugin->abi_minor, TROUPE_ABI_MAJOR,
                             TROUPE_ABI_MINOR));
  }
  if (plugin->size < plugin_bytes_min) {
    return broken(
        path, fmt::format("its table has {} bytes, {} are needed", plugin->size, plugin_bytes_min));
  }
  if (plugin->name == nullptr || plugin->version == nullptr) {
    return broken(path, "its table has no name or no version");
  }
  if (plugin->class_count > 0 && plugin->classes == nullptr) {
    return broken(path, "its list of classes is null");
  }
  std::set<std::string_view> names;
  for (size_t i = 0; i < plugin->class_count; ++i) {
    TROUPE_CHECK(check_class(path, plugin->classes[i], i, names));
  }
  return ok();
}

// Handles of modules are never closed: threads and tables of a module may outlive any scope here.
Result<void*> open_library(const fs::path& path) {
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const char* why = ::dlerror();
  return error(Code::invalid,
               fmt::format("module {} cannot be loaded: {}: check that it is a shared object for "
                           "this machine and that its libraries are installed",
                           path.string(), why != nullptr ? why : "unknown reason"));
}

}  // namespace

Result<Module> Module::load(const std::string& module, const std::vector<fs::path>& folders,
                            const troupe_host& host) {
  fs::path path = module;
  void* library = RTLD_DEFAULT;  // What this process was linked with, for the SDK's own classes.
  if (module != TROUPE_SDK_MODULE) {
    TROUPE_TRY(path, find_file(module, folders));
    TROUPE_TRY(library, open_library(path));
  }
  const auto query =
      reinterpret_cast<troupe_plugin_query_function>(::dlsym(library, TROUPE_QUERY_SYMBOL));
  if (query == nullptr) {
    return error(Code::invalid,
                 fmt::format("module {} does not export {}: it is no Troupe module, or it was "
                             "linked with that symbol hidden",
                             path.string(), TROUPE_QUERY_SYMBOL));
  }
  const troupe_plugin* plugin = nullptr;
  const int32_t outcome = [&]() noexcept { return query(&host, &plugin); }();
  if (outcome != TROUPE_OK) {
    return error(code_from_number(static_cast<uint32_t>(outcome)),
                 fmt::format("module {} refused to load: its query answered {}", path.string(),
                             code_name(code_from_number(static_cast<uint32_t>(outcome)))));
  }
  TROUPE_CHECK(check_plugin(path, plugin));
  return Module{path.string(), plugin};
}

Result<const troupe_actor_class*> Module::find_class(std::string_view name) const {
  std::string known;
  for (size_t i = 0; i < plugin_->class_count; ++i) {
    const troupe_actor_class* entry = plugin_->classes[i];
    if (entry->name == name) return entry;
    known += (known.empty() ? "" : ", ") + std::string(entry->name);
  }
  return error(Code::not_found, fmt::format("module {} has no class {}; it has: {}", plugin_->name,
                                            name, known.empty() ? "none" : known));
}

}  // namespace troupe::actor
