#include "protocol/frame.h"

#include <capnp/message.h>
#include <capnp/serialize.h>

#include "troupe.capnp.h"

namespace troupe::protocol {

// Written by hand rather than through codec.h: every message passes here.
Bytes encode_header(const FrameHeader& header) {
  capnp::word scratch[128] = {};
  capnp::MallocMessageBuilder message{scratch};
  auto frame = message.initRoot<schema::Frame>();
  frame.setKind(static_cast<uint32_t>(header.kind));
  frame.setCall(header.call);
  frame.setMethod(static_cast<uint32_t>(header.method));
  frame.setBudgetUs(header.budget_us);
  frame.setCredit(header.credit);
  frame.setDescriptors(header.descriptors);
  frame.setBulkBytes(header.bulk_bytes);
  if (!header.trace.is_nil()) header.trace.to_bytes(frame.initTraceId(16).begin());
  if (header.error.code != 0) {
    auto error = frame.initError();
    error.setCode(header.error.code);
    error.setMessage(header.error.message);
    error.setWhere(header.error.where);
    error.setRetryAfterUs(header.error.retry_after_us);
  }
  const auto segments = message.getSegmentsForOutput();
  const size_t size_bytes = capnp::computeSerializedSizeInWords(segments) * sizeof(capnp::word);
  Bytes bytes(size_bytes);
  kj::ArrayOutputStream out{kj::arrayPtr(bytes.data(), bytes.size())};
  capnp::writeMessage(out, segments);
  return bytes;
}

Result<FrameHeader> decode_header(BytesView bytes) {
  if (bytes.size() > header_bytes_max) return error(Code::invalid, "frame header over its limit");
  try {
    kj::ArrayInputStream in{kj::arrayPtr(bytes.data(), bytes.size())};
    capnp::ReaderOptions options;
    options.traversalLimitInWords = header_bytes_max / sizeof(capnp::word) * 2;
    options.nestingLimit = 4;
    capnp::InputStreamMessageReader reader{in, options};
    const auto frame = reader.getRoot<schema::Frame>();
    FrameHeader header;
    header.kind = static_cast<FrameKind>(frame.getKind());
    header.call = frame.getCall();
    header.method = static_cast<Method>(frame.getMethod());
    header.budget_us = frame.getBudgetUs();
    header.credit = frame.getCredit();
    header.descriptors = frame.getDescriptors();
    header.bulk_bytes = frame.getBulkBytes();
    const auto trace = frame.getTraceId();
    header.trace = RawId::from_bytes({trace.begin(), trace.size()});
    if (frame.hasError()) {
      const auto error = frame.getError();
      header.error.code = error.getCode();
      header.error.message = error.getMessage();
      header.error.where = error.getWhere();
      header.error.retry_after_us = error.getRetryAfterUs();
    }
    return header;
  } catch (const kj::Exception& caught) {
    return error(Code::invalid,
                 std::string("malformed frame header: ") + caught.getDescription().cStr());
  }
}

}  // namespace troupe::protocol
