// The packages that a process has for its job, given to the head when it asks.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "packages/file.h"
#include "protocol/messages.h"
#include "transport/environment.h"
#include "transport/peer.h"

namespace troupe::packages {

// On one loop once it answers.
class Shelf {
 public:
  // It can be given even when its name is gone.
  void add_module(PackageFilePointer file, std::string path);
  // Packs the directory. Blocks. Errors: those of pack().
  Status add_working_folder(const std::string& path);
  // What a job's environment says of them.
  const std::vector<protocol::Package>& packages() const { return packages_; }

  // Answers get_package. Errors: not_found, and those of send().
  Async<Status> give(transport::Environment environment, transport::Message request,
                     transport::OutgoingStream& out) const;

 private:
  void add(PackageFilePointer file, std::string kind, std::string path);

  std::vector<protocol::Package> packages_;
  std::map<std::string, PackageFilePointer> files_;  // By hash.
};

inline constexpr std::string_view module_kind = "module";
inline constexpr std::string_view working_folder_kind = "working_dir";

}  // namespace troupe::packages
