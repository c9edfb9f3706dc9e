#include "actor/collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace troupe::actor {

namespace {

constexpr size_t piece_bytes = 1u << 20;  // Pieces overlap: one is added while the next travels.
constexpr size_t piece_floats = piece_bytes / sizeof(float);

size_t pieces_of(size_t size, size_t piece) {
  return (size + piece - 1) / piece;
}

template <class T>
std::span<T> piece_of(std::span<T> all, size_t index, size_t piece) {
  const size_t begin = std::min(index * piece, all.size());
  return all.subspan(begin, std::min(piece, all.size() - begin));
}

BytesView bytes_of(std::span<const float> values) {
  return {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()};
}

Status check_size(const ReceivedChunk& chunk, size_t expected) {
  if (chunk.bytes().size() == expected) return ok();
  return error(Code::invalid, fmt::format("a member sent a piece of {} bytes where {} were due: "
                                          "all ranks must pass the same size",
                                          chunk.bytes().size(), expected));
}

// The sender's bytes may lie at any address.
void add(std::span<float> values, BytesView received) {
  for (size_t i = 0; i < values.size(); ++i) {
    float value = 0;
    std::memcpy(&value, received.data() + i * sizeof value, sizeof value);
    values[i] += value;
  }
}

}  // namespace

Status Group::barrier() {
  TROUPE_CHECK(enter());
  return leave(run_barrier());
}

Status Group::all_reduce(std::span<float> values) {
  TROUPE_CHECK(enter());
  return leave(run_all_reduce(values));
}

Status Group::broadcast(uint32_t root, std::span<uint8_t> data) {
  if (root >= world_) {
    return error(Code::invalid, fmt::format("root {} is no rank of a world of {}", root, world_));
  }
  TROUPE_CHECK(enter());
  return leave(run_broadcast(root, data));
}

Status Group::enter() {
  if (broken_) return error(broken_->code(), "the group failed before: " + broken_->message());
  channel_->begin_operation();
  return ok();
}

Status Group::leave(Status outcome) {
  if (outcome) outcome = channel_->flush();
  ++operation_;
  if (!outcome) broken_ = outcome.error();
  return outcome;
}

// Dissemination: after round k each rank has heard, directly or not, from the 2^(k+1) before it.
Status Group::run_barrier() {
  uint32_t round = 0;
  for (uint32_t distance = 1; distance < world_; distance *= 2, ++round) {
    const uint64_t now = tag(ChunkTag::Kind::barrier, round);
    TROUPE_CHECK(channel_->send((rank_ + distance) % world_, now, {}));
    TROUPE_TRY(const auto chunk, channel_->receive((rank_ + world_ - distance) % world_, now));
    TROUPE_CHECK(check_size(chunk, 0));
  }
  return ok();
}

// A ring: world - 1 steps in which each rank adds what it received to its own and passes it on, so
// that each ends with the whole sum of one segment; then world - 1 steps that pass the sums on.
Status Group::run_all_reduce(std::span<float> values) {
  if (world_ == 1) return ok();
  const auto segment = [&](uint32_t index) {
    const size_t begin = values.size() * index / world_;
    return values.subspan(begin, values.size() * (index + 1) / world_ - begin);
  };
  const uint32_t next = (rank_ + 1) % world_;
  const uint32_t previous = (rank_ + world_ - 1) % world_;
  const size_t pieces = pieces_of(values.size() / world_ + 1, piece_floats);
  const uint32_t steps = 2 * (world_ - 1);
  if (pieces * steps > pieces_max) return error(Code::invalid, "all_reduce: too many values");

  for (uint32_t step = 0; step < steps; ++step) {
    const bool adding = step < world_ - 1;
    const uint32_t sent = (rank_ + 2 * world_ - step) % world_;
    const auto out = segment(sent);
    const auto in = segment((sent + world_ - 1) % world_);
    for (size_t j = 0; j < pieces; ++j) {
      const uint64_t now =
          tag(ChunkTag::Kind::all_reduce, static_cast<uint32_t>(step * pieces + j));
      const auto out_piece = piece_of(out, j, piece_floats);
      const auto in_piece = piece_of(in, j, piece_floats);
      if (!out_piece.empty()) TROUPE_CHECK(channel_->send(next, now, bytes_of(out_piece)));
      if (in_piece.empty()) continue;
      TROUPE_TRY(const auto chunk, channel_->receive(previous, now));
      TROUPE_CHECK(check_size(chunk, in_piece.size_bytes()));
      if (adding) {
        add(in_piece, chunk.bytes());
      } else {
        std::memcpy(in_piece.data(), chunk.bytes().data(), in_piece.size_bytes());
      }
    }
  }
  return ok();
}

// A binomial tree from the root; each piece is passed on as soon as it is there.
Status Group::run_broadcast(uint32_t root, std::span<uint8_t> data) {
  const uint32_t place = (rank_ + world_ - root) % world_;  // Root's is 0.
  // The parent's place lacks the lowest set bit of this one; children have one bit more below it.
  const uint32_t lowest = place == 0 ? world_ : place & (~place + 1);
  const size_t pieces = std::max<size_t>(pieces_of(data.size(), piece_bytes), 1);
  if (pieces > pieces_max) return error(Code::invalid, "broadcast: too many bytes");
  for (size_t j = 0; j < pieces; ++j) {
    const uint64_t now = tag(ChunkTag::Kind::broadcast, static_cast<uint32_t>(j));
    const auto piece = piece_of(data, j, piece_bytes);
    if (place != 0) {
      TROUPE_TRY(const auto chunk, channel_->receive((place - lowest + root) % world_, now));
      TROUPE_CHECK(check_size(chunk, piece.size()));
      if (!piece.empty()) std::memcpy(piece.data(), chunk.bytes().data(), piece.size());
    }
    for (uint32_t bit = 1; bit < lowest && place + bit < world_; bit *= 2) {
      TROUPE_CHECK(channel_->send((place + bit + root) % world_, now, piece));
    }
  }
  return ok();
}

}  // namespace troupe::actor
