#include "protocol/codec.h"

#include <capnp/any.h>
#include <capnp/message.h>
#include <capnp/schema.h>
#include <capnp/serialize.h>

#include <array>
#include <boost/pfr/core.hpp>
#include <cstring>
#include <type_traits>

#include "protocol/message_list.h"
#include "troupe.capnp.h"

namespace troupe::protocol {
namespace {

template <class T>
constexpr bool is_vector = false;
template <class T>
constexpr bool is_vector<std::vector<T>> = true;

template <class T>
constexpr bool is_id = std::is_base_of_v<RawId, T>;

template <class T>
capnp::StructSchema schema_of();

// Where the fields of a struct lie: the n-th in the data section, in units of its own size (bits
// for a bool), or among the pointers. Looked up once, for asking the schema costs more than the
// fields themselves.
template <class T>
struct Layout {
  uint16_t data_words = 0;
  uint16_t pointers = 0;
  std::array<uint32_t, boost::pfr::tuple_size_v<T>> offsets{};
};

template <class T>
capnp::schema::Type::Which kind_of() {
  using capnp::schema::Type;
  if constexpr (std::is_same_v<T, bool>) return Type::BOOL;
  if constexpr (std::is_same_v<T, int32_t>) return Type::INT32;
  if constexpr (std::is_same_v<T, int64_t>) return Type::INT64;
  if constexpr (std::is_same_v<T, uint16_t>) return Type::UINT16;
  if constexpr (std::is_same_v<T, uint32_t>) return Type::UINT32;
  if constexpr (std::is_same_v<T, uint64_t>) return Type::UINT64;
  if constexpr (std::is_same_v<T, double>) return Type::FLOAT64;
  if constexpr (std::is_same_v<T, std::string>) return Type::TEXT;
  if constexpr (std::is_same_v<T, Bytes> || is_id<T>) return Type::DATA;
  if constexpr (is_vector<T> && !std::is_same_v<T, Bytes>) return Type::LIST;
  return Type::STRUCT;
}

// Plain struct and schema must agree, or messages would lose fields in silence.
template <class T>
Layout<T> find_layout() {
  const auto schema = schema_of<T>();
  const auto proto = schema.getProto().getStruct();
  const auto fields = schema.getFields();
  TROUPE_ASSERT(fields.size() == boost::pfr::tuple_size_v<T>,
                "a struct of messages.h and its schema differ");
  Layout<T> layout{proto.getDataWordCount(), proto.getPointerCount(), {}};
  const T example{};
  boost::pfr::for_each_field(example, [&](const auto& value, size_t index) {
    using Value = std::decay_t<decltype(value)>;
    const auto slot = fields[static_cast<unsigned>(index)].getProto().getSlot();
    TROUPE_ASSERT(slot.getType().which() == kind_of<Value>() && !slot.getHadExplicitDefault(),
                  "a field of messages.h and its schema differ");
    layout.offsets[index] = slot.getOffset();
  });
  return layout;
}

template <class T>
const Layout<T>& layout_of() {
  static const Layout<T> layout = find_layout<T>();
  return layout;
}

using Pointers = capnp::List<capnp::AnyPointer>;

template <class T>
void write_fields(capnp::AnyStruct::Builder out, const T& message);

template <class T>
void write_list(capnp::AnyPointer::Builder out, const std::vector<T>& values) {
  const auto count = static_cast<unsigned>(values.size());
  if constexpr (is_id<T>) {
    auto list = out.initAs<capnp::List<capnp::Data>>(count);
    for (unsigned i = 0; i < count; ++i) values[i].to_bytes(list.init(i, 16).begin());
  } else if constexpr (std::is_arithmetic_v<T>) {
    auto list = out.initAs<capnp::List<T>>(count);
    for (unsigned i = 0; i < count; ++i) list.set(i, values[i]);
  } else if constexpr (std::is_same_v<T, std::string>) {
    auto list = out.initAs<capnp::List<capnp::Text>>(count);
    for (unsigned i = 0; i < count; ++i) {
      list.set(i, capnp::Text::Reader(values[i].data(), values[i].size()));
    }
  } else {
    const Layout<T>& layout = layout_of<T>();
    auto list = out.initAsListOfAnyStruct(layout.data_words, layout.pointers, count);
    for (unsigned i = 0; i < count; ++i) write_fields(list[i], values[i]);
  }
}

// Never null, or empty, ones.
template <class T>
void write_pointer(capnp::AnyPointer::Builder out, const T& value) {
  if constexpr (is_id<T>) {
    value.to_bytes(out.initAs<capnp::Data>(16).begin());
  } else if constexpr (std::is_same_v<T, std::string>) {
    out.setAs<capnp::Text>(capnp::Text::Reader(value.data(), value.size()));
  } else if constexpr (std::is_same_v<T, Bytes>) {
    out.setAs<capnp::Data>(capnp::Data::Reader(value.data(), value.size()));
  } else if constexpr (is_vector<T>) {
    write_list(out, value);
  } else {
    const Layout<T>& layout = layout_of<T>();
    write_fields(out.initAsAnyStruct(layout.data_words, layout.pointers), value);
  }
}

template <class T>
bool is_left_out(const T& value) {
  if constexpr (is_id<T>) {
    return value.is_nil();
  } else if constexpr (std::is_same_v<T, std::string> || is_vector<T>) {
    return value.empty();
  } else {
    return false;
  }
}

template <class T>
void write_fields(capnp::AnyStruct::Builder out, const T& message) {
  const Layout<T>& layout = layout_of<T>();
  uint8_t* const data = out.getDataSection().begin();
  Pointers::Builder pointers = out.getPointerSection();
  boost::pfr::for_each_field(message, [&](const auto& value, size_t index) {
    using Value = std::decay_t<decltype(value)>;
    const uint32_t offset = layout.offsets[index];
    if constexpr (std::is_same_v<Value, bool>) {
      if (value) data[offset / 8] = static_cast<uint8_t>(data[offset / 8] | 1u << offset % 8);
    } else if constexpr (std::is_arithmetic_v<Value>) {
      std::memcpy(data + offset * sizeof value, &value, sizeof value);
    } else {
      if (!is_left_out(value)) write_pointer(pointers[offset], value);
    }
  });
}

template <class T>
void read_fields(capnp::AnyStruct::Reader in, T& message);

template <class T>
void read_pointer(capnp::AnyPointer::Reader in, T& value) {
  if constexpr (is_id<T>) {
    const auto data = in.getAs<capnp::Data>();
    static_cast<RawId&>(value) = RawId::from_bytes({data.begin(), data.size()});
  } else if constexpr (std::is_same_v<T, std::string>) {
    const auto text = in.getAs<capnp::Text>();
    value.assign(text.begin(), text.size());
  } else if constexpr (std::is_same_v<T, Bytes>) {
    const auto data = in.getAs<capnp::Data>();
    value.assign(data.begin(), data.end());
  } else if constexpr (is_vector<T>) {
    using Element = typename T::value_type;
    if constexpr (std::is_arithmetic_v<Element>) {
      const auto list = in.getAs<capnp::List<Element>>();
      value.resize(list.size());
      for (unsigned i = 0; i < list.size(); ++i) value[i] = list[i];
    } else if constexpr (is_id<Element>) {
      const auto list = in.getAs<capnp::List<capnp::Data>>();
      value.resize(list.size());
      for (unsigned i = 0; i < list.size(); ++i) {
        const auto data = list[i];
        static_cast<RawId&>(value[i]) = RawId::from_bytes({data.begin(), data.size()});
      }
    } else if constexpr (std::is_same_v<Element, std::string>) {
      const auto list = in.getAs<capnp::List<capnp::Text>>();
      value.resize(list.size());
      for (unsigned i = 0; i < list.size(); ++i) value[i].assign(list[i].begin(), list[i].size());
    } else {
      const auto any = in.getAs<capnp::AnyList>();
      KJ_REQUIRE(any.getElementSize() == capnp::ElementSize::INLINE_COMPOSITE,
                 "not a list of structs");
      const auto list = any.as<capnp::List<capnp::AnyStruct>>();
      value.resize(list.size());
      for (unsigned i = 0; i < list.size(); ++i) read_fields(list[i], value[i]);
    }
  } else {
    read_fields(in.getAs<capnp::AnyStruct>(), value);
  }
}

// What a peer of an older version did not write keeps its default.
template <class T>
void read_fields(capnp::AnyStruct::Reader in, T& message) {
  const Layout<T>& layout = layout_of<T>();
  const auto data = in.getDataSection();
  const Pointers::Reader pointers = in.getPointerSection();
  boost::pfr::for_each_field(message, [&](auto& value, size_t index) {
    using Value = std::decay_t<decltype(value)>;
    const size_t offset = layout.offsets[index];
    if constexpr (std::is_same_v<Value, bool>) {
      if (offset / 8 < data.size()) value = (data[offset / 8] >> offset % 8 & 1) != 0;
    } else if constexpr (std::is_arithmetic_v<Value>) {
      if ((offset + 1) * sizeof value <= data.size()) {
        std::memcpy(&value, data.begin() + offset * sizeof value, sizeof value);
      }
    } else {
      if (offset >= pointers.size()) return;
      const auto pointer = pointers[static_cast<unsigned>(offset)];
      if (!pointer.isNull()) read_pointer(pointer, value);
    }
  });
}

template <class T>
Bytes encode_as(const T& message) {
  capnp::word scratch[128] = {};  // Enough for most: a larger message takes memory.
  capnp::MallocMessageBuilder builder{scratch};
  write_pointer(builder.getRoot<capnp::AnyPointer>(), message);
  const auto segments = builder.getSegmentsForOutput();
  Bytes bytes(capnp::computeSerializedSizeInWords(segments) * sizeof(capnp::word));
  kj::ArrayOutputStream out{kj::arrayPtr(bytes.data(), bytes.size())};
  capnp::writeMessage(out, segments);
  return bytes;
}

template <class T>
Result<T> decode_as(BytesView bytes) {
  try {
    const size_t words = bytes.size() / sizeof(capnp::word);
    kj::Array<capnp::word> aligned;
    const auto* first = reinterpret_cast<const capnp::word*>(bytes.data());
    if (reinterpret_cast<uintptr_t>(first) % alignof(capnp::word) != 0) {
      aligned = kj::heapArray<capnp::word>(words);
      std::memcpy(aligned.begin(), bytes.data(), words * sizeof(capnp::word));
      first = aligned.begin();
    }
    capnp::ReaderOptions options;
    // A message may be walked twice over at most, so shared pointers cannot blow it up.
    options.traversalLimitInWords = words * 2 + 64;
    options.nestingLimit = 16;
    capnp::FlatArrayMessageReader reader{kj::arrayPtr(first, words), options};
    T message;
    const auto root = reader.getRoot<capnp::AnyPointer>();
    if (!root.isNull()) read_fields(root.getAs<capnp::AnyStruct>(), message);
    return message;
  } catch (const kj::Exception& caught) {
    return error(Code::invalid,
                 std::string("malformed message: ") + caught.getDescription().cStr());
  }
}

}  // namespace

#define TROUPE_PART(Name)                       \
  namespace {                                   \
  template <>                                   \
  capnp::StructSchema schema_of<Name>() {       \
    return capnp::Schema::from<schema::Name>(); \
  }                                             \
  }
#define TROUPE_MESSAGE(Name)                   \
  TROUPE_PART(Name)                            \
  template <>                                  \
  Bytes encode<Name>(const Name& message) {    \
    return encode_as(message);                 \
  }                                            \
  template <>                                  \
  Result<Name> decode<Name>(BytesView bytes) { \
    return decode_as<Name>(bytes);             \
  }

TROUPE_MESSAGE_PARTS(TROUPE_PART)
TROUPE_MESSAGES(TROUPE_MESSAGE)

template <>
Bytes encode<Empty>(const Empty&) {
  return {};
}
template <>
Result<Empty> decode<Empty>(BytesView) {
  return Empty{};
}

}  // namespace troupe::protocol
