// Values as bytes: numbers, enums, strings, the standard containers, optional, pair, tuple, refs,
// and any plain struct (aggregate) of these, field by field through Boost.PFR. Little-endian.
#pragma once

#include <array>
#include <boost/pfr/core.hpp>
#include <concepts>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace troupe {

namespace protocol {
struct ProcessAddress;
}

template <class T>
class ObjectRef;
template <class A>
class ActorRef;

namespace detail {

class SessionImpl;
class RefHandle;

// Writes values: appends them to `bytes` or, made by counting() or in_place(), only counts them or
// puts them where they belong. Collects the refs inside them, which must stay alive until the bytes
// were delivered.
struct Writer {
  Bytes bytes;
  std::vector<std::shared_ptr<RefHandle>> refs;
  // Of the refs so far: each is written once.
  std::vector<std::shared_ptr<const protocol::ProcessAddress>> owners = {};

  enum class To : uint8_t { bytes, nowhere, place };
  To to = To::bytes;
  bool holds_refs = false;   // counting() found one; they are not counted.
  size_t written = 0;        // Unless to `bytes`.
  uint8_t* place = nullptr;  // Has room for all that is written.

  static Writer counting() {
    Writer out{};
    out.to = To::nowhere;
    return out;
  }
  static Writer in_place(uint8_t* place) {
    Writer out{};
    out.to = To::place;
    out.place = place;
    return out;
  }

  void raw(const void* data, size_t size) {
    if (to == To::bytes) {
      const auto* first = static_cast<const uint8_t*>(data);
      bytes.insert(bytes.end(), first, first + size);
      return;
    }
    if (to == To::place && size > 0) std::memcpy(place + written, data, size);
    written += size;
  }
};

// Takes values off. Any overrun turns `failed` on and yields zeros from then on.
struct Reader {
  BytesView bytes;
  std::shared_ptr<SessionImpl> session;  // Whose refs are made.
  bool failed = false;
  std::vector<std::shared_ptr<const protocol::ProcessAddress>> owners = {};  // As in Writer.

  void raw(void* out, size_t size) {
    if (size > bytes.size()) {
      failed = true;
      std::memset(out, 0, size);
      return;
    }
    if (size > 0) std::memcpy(out, bytes.data(), size);
    bytes = bytes.subspan(size);
  }
  // The length of a sequence whose elements take at least one byte each.
  size_t length(size_t element_bytes) {
    uint64_t count = 0;
    raw(&count, sizeof count);
    if (count > bytes.size() / element_bytes) {
      failed = true;
      return 0;
    }
    return static_cast<size_t>(count);
  }
};

// How one type is written; specialised for what is not covered below.
template <class T>
struct Codec;

template <class T>
concept Scalar = std::is_arithmetic_v<T> || std::is_enum_v<T>;

// Whether a T in memory is the bytes that are written of it: numbers, enums, arrays of these, and
// plain structs of these without padding. So many of them are copied at once, and can be viewed.
template <class T>
struct IsDense {
  template <size_t... I>
  static constexpr bool fields_fill(std::index_sequence<I...>) {
    return ((sizeof(boost::pfr::tuple_element_t<I, T>) + ... + size_t{0}) == sizeof(T)) &&
           (IsDense<boost::pfr::tuple_element_t<I, T>>::check() && ...);
  }
  static constexpr bool check() {
    if constexpr (Scalar<T>) {
      return !std::is_same_v<T, bool>;
    } else if constexpr (std::is_aggregate_v<T> && std::is_class_v<T> &&
                         std::is_trivially_copyable_v<T> && std::is_default_constructible_v<T>) {
      return fields_fill(std::make_index_sequence<boost::pfr::tuple_size_v<T>>{});
    } else {
      return false;
    }
  }
};
template <class T, size_t N>
struct IsDense<std::array<T, N>> {
  static constexpr bool check() { return N > 0 && IsDense<T>::check(); }
};
// No alignment beyond that of the elements of a viewed array (see View).
template <class T>
concept Dense = IsDense<T>::check() && alignof(T) <= 8;

constexpr uint64_t hash_start = 0xcbf29ce484222325;
constexpr uint64_t hash_mix(uint64_t hash, uint64_t value) {
  return (hash ^ value) * 0x100000001b3 + (hash >> 29);
}

template <class T>
uint64_t type_hash() {
  return Codec<std::remove_cvref_t<T>>::hash();
}
template <class T>
void write(Writer& out, const T& value) {
  Codec<T>::write(out, value);
}
template <class T>
void read(Reader& in, T& value) {
  Codec<T>::read(in, value);
}

template <Scalar T>
struct Codec<T> {
  static uint64_t hash() {
    return hash_mix(hash_mix(1, sizeof(T)), std::is_floating_point_v<T> ? 2u
                                            : std::is_signed_v<T>       ? 1u
                                                                        : 0u);
  }
  static void write(Writer& out, const T& value) { out.raw(&value, sizeof value); }
  static void read(Reader& in, T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      in.raw(&byte, 1);
      value = byte != 0;
    } else {
      in.raw(&value, sizeof value);
    }
  }
};

template <>
struct Codec<std::string> {
  static uint64_t hash() { return 11; }
  static void write(Writer& out, const std::string& value) {
    detail::write<uint64_t>(out, value.size());
    out.raw(value.data(), value.size());
  }
  static void read(Reader& in, std::string& value) {
    value.resize(in.length(1));
    in.raw(value.data(), value.size());
  }
};

template <class T>
struct Codec<std::vector<T>> {
  static constexpr bool bulk = Dense<T>;
  static uint64_t hash() { return hash_mix(12, type_hash<T>()); }
  static void write(Writer& out, const std::vector<T>& value) {
    detail::write<uint64_t>(out, value.size());
    if constexpr (bulk) {
      out.raw(value.data(), value.size() * sizeof(T));
    } else {
      for (const T& element : value) detail::write<T>(out, element);
    }
  }
  static void read(Reader& in, std::vector<T>& value) {
    const size_t count = in.length(bulk ? sizeof(T) : 1);
    value.clear();
    if constexpr (bulk) {
      value.resize(count);
      in.raw(value.data(), count * sizeof(T));
    } else {
      for (size_t i = 0; i < count && !in.failed; ++i) {
        T element{};
        detail::read<T>(in, element);
        value.push_back(std::move(element));
      }
    }
  }
};

template <class T, size_t N>
struct Codec<std::array<T, N>> {
  static uint64_t hash() { return hash_mix(hash_mix(13, N), type_hash<T>()); }
  static void write(Writer& out, const std::array<T, N>& value) {
    for (const T& element : value) detail::write<T>(out, element);
  }
  static void read(Reader& in, std::array<T, N>& value) {
    for (T& element : value) detail::read<T>(in, element);
  }
};

template <class T>
struct Codec<std::optional<T>> {
  static uint64_t hash() { return hash_mix(14, type_hash<T>()); }
  static void write(Writer& out, const std::optional<T>& value) {
    detail::write<bool>(out, value.has_value());
    if (value) detail::write<T>(out, *value);
  }
  static void read(Reader& in, std::optional<T>& value) {
    bool present = false;
    detail::read(in, present);
    value.reset();
    if (present) detail::read<T>(in, value.emplace());
  }
};

template <class... Ts>
struct Codec<std::tuple<Ts...>> {
  static uint64_t hash() {
    uint64_t hash = hash_mix(15, sizeof...(Ts));
    ((hash = hash_mix(hash, type_hash<Ts>())), ...);
    return hash;
  }
  static void write(Writer& out, const std::tuple<Ts...>& value) {
    std::apply([&](const Ts&... parts) { (detail::write<Ts>(out, parts), ...); }, value);
  }
  static void read(Reader& in, std::tuple<Ts...>& value) {
    std::apply([&](Ts&... parts) { (detail::read<Ts>(in, parts), ...); }, value);
  }
};

template <class A, class B>
struct Codec<std::pair<A, B>> {
  static uint64_t hash() { return hash_mix(hash_mix(16, type_hash<A>()), type_hash<B>()); }
  static void write(Writer& out, const std::pair<A, B>& value) {
    detail::write<std::remove_const_t<A>>(out, value.first);
    detail::write<B>(out, value.second);
  }
  static void read(Reader& in, std::pair<A, B>& value) {
    detail::read<A>(in, value.first);
    detail::read<B>(in, value.second);
  }
};

template <class Map>
struct MapCodec {
  using Key = typename Map::key_type;
  using Mapped = typename Map::mapped_type;
  static uint64_t hash() { return hash_mix(hash_mix(17, type_hash<Key>()), type_hash<Mapped>()); }
  static void write(Writer& out, const Map& value) {
    detail::write<uint64_t>(out, value.size());
    for (const auto& [key, mapped] : value) {
      detail::write<Key>(out, key);
      detail::write<Mapped>(out, mapped);
    }
  }
  static void read(Reader& in, Map& value) {
    value.clear();
    const size_t count = in.length(1);
    for (size_t i = 0; i < count && !in.failed; ++i) {
      Key key{};
      detail::read<Key>(in, key);
      detail::read<Mapped>(in, value[std::move(key)]);
    }
  }
};
template <class K, class V>
struct Codec<std::map<K, V>> : MapCodec<std::map<K, V>> {};
template <class K, class V>
struct Codec<std::unordered_map<K, V>> : MapCodec<std::unordered_map<K, V>> {};

// Plain structs.
template <class T>
  requires(std::is_aggregate_v<T> && std::is_class_v<T>)
struct Codec<T> {
  static uint64_t hash() {
    uint64_t hash = hash_mix(18, boost::pfr::tuple_size_v<T>);
    T sample{};
    boost::pfr::for_each_field(
        sample, [&](const auto& field) { hash = hash_mix(hash, type_hash<decltype(field)>()); });
    return hash;
  }
  static void write(Writer& out, const T& value) {
    boost::pfr::for_each_field(value, [&](const auto& field) {
      detail::write<std::remove_cvref_t<decltype(field)>>(out, field);
    });
  }
  static void read(Reader& in, T& value) {
    boost::pfr::for_each_field(
        value, [&](auto& field) { detail::read<std::remove_cvref_t<decltype(field)>>(in, field); });
  }
};

template <class T>
concept Known = requires(Writer& out, const T& value) { Codec<T>::write(out, value); };

}  // namespace detail

// What can be an argument, a result or an object.
template <class T>
concept Serializable = detail::Known<std::remove_cvref_t<T>> && std::default_initializable<T>;

}  // namespace troupe
