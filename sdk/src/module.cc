#include "troupe/module.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <set>

namespace troupe::detail {
namespace {

struct TaskEntry {
  std::string name;
  CallFunction call = nullptr;
};

// What the modules of this process registered. Static initialisers fill it, also in threads that
// load modules.
struct Registry {
  std::mutex mutex;
  std::map<const void*, TaskEntry> tasks;
  std::vector<const troupe_actor_class*> classes;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

// What a call by this name means. `entries` is locked.
Result<const TaskEntry*> find_task(const Registry& entries, std::string_view name) {
  const TaskEntry* found = nullptr;
  for (const auto& [address, entry] : entries.tasks) {
    if (entry.name != name) continue;
    if (found != nullptr) {
      return error(Code::invalid, "two functions are tasks named " + entry.name +
                                      ": give them different names in TROUPE_TASK");
    }
    found = &entry;
  }
  if (found == nullptr) {
    return error(Code::not_found, "the module has no task named " + std::string(name) +
                                      ": is the worker's copy older than the program?");
  }
  return found;
}

const troupe_host* host_table = nullptr;

// Written before the module is loaded.
struct ModuleAlias {
  std::string file;
  std::string name;
};
ModuleAlias& module_alias() {
  static ModuleAlias alias;
  return alias;
}

int32_t create_tasks(troupe_context*, uint64_t, const troupe_bytes*, size_t, void** instance,
                     troupe_text*) {
  *instance = &registry();
  return TROUPE_OK;
}

void call_task_by_name(void*, troupe_call* call, const char* method, uint64_t signature,
                       const troupe_bytes* arguments, size_t argument_count) {
  CallFunction function = nullptr;
  Status known;
  {
    Registry& entries = registry();
    const std::lock_guard lock{entries.mutex};
    if (auto found = find_task(entries, method)) {
      function = (*found)->call;
    } else {
      known = std::move(found).error();
    }
  }
  if (!known) {
    host().call_fail(call, static_cast<int32_t>(known.error().code()),
                     known.error().message().c_str());
    return;
  }
  function(nullptr, call, signature, arguments, argument_count);
}

const troupe_actor_class tasks_class = {
    .size = sizeof(troupe_actor_class),
    .name = TROUPE_TASKS_CLASS,
    .create = &create_tasks,
    .call = &call_task_by_name,
    .step = nullptr,
    .pause = nullptr,
    .resume = nullptr,
    .checkpoint = nullptr,
    .restore = nullptr,
    .destroy = [](void*) {},
};

}  // namespace

const troupe_host& host() {
  return *host_table;
}

void put_message(troupe_text* out, std::string_view message) {
  if (out == nullptr) return;
  out->size = std::min(out->capacity, message.size());
  if (out->size > 0) std::memcpy(out->data, message.data(), out->size);
}

void register_task(const char* name, const void* function, CallFunction call) {
  Registry& entries = registry();
  const std::lock_guard lock{entries.mutex};
  entries.tasks[function] = {name, call};
}

void register_class(const troupe_actor_class* table) {
  Registry& entries = registry();
  const std::lock_guard lock{entries.mutex};
  entries.classes.push_back(table);
}

Result<std::string> task_name(const void* function) {
  Registry& entries = registry();
  const std::lock_guard lock{entries.mutex};
  const auto found = entries.tasks.find(function);
  if (found == entries.tasks.end()) {
    return error(Code::invalid,
                 "the function is no task: name it in TROUPE_TASK, and build the program with "
                 "troupe_add_program");
  }
  TROUPE_CHECK(find_task(entries, found->second.name));
  return found->second.name;
}

const char* class_name(const char* signature) {
  static std::mutex mutex;
  static std::set<std::string> names;  // Nodes do not move, so their text stays where it is.
  const std::string_view text{signature};
  const std::lock_guard lock{mutex};
  return names.emplace(text.substr(0, text.find('('))).first->c_str();
}

std::string module_of(const void* address) {
  Dl_info info{};
  if (::dladdr(address, &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code failed;
  const auto found = std::filesystem::canonical(info.dli_fname, failed);
  std::string path = failed ? std::string(info.dli_fname) : found.string();
  return path == module_alias().file ? module_alias().name : path;
}

std::vector<std::string> registered_modules() {
  Registry& entries = registry();
  const std::lock_guard lock{entries.mutex};
  std::set<std::string> found;
  for (const auto& [function, entry] : entries.tasks) found.insert(module_of(function));
  for (const troupe_actor_class* table : entries.classes) found.insert(module_of(table));
  return {found.begin(), found.end()};
}

void set_module_alias(std::string file, std::string name) {
  std::error_code failed;
  const auto path = std::filesystem::canonical(file, failed);
  module_alias() = {failed ? std::move(file) : path.string(), std::move(name)};
}

}  // namespace troupe::detail

// Modules built with the SDK need not export it: they all link libtroupe, where the host finds
// this.
extern "C" int32_t troupe_plugin_query(const troupe_host* host, const troupe_plugin** plugin) {
  using namespace troupe::detail;
  if (host == nullptr || plugin == nullptr) return TROUPE_INVALID;
  host_table = host;
  static std::vector<const troupe_actor_class*> classes;
  static troupe_plugin table{};
  Registry& entries = registry();
  const std::lock_guard lock{entries.mutex};
  classes = entries.classes;
  classes.push_back(&tasks_class);
  table.size = sizeof table;
  table.abi_major = TROUPE_ABI_MAJOR;
  table.abi_minor = TROUPE_ABI_MINOR;
  table.name = "user module";
  table.version = "1";
  table.classes = classes.data();
  table.class_count = classes.size();
  *plugin = &table;
  return TROUPE_OK;
}
