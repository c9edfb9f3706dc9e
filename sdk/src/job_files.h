// The files that a driver's job needs on the nodes: the modules of its code, its working directory.
#pragma once

#include <memory>
#include <string>

#include "packages/shelf.h"
#include "session_impl.h"
#include "troupe/session.h"

namespace troupe::detail {

struct JobFiles {
  std::shared_ptr<packages::Shelf> shelf;
  std::set<std::string> modules;
};
// Opens, hashes and packs them. Blocks. Errors: those of packages::pack, of the working directory.
Result<JobFiles> collect_job_files(const ConnectOptions& options);

// Of a driver: a module that was not there when the session began joins its job. Blocks. Errors:
// conflict (it changed since it joined), those of the head.
Status ship_module(SessionImpl& session, const std::string& module);

}  // namespace troupe::detail
