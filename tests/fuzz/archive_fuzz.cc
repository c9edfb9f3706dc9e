// A working directory's archive as a hostile driver or head could send it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "packages/archive.h"

namespace {

namespace fs = std::filesystem;

// Where nothing may be written but below `to`.
const fs::path& root() {
  static const fs::path made = [] {
    std::string name = fs::temp_directory_path() / "troupe-fuzz-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    std::atexit([] { fs::remove_all(root()); });
    return fs::path{name};
  }();
  return made;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace troupe;
  packages::PackageFile archive;
  archive.file = FileDescriptor{::memfd_create("archive", MFD_CLOEXEC)};
  archive.size_bytes = size;
  if (!packages::write_all(archive.file.get(), {data, size}, "archive")) std::abort();
  const fs::path to = root() / "to";
  const auto unpacked = packages::unpack(archive, to, {1 << 20, 1000});
  if (unpacked) packages::remove_unpacked(to);
  // Nothing is left of one that failed, and nothing was written beside it.
  if (!fs::is_empty(root())) __builtin_trap();
  return 0;
}
