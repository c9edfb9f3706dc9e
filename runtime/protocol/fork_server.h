// What a worker and its fork server agree on beside ForkProcess and ProcessForked.
#pragma once

#include <cstddef>
#include <string_view>

namespace troupe::protocol {

// The first argument of a fork server's command line; a process that it forks writes its id over
// it.
constexpr std::string_view fork_server_argument = "fork-server---------------------";
static_assert(fork_server_argument.size() == 32, "as long as an id in hexadecimal digits");
constexpr size_t fork_packet_bytes_max = 96
                                         << 10;  // A socket's buffer holds twice that by default.

}  // namespace troupe::protocol
