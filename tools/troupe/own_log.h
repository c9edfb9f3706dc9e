// The log of a daemon on this machine: a file of a bounded size, and the one before it.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "base/status.h"

namespace troupe::tools {

inline constexpr uint64_t own_log_bytes_max = uint64_t{16} << 20;

// A file at `path` that is larger than `bytes_max` becomes PATH.1, in place of what was there, and
// those of `descriptors` that write to it write to a new one: not a line is lost. Nothing happens
// if the first of them writes to something else, whose size is somebody else's affair; with none of
// them nobody writes to it yet. Blocks on the disk. Errors: exhausted, unavailable (all goes on
// with the file as it is).
Status bound_log(const std::string& path, std::initializer_list<int> descriptors,
                 uint64_t bytes_max = own_log_bytes_max);

}  // namespace troupe::tools
