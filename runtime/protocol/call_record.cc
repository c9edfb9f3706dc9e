#include "protocol/call_record.h"

#include <cstring>

#include "protocol/codec.h"

namespace troupe::protocol {

namespace {

struct ArgumentHead {
  uint32_t bytes = 0;
  uint32_t is_ref = 0;
};
static_assert(sizeof(ArgumentHead) == 8);

struct ExtrasHead {
  uint64_t time_limit_us = 0;
  uint64_t grace_us = 0;
  uint32_t results = 0;
  uint32_t name_bytes = 0;
};
static_assert(sizeof(ExtrasHead) == 24);

constexpr size_t round_up(size_t bytes) {
  return (bytes + 7) / 8 * 8;
}

Bytes ref_bytes(const Argument& argument) {
  return encode(argument);
}

}  // namespace

size_t call_record_bytes(std::string_view method, const std::vector<Argument>& arguments,
                         const CallExtras& extras) {
  size_t bytes = sizeof(CallHead) + round_up(method.size());
  if (!extras.is_empty()) bytes += sizeof(ExtrasHead) + round_up(extras.name.size());
  for (const Argument& argument : arguments) {
    const size_t value =
        argument.object.is_nil() ? argument.inline_value.size() : ref_bytes(argument).size();
    bytes += sizeof(ArgumentHead) + round_up(value);
  }
  return bytes;
}

void write_call_record(uint8_t* out, CallHead head, std::string_view method,
                       const std::vector<Argument>& arguments, const CallExtras& extras) {
  head.argument_count = static_cast<uint32_t>(arguments.size());
  head.method_bytes = static_cast<uint32_t>(method.size());
  head.has_extras = extras.is_empty() ? 0 : 1;
  std::memcpy(out, &head, sizeof head);
  out += sizeof head;
  if (!extras.is_empty()) {
    const ExtrasHead part{extras.time_limit_us, extras.grace_us, extras.results,
                          static_cast<uint32_t>(extras.name.size())};
    std::memcpy(out, &part, sizeof part);
    out += sizeof part;
    std::memcpy(out, extras.name.data(), extras.name.size());
    out += round_up(extras.name.size());
  }
  std::memcpy(out, method.data(), method.size());
  out += round_up(method.size());
  for (const Argument& argument : arguments) {
    Bytes ref;
    if (!argument.object.is_nil()) ref = ref_bytes(argument);
    const Bytes& value = ref.empty() ? argument.inline_value : ref;
    const ArgumentHead part{static_cast<uint32_t>(value.size()), ref.empty() ? 0u : 1u};
    std::memcpy(out, &part, sizeof part);
    out += sizeof part;
    if (!value.empty()) std::memcpy(out, value.data(), value.size());
    out += round_up(value.size());
  }
}

Result<CallView> read_call_record(BytesView record) {
  const Error malformed = error(Code::invalid, "malformed call in a ring");
  CallView call;
  if (record.size() < sizeof call.head) return malformed;
  std::memcpy(&call.head, record.data(), sizeof call.head);
  BytesView rest = record.subspan(sizeof call.head);
  if (call.head.has_extras != 0) {
    ExtrasHead part;
    if (rest.size() < sizeof part) return malformed;
    std::memcpy(&part, rest.data(), sizeof part);
    rest = rest.subspan(sizeof part);
    if (round_up(part.name_bytes) > rest.size()) return malformed;
    call.extras = {part.time_limit_us, part.grace_us, part.results,
                   as_text(rest.first(part.name_bytes))};
    rest = rest.subspan(round_up(part.name_bytes));
  }
  if (round_up(call.head.method_bytes) > rest.size()) return malformed;
  call.method = as_text(rest.first(call.head.method_bytes));
  rest = rest.subspan(round_up(call.head.method_bytes));
  if (call.head.argument_count > rest.size() / sizeof(ArgumentHead)) return malformed;
  call.arguments.reserve(call.head.argument_count);
  for (uint32_t i = 0; i < call.head.argument_count; ++i) {
    ArgumentHead part;
    if (rest.size() < sizeof part) return malformed;
    std::memcpy(&part, rest.data(), sizeof part);
    rest = rest.subspan(sizeof part);
    if (round_up(part.bytes) > rest.size()) return malformed;
    CallView::ArgumentView& argument = call.arguments.emplace_back();
    (part.is_ref != 0 ? argument.ref : argument.inline_value) = rest.first(part.bytes);
    rest = rest.subspan(round_up(part.bytes));
  }
  return call;
}

Result<Invoke> to_invoke(const CallView& call) {
  Invoke invoke;
  invoke.actor = call.head.actor;
  invoke.incarnation = call.head.incarnation;
  invoke.method = call.method;
  invoke.signature = call.head.signature;
  invoke.result = call.head.result;
  invoke.results = call.extras.results;
  invoke.time_limit_us = call.extras.time_limit_us;
  invoke.grace_us = call.extras.grace_us;
  invoke.name = call.extras.name;
  for (const auto& view : call.arguments) {
    Argument& argument = invoke.arguments.emplace_back();
    if (view.ref.empty()) {
      argument.inline_value.assign(view.inline_value.begin(), view.inline_value.end());
      continue;
    }
    TROUPE_TRY(argument, decode<Argument>(view.ref));
  }
  return invoke;
}

void write_reply_record(uint8_t* out, ReplyForm form, uint32_t ran_ns, BytesView body) {
  const uint32_t head[2] = {static_cast<uint32_t>(form), ran_ns};
  static_assert(sizeof head == reply_head_bytes);
  std::memcpy(out, head, sizeof head);
  if (!body.empty()) std::memcpy(out + sizeof head, body.data(), body.size());
}

Result<ReplyView> read_reply_record(BytesView record) {
  uint32_t head[2] = {};
  if (record.size() < sizeof head) return error(Code::invalid, "malformed reply in a ring");
  std::memcpy(head, record.data(), sizeof head);
  const auto [form, ran_ns] = head;
  if (form == 0 || form > static_cast<uint32_t>(ReplyForm::error)) {
    return error(Code::invalid, "a reply of an unknown form");
  }
  return ReplyView{static_cast<ReplyForm>(form), ran_ns, record.subspan(reply_head_bytes)};
}

Result<InvokeReply> to_reply(const ReplyView& reply) {
  if (reply.form == ReplyForm::error) {
    TROUPE_TRY(const auto info, decode<ErrorInfo>(reply.body));
    return from_info(info);
  }
  if (reply.form == ReplyForm::reply) return decode<InvokeReply>(reply.body);
  InvokeReply value;
  value.inline_value.assign(reply.body.begin(), reply.body.end());
  return value;
}

}  // namespace troupe::protocol
