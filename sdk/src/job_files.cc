#include "job_files.h"

#include "base/log.h"

namespace troupe::detail {

namespace {

constexpr Duration begin_budget = std::chrono::seconds(30);

// Nothing: it has no file that could be sent, so it must be on the nodes already.
packages::PackageFilePointer open_module(const std::string& module) {
  auto file = packages::open_package(module);
  if (file) return std::move(*file);
  log::debug("module_not_shipped", {{"module", module}, {"why", file.error()}});
  return nullptr;
}

}  // namespace

Result<JobFiles> collect_job_files(const ConnectOptions& options) {
  JobFiles files;
  files.shelf = std::make_shared<packages::Shelf>();
  if (!options.working_dir.empty()) {
    TROUPE_CHECK(files.shelf->add_working_folder(options.working_dir));
  }
  for (const std::string& module : registered_modules()) {
    files.modules.insert(module);
    if (auto file = open_module(module)) files.shelf->add_module(std::move(file), module);
  }
  return files;
}

Status ship_module(SessionImpl& session, const std::string& module) {
  DriverCore* const core = session.core();
  if (core == nullptr || module.find('/') == module.npos) return ok();
  const std::lock_guard lock{core->modules_mutex};
  if (!core->modules.insert(module).second) return ok();
  auto file = open_module(module);
  if (!file) return ok();
  protocol::BeginJob joins;
  joins.job = session.client().job();
  joins.environment.packages.push_back(
      {file->hash, std::string(packages::module_kind), module, file->size_bytes});
  auto joined = session.run<protocol::Empty>([&] {
    core->shelf->add_module(std::move(file), module);
    return session.client().ask_head<protocol::Empty>(transport::Method::begin_job,
                                                      std::move(joins), begin_budget);
  });
  if (joined) return ok();
  core->modules.erase(module);
  return std::move(joined).error();
}

}  // namespace troupe::detail
