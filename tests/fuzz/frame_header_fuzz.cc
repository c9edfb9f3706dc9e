// The header of a frame, from any peer.
#include "protocol/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto header = troupe::protocol::decode_header({data, size});
  if (!header) return 0;
  const auto again = troupe::protocol::decode_header(troupe::protocol::encode_header(*header));
  if (!again || again->call != header->call || again->budget_us != header->budget_us) {
    __builtin_trap();
  }
  return 0;
}
