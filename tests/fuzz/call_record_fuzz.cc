// A call as a hostile caller writes it into a ring, and what it becomes.
#include "protocol/call_record.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace troupe;
  using namespace troupe::protocol;
  const auto call = read_call_record({data, size});
  if (!call) return 0;
  const auto invoke = to_invoke(*call);
  if (!invoke) return 0;
  // What can be read can be written, and is the same then.
  const size_t bytes = call_record_bytes(invoke->method, invoke->arguments);
  Bytes again(bytes);
  write_call_record(again.data(), call->head, invoke->method, invoke->arguments);
  const auto second = read_call_record(again);
  if (!second || second->method != call->method ||
      second->arguments.size() != call->arguments.size()) {
    __builtin_trap();
  }
  return 0;
}
