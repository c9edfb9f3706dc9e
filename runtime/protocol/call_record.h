// Calls and replies between two processes, as they lie in a ring or in a TLS stream: a fixed head
// (little-endian), then the method and the arguments. Both ends speak one protocol version, and
// nothing of it reaches a disk, so it is laid out by hand: it is written in place, without an
// arena, at a quarter of what a Cap'n Proto message costs. protocol::Invoke is the same call where
// frames are all there is.
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <string_view>

#include "protocol/messages.h"

namespace troupe::protocol {

struct CallHead {
  ActorId actor;  // Nil: a task.
  ObjectId result;
  uint64_t signature = 0;
  uint64_t budget_us = 0;  // 0: none.
  uint32_t incarnation = 0;
  uint32_t argument_count = 0;
  uint32_t method_bytes = 0;
  uint32_t has_extras = 0;  // 1: CallExtras come before the method.
};
static_assert(sizeof(CallHead) == 64);

// What few calls have; as in Invoke.
struct CallExtras {
  uint64_t time_limit_us = 0;
  uint64_t grace_us = 0;
  uint32_t results = 0;
  std::string_view name;
  bool is_empty() const { return time_limit_us == 0 && results == 0 && name.empty(); }
};

// The size of a call's record, and the record itself at `out`.
size_t call_record_bytes(std::string_view method, const std::vector<Argument>& arguments,
                         const CallExtras& extras = {});
void write_call_record(uint8_t* out, CallHead head, std::string_view method,
                       const std::vector<Argument>& arguments, const CallExtras& extras = {});

// Views into a record, which must outlive them.
struct CallView {
  struct ArgumentView {
    BytesView inline_value;
    BytesView ref;  // Not empty: a ref, as encode(Argument) gives it.
  };
  CallHead head;
  CallExtras extras;
  std::string_view method;
  boost::container::small_vector<ArgumentView, 4> arguments;
};
// Errors: invalid.
Result<CallView> read_call_record(BytesView record);
// The same call as the struct that travels between nodes. Errors: invalid.
Result<Invoke> to_invoke(const CallView& call);

// What a reply's record begins with; the rest is a value, an encoded InvokeReply or an encoded
// ErrorInfo.
enum class ReplyForm : uint32_t { unknown = 0, value = 1, reply = 2, error = 3 };
inline constexpr size_t reply_head_bytes = 8;

struct ReplyView {
  ReplyForm form = ReplyForm::unknown;
  uint32_t ran_ns = 0;  // How long the callee took for it; 0: it was not run.
  BytesView body;
};
void write_reply_record(uint8_t* out, ReplyForm form, uint32_t ran_ns, BytesView body);
// Errors: invalid.
Result<ReplyView> read_reply_record(BytesView record);

// What the callee answered, also a value. Errors: its failure, invalid.
Result<InvokeReply> to_reply(const ReplyView& reply);

}  // namespace troupe::protocol
