#include "packages/shelf.h"

#include <filesystem>

#include "packages/archive.h"
#include "packages/transfer.h"
#include "protocol/codec.h"

namespace troupe::packages {

void Shelf::add(PackageFilePointer file, std::string kind, std::string path) {
  packages_.push_back({file->hash, std::move(kind), std::move(path), file->size_bytes});
  files_[file->hash] = std::move(file);
}

void Shelf::add_module(PackageFilePointer file, std::string path) {
  add(std::move(file), std::string(module_kind), std::move(path));
}

Status Shelf::add_working_folder(const std::string& path) {
  TROUPE_TRY(auto file, pack(path));
  std::error_code failed;
  const auto full = std::filesystem::canonical(path, failed);
  add(std::move(file), std::string(working_folder_kind), failed ? path : full.string());
  return ok();
}

Async<Status> Shelf::give(transport::Environment environment, transport::Message message,
                          transport::OutgoingStream& out) const {
  TROUPE_CO_TRY(const auto request, protocol::decode<protocol::GetPackage>(message.body));
  const auto found = files_.find(request.hash);
  if (found == files_.end()) {
    co_return error(Code::not_found, "this process has no package " + request.hash);
  }
  PackageFilePointer file = found->second;
  co_return co_await send(environment, std::move(file), request.offset_bytes, out);
}

}  // namespace troupe::packages
