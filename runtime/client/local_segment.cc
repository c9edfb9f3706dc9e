#include "client/local_segment.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

namespace troupe::client {

using object_store::block_bytes;

// --- PinReturns

void PinReturns::add(ObjectId object) {
  const std::lock_guard lock{mutex_};
  if (!send_) return;
  pins_.push_back(object);
  if (pins_.size() > 1) return;  // The loop knows already.
  boost::asio::post(loop_, [self = shared_from_this()] { self->flush(); });
}

void PinReturns::flush() {
  std::vector<ObjectId> pins;
  std::function<void(std::vector<ObjectId>)> send;
  {
    const std::lock_guard lock{mutex_};
    pins.swap(pins_);
    send = send_;
  }
  if (send && !pins.empty()) send(std::move(pins));
}

void PinReturns::close() {
  const std::lock_guard lock{mutex_};
  send_ = nullptr;
}

// --- LocalBlock

LocalBlock::~LocalBlock() {
  switch (state_.load(std::memory_order_acquire)) {
    case State::room:
      home_->free(extent_, handle_);
      break;
    case State::pinned:
      home_->pins_->add(object_);
      break;
    case State::given:
      break;
  }
}

void LocalBlock::give_away(ObjectId object, bool pinned) {
  home_->give_away(extent_, offset_bytes_, bytes_.size());
  object_ = object;
  state_.store(pinned ? State::pinned : State::given, std::memory_order_release);
}

// --- LocalSegment

void LocalSegment::add_extent(uint64_t offset_bytes, uint64_t size_bytes) {
  const std::lock_guard lock{mutex_};
  last_ = ++count_;
  extents_.emplace(last_, Extent{offset_bytes, object_store::BlockAllocator{size_bytes}});
}

Result<std::shared_ptr<LocalBlock>> LocalSegment::allocate(uint64_t size_bytes) {
  uint64_t number = 0;
  uint64_t at = 0;
  uint32_t handle = 0;
  uint64_t offset = 0;
  uint64_t populate_from = 0;
  bool covered = false;
  {
    const std::lock_guard lock{mutex_};
    std::optional<object_store::BlockAllocator::Block> place;
    auto extent = extents_.find(last_);
    if (extent != extents_.end()) place = extent->second.allocator.allocate(size_bytes);
    if (!place) {
      for (extent = extents_.begin(); extent != extents_.end(); ++extent) {
        place = extent->second.allocator.allocate(size_bytes);
        if (place) break;
      }
    }
    if (!place) return std::shared_ptr<LocalBlock>{};
    last_ = number = extent->first;
    at = extent->second.offset_bytes;
    handle = place->handle;
    offset = place->offset_bytes;
    ++extent->second.live;
    extent->second.used = true;
    covered = offset + size_bytes <= extent->second.populated_bytes;
    populate_from = std::max(offset, std::min(extent->second.populated_bytes, offset + size_bytes));
  }
  TROUPE_TRY(const auto bytes, segment_.bytes(at + offset, size_bytes));
  // Gives the room back, whatever happens from here on.
  auto block = std::make_shared<LocalBlock>(shared_from_this(), number, handle, at + offset, bytes);
  if (!covered) TROUPE_CHECK(populate(number, at + populate_from, at + offset + size_bytes));
  return block;
}

Status LocalSegment::populate(uint64_t number, uint64_t begin, uint64_t end) {
  TROUPE_TRY(const auto bytes, segment_.bytes(begin, end - begin));
  TROUPE_CHECK(object_store::populate_for_writing(segment_.fd(), begin, bytes));
  const std::lock_guard lock{mutex_};
  const auto extent = extents_.find(number);
  if (extent == extents_.end()) return ok();
  const uint64_t at = extent->second.offset_bytes;
  auto& mark = extent->second.populated_bytes;
  if (begin - at <= mark) mark = std::max(mark, end - at);
  return ok();
}

Result<BytesView> LocalSegment::view(uint64_t offset_bytes, uint64_t size_bytes) const {
  TROUPE_TRY(const auto bytes, segment_.bytes(offset_bytes, size_bytes));
  return BytesView{bytes};
}

void LocalSegment::free(uint64_t number, uint32_t handle) {
  const std::lock_guard lock{mutex_};
  const auto extent = extents_.find(number);
  extent->second.allocator.free(handle);
  one_less(extent->second);
}

void LocalSegment::give_away(uint64_t number, uint64_t offset_bytes, uint64_t size_bytes) {
  const std::lock_guard lock{mutex_};
  Extent& extent = extents_.find(number)->second;
  extent.given.push_back({offset_bytes, block_bytes(size_bytes)});
  one_less(extent);
}

void LocalSegment::one_less(Extent& extent) {
  if (--extent.live > 0 || std::exchange(told_empty_, true)) return;
  if (on_empty_) on_empty_();  // Under the lock: after close() it is not called.
}

std::vector<protocol::Extent> LocalSegment::take_empty(Which which) {
  std::vector<protocol::Extent> taken;
  const std::lock_guard lock{mutex_};
  bool any_left = false;
  for (auto it = extents_.begin(); it != extents_.end();) {
    Extent& extent = it->second;
    const bool used = std::exchange(extent.used, false);
    if (extent.live > 0 || (used && which == Which::idle)) {
      any_left = any_left || extent.live == 0;
      ++it;
      continue;
    }
    uint64_t from = extent.offset_bytes;
    const uint64_t end = from + extent.allocator.size_bytes();
    std::ranges::sort(extent.given, {}, &protocol::Extent::offset_bytes);
    for (const protocol::Extent& given : extent.given) {
      if (given.offset_bytes > from) taken.push_back({from, given.offset_bytes - from});
      from = given.offset_bytes + given.size_bytes;
    }
    if (end > from) taken.push_back({from, end - from});
    it = extents_.erase(it);
  }
  if (!any_left) told_empty_ = false;
  return taken;
}

bool LocalSegment::has_empty() const {
  const std::lock_guard lock{mutex_};
  return told_empty_;
}

void LocalSegment::close() {
  const std::lock_guard lock{mutex_};
  on_empty_ = nullptr;
}

}  // namespace troupe::client
