// Invoke, from any peer.
#include "protocol/codec.h"
#include "protocol/messages.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace troupe::protocol;
  const auto message = decode<Invoke>({data, size});
  if (message && !decode<Invoke>(encode(*message))) __builtin_trap();
  return 0;
}
