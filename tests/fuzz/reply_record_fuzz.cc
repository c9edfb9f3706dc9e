// A reply as a hostile callee writes it into a ring, decoded as its caller would.
#include "protocol/call_record.h"
#include "protocol/codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace troupe;
  using namespace troupe::protocol;
  const auto reply = read_reply_record({data, size});
  if (!reply) return 0;
  if (reply->form == ReplyForm::reply) (void)decode<InvokeReply>(reply->body);
  if (reply->form == ReplyForm::error) {
    const auto info = decode<ErrorInfo>(reply->body);
    if (info) (void)from_info(*info);
  }
  return 0;
}
