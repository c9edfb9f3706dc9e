// Bytes with file descriptors beside them, over a Unix socket (unix(7), SCM_RIGHTS).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <vector>

#include "base/file_descriptor.h"

namespace troupe::transport {

constexpr size_t passed_descriptors_max = 16;  // Beside one message.

// Both return what sendmsg and recvmsg do, and leave errno. Descriptors that were received are
// closed on exec. More than passed_descriptors_max are not sent: EINVAL.
ssize_t send_with_descriptors(int socket, std::span<const uint8_t> bytes,
                              std::span<const FileDescriptor> descriptors);
ssize_t receive_with_descriptors(int socket, std::span<uint8_t> out,
                                 std::vector<FileDescriptor>& descriptors);

}  // namespace troupe::transport
