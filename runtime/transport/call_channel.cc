#include "transport/call_channel.h"

#include "base/log.h"

namespace troupe::transport {

CallChannel::~CallChannel() = default;

void CallChannel::cancel(uint64_t call, uint8_t how) {
  const std::lock_guard lock{mutex_};
  if (!is_open()) return;
  const RecordHeader header{1, call_cancel, 0, call};
  const auto fill = [how](uint8_t* out) { *out = how; };
  write(header, fill);
}

void CallChannel::recall() {
  const std::lock_guard lock{mutex_};
  if (!is_open()) return;
  const RecordHeader header{0, call_recall, 0, 0};
  const auto fill = [](uint8_t*) {};
  write(header, fill);
}

void CallChannel::handle(CallHandler* handler, RecordHeader header, BytesView payload) {
  switch (header.kind) {
    case call_request:
      port_->read_next(source_);
      if (handler != nullptr) handler->take_call(shared_from_this(), header.call, payload);
      return;
    case call_reply:
      // A reply to nobody is ignored: a peer may send anything.
      if (auto pending = take(header.call)) pending->reply(payload);
      return;
    case call_recall:
      if (handler != nullptr) handler->recall_calls(shared_from_this());
      return;
    case call_cancel:
      if (handler != nullptr) {
        handler->cancel_call(shared_from_this(), header.call, payload.empty() ? 0 : payload[0]);
      }
      return;
    default:
      log::debug("record_ignored", {{"kind", header.kind}});
  }
}

std::unique_ptr<PendingReply> CallChannel::take(uint64_t call) {
  const std::lock_guard lock{mutex_};
  const auto index = static_cast<uint32_t>(call);
  const auto generation = static_cast<uint32_t>(call >> 32);
  if (index >= slots_.size()) return nullptr;
  Slot& slot = slots_[index];
  if (!slot.pending || slot.generation != generation) return nullptr;
  free_slots_.push_back(index);
  return std::move(slot.pending);
}

void CallChannel::fail_pending(uint64_t begun) {
  std::vector<Slot> slots;
  {
    const std::lock_guard lock{mutex_};
    slots.swap(slots_);
    free_slots_.clear();
  }
  for (Slot& slot : slots) {
    if (slot.pending) slot.pending->lost(slot.ordinal <= begun);
  }
}

}  // namespace troupe::transport
