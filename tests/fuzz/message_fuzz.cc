// Every message of the protocol, from any peer: the first byte says which.
#include <array>

#include "protocol/codec.h"
#include "protocol/message_list.h"

namespace {

using namespace troupe;
using namespace troupe::protocol;

// What could be read comes back from what is written, whatever odd shape it had at first.
template <class Message>
void try_message(BytesView bytes) {
  const auto message = decode<Message>(bytes);
  if (!message) return;
  const Bytes written = encode(*message);
  const auto again = decode<Message>(written);
  if (!again || encode(*again) != written) __builtin_trap();
}

#define TROUPE_TRY_MESSAGE(Name) &try_message<Name>,
constexpr std::array tries{TROUPE_MESSAGES(TROUPE_TRY_MESSAGE)};
#undef TROUPE_TRY_MESSAGE

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  tries[data[0] % tries.size()]({data + 1, size - 1});
  return 0;
}
