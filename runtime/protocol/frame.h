// The unit that a connection carries: a small header and an opaque body.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/status.h"
#include "protocol/messages.h"

namespace troupe::protocol {

// The values are on the wire: never renumber.
enum class FrameKind : uint32_t {
  unknown = 0,
  request = 1,         // call, method, budget, body.
  reply = 2,           // call, error or body.
  stream_request = 3,  // As request; answered by items, then a reply.
  item = 4,            // call, body. credit: what is held for it, as transport::StreamItem::held.
  credit = 5,          // call, credit: how many more items the receiver takes.
  cancel = 6,          // call: the caller no longer waits. credit: how, as CancelBits.
};

// How a call is cancelled.
enum CancelBits : uint8_t {
  cancel_by_force = 1,         // A task that runs ends at once, with its process.
  cancel_spares_children = 2,  // What the call has submitted runs on.
};

inline constexpr size_t header_bytes_max = 64 << 10;
inline constexpr size_t body_bytes_max = 256 << 20;
inline constexpr size_t bulk_bytes_max = 16 << 20;

struct FrameHeader {
  FrameKind kind = FrameKind::unknown;
  uint64_t call = 0;
  Method method = Method::unknown;
  uint64_t budget_us = 0;
  RawId trace;
  uint32_t credit = 0;
  uint32_t descriptors = 0;  // How many file descriptors travel beside the frame.
  ErrorInfo error;
  uint32_t bulk_bytes = 0;  // How many bytes follow the body, see transport::Bulk.
};

Bytes encode_header(const FrameHeader& header);
// Errors: invalid.
Result<FrameHeader> decode_header(BytesView bytes);

}  // namespace troupe::protocol
