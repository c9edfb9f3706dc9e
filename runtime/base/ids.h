// Identifiers: 16 random bytes, a distinct type for each kind of thing.
#pragma once

#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/random.h"
#include "base/status.h"

namespace troupe {

// The bytes of an id; the typed ids below derive from it.
struct RawId {
  uint64_t high = 0;
  uint64_t low = 0;

  bool is_nil() const { return high == 0 && low == 0; }
  // 32 hexadecimal digits.
  std::string to_string() const;
  // The first 8 digits: for people, never for look-up.
  std::string short_string() const { return to_string().substr(0, 8); }
  auto operator<=>(const RawId&) const = default;

  static RawId random(Random& random) { return {random.next(), random.next() | 1}; }
  // Errors: invalid (not 32 hexadecimal digits).
  static Result<RawId> parse(std::string_view text);
  // Big-endian 16 bytes, as on the wire. from_bytes gives the nil id for any other length.
  void to_bytes(uint8_t* out) const;
  static RawId from_bytes(BytesView bytes);
};

template <class Tag>
struct Id : RawId {
  static Id random(Random& random) { return Id{RawId::random(random)}; }
  static Result<Id> parse(std::string_view text) {
    TROUPE_TRY(auto raw, RawId::parse(text));
    return Id{raw};
  }
  static Id from_bytes(BytesView bytes) { return Id{RawId::from_bytes(bytes)}; }
  auto operator<=>(const Id&) const = default;
};

using ClusterId = Id<struct ClusterTag>;
using NodeId = Id<struct NodeTag>;
using JobId = Id<struct JobTag>;
using ActorId = Id<struct ActorTag>;
using TaskId = Id<struct TaskTag>;
using ObjectId = Id<struct ObjectTag>;
using LeaseId = Id<struct LeaseTag>;
using ProcessId = Id<struct ProcessTag>;
using DeploymentId = Id<struct DeploymentTag>;
using PlacementGroupId = Id<struct PlacementGroupTag>;

}  // namespace troupe

template <class Tag>
struct std::hash<troupe::Id<Tag>> {
  // Ids are random, so their bits are a hash already.
  size_t operator()(const troupe::Id<Tag>& id) const noexcept { return id.high ^ id.low; }
};
