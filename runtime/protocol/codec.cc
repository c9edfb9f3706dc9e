#include "protocol/codec.h"

#include <capnp/dynamic.h>
#include <capnp/message.h>
#include <capnp/serialize.h>

#include <boost/pfr/core.hpp>
#include <type_traits>

#include "troupe.capnp.h"

namespace troupe::protocol {
namespace {

template <class T>
constexpr bool is_vector = false;
template <class T>
constexpr bool is_vector<std::vector<T>> = true;

template <class T>
constexpr bool is_id = std::is_base_of_v<RawId, T>;

void write_fields(capnp::DynamicStruct::Builder out, const auto& message);

template <class T>
void write_list(capnp::DynamicList::Builder out, const std::vector<T>& values) {
  for (unsigned i = 0; i < values.size(); ++i) {
    const T& value = values[i];
    if constexpr (is_id<T>) {
      uint8_t bytes[16];
      value.to_bytes(bytes);
      out.set(i, capnp::Data::Reader(bytes, 16));
    } else if constexpr (std::is_arithmetic_v<T>) {
      out.set(i, value);
    } else if constexpr (std::is_same_v<T, std::string>) {
      out.set(i, capnp::Text::Reader(value.data(), value.size()));
    } else {
      write_fields(out[i].template as<capnp::DynamicStruct>(), value);
    }
  }
}

template <class T>
void write_field(capnp::DynamicStruct::Builder out, capnp::StructSchema::Field field,
                 const T& value) {
  if constexpr (std::is_arithmetic_v<T>) {
    out.set(field, value);
  } else if constexpr (is_id<T>) {
    if (value.is_nil()) return;
    uint8_t bytes[16];
    value.to_bytes(bytes);
    out.set(field, capnp::Data::Reader(bytes, 16));
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!value.empty()) out.set(field, capnp::Text::Reader(value.data(), value.size()));
  } else if constexpr (std::is_same_v<T, Bytes>) {
    if (!value.empty()) out.set(field, capnp::Data::Reader(value.data(), value.size()));
  } else if constexpr (is_vector<T>) {
    if (value.empty()) return;
    write_list(
        out.init(field, static_cast<unsigned>(value.size())).template as<capnp::DynamicList>(),
        value);
  } else {
    write_fields(out.init(field).template as<capnp::DynamicStruct>(), value);
  }
}

void write_fields(capnp::DynamicStruct::Builder out, const auto& message) {
  const auto fields = out.getSchema().getFields();
  boost::pfr::for_each_field(message, [&](const auto& value, size_t index) {
    write_field(out, fields[static_cast<unsigned>(index)], value);
  });
}

void read_fields(capnp::DynamicStruct::Reader in, auto& message);

template <class T>
void read_value(const capnp::DynamicValue::Reader& in, T& value) {
  if constexpr (std::is_arithmetic_v<T>) {
    value = in.as<T>();
  } else if constexpr (is_id<T>) {
    const auto data = in.as<capnp::Data>();
    static_cast<RawId&>(value) = RawId::from_bytes({data.begin(), data.size()});
  } else if constexpr (std::is_same_v<T, std::string>) {
    const auto text = in.as<capnp::Text>();
    value.assign(text.begin(), text.size());
  } else if constexpr (std::is_same_v<T, Bytes>) {
    const auto data = in.as<capnp::Data>();
    value.assign(data.begin(), data.end());
  } else if constexpr (is_vector<T>) {
    const auto list = in.as<capnp::DynamicList>();
    value.resize(list.size());
    for (unsigned i = 0; i < list.size(); ++i) read_value(list[i], value[i]);
  } else {
    read_fields(in.as<capnp::DynamicStruct>(), value);
  }
}

void read_fields(capnp::DynamicStruct::Reader in, auto& message) {
  const auto fields = in.getSchema().getFields();
  boost::pfr::for_each_field(message, [&](auto& value, size_t index) {
    const auto field = fields[static_cast<unsigned>(index)];
    if (in.has(field)) read_value(in.get(field), value);
  });
}

// Plain struct and schema must agree, or messages would lose fields in silence.
template <class T>
capnp::StructSchema schema_of();

template <class T>
Bytes encode_as(const T& message) {
  capnp::MallocMessageBuilder builder;
  const auto schema = schema_of<T>();
  TROUPE_ASSERT(schema.getFields().size() == boost::pfr::tuple_size_v<T>,
                "a struct of messages.h and its schema differ");
  write_fields(builder.initRoot<capnp::DynamicStruct>(schema), message);
  const auto segments = builder.getSegmentsForOutput();
  Bytes bytes(capnp::computeSerializedSizeInWords(segments) * sizeof(capnp::word));
  kj::ArrayOutputStream out{kj::arrayPtr(bytes.data(), bytes.size())};
  capnp::writeMessage(out, segments);
  return bytes;
}

template <class T>
Result<T> decode_as(BytesView bytes) {
  try {
    kj::ArrayInputStream in{kj::arrayPtr(bytes.data(), bytes.size())};
    capnp::ReaderOptions options;
    // A message may be walked twice over at most, so shared pointers cannot blow it up.
    options.traversalLimitInWords = bytes.size() / sizeof(capnp::word) * 2 + 64;
    options.nestingLimit = 16;
    capnp::InputStreamMessageReader reader{in, options};
    T message;
    read_fields(reader.getRoot<capnp::DynamicStruct>(schema_of<T>()), message);
    return message;
  } catch (const kj::Exception& caught) {
    return error(Code::invalid,
                 std::string("malformed message: ") + caught.getDescription().cStr());
  }
}

}  // namespace

#define TROUPE_MESSAGE(Name)                    \
  namespace {                                   \
  template <>                                   \
  capnp::StructSchema schema_of<Name>() {       \
    return capnp::Schema::from<schema::Name>(); \
  }                                             \
  }                                             \
  template <>                                   \
  Bytes encode<Name>(const Name& message) {     \
    return encode_as(message);                  \
  }                                             \
  template <>                                   \
  Result<Name> decode<Name>(BytesView bytes) {  \
    return decode_as<Name>(bytes);              \
  }

TROUPE_MESSAGE(ErrorInfo)
TROUPE_MESSAGE(ProcessAddress)
TROUPE_MESSAGE(Hello)
TROUPE_MESSAGE(RegisterNode)
TROUPE_MESSAGE(NodeRegistered)
TROUPE_MESSAGE(Heartbeat)
TROUPE_MESSAGE(HeartbeatReply)
TROUPE_MESSAGE(ActorGauges)
TROUPE_MESSAGE(ProcessExited)
TROUPE_MESSAGE(NodeInfo)
TROUPE_MESSAGE(BeginJob)
TROUPE_MESSAGE(EndJob)
TROUPE_MESSAGE(JobInfo)
TROUPE_MESSAGE(Argument)
TROUPE_MESSAGE(ActorSpec)
TROUPE_MESSAGE(ActorInfo)
TROUPE_MESSAGE(GetActor)
TROUPE_MESSAGE(KillActor)
TROUPE_MESSAGE(ActorRecord)
TROUPE_MESSAGE(StartActor)
TROUPE_MESSAGE(ProcessStarted)
TROUPE_MESSAGE(StopActor)
TROUPE_MESSAGE(RequestLease)
TROUPE_MESSAGE(LeaseGranted)
TROUPE_MESSAGE(RenewLease)
TROUPE_MESSAGE(ReturnLease)
TROUPE_MESSAGE(SlotWaits)
TROUPE_MESSAGE(YieldSlots)
TROUPE_MESSAGE(StartSlots)
TROUPE_MESSAGE(SlotsStarted)
TROUPE_MESSAGE(StopSlots)
TROUPE_MESSAGE(Invoke)
TROUPE_MESSAGE(InvokeReply)
TROUPE_MESSAGE(StopProcess)
TROUPE_MESSAGE(AssignActor)
TROUPE_MESSAGE(AssignSlot)
TROUPE_MESSAGE(ObjectValue)
TROUPE_MESSAGE(ObjectValues)
TROUPE_MESSAGE(ObjectIds)
TROUPE_MESSAGE(ObjectCopied)
TROUPE_MESSAGE(ListObjects)
TROUPE_MESSAGE(ObjectEntry)
TROUPE_MESSAGE(ObjectList)
TROUPE_MESSAGE(ConcurrencyGroup)
TROUPE_MESSAGE(ActorSpecs)
TROUPE_MESSAGE(ActorResult)
TROUPE_MESSAGE(ActorResults)
TROUPE_MESSAGE(ActorIds)
TROUPE_MESSAGE(StartActors)
TROUPE_MESSAGE(StartedActor)
TROUPE_MESSAGE(ActorsStarted)
TROUPE_MESSAGE(StopActors)
TROUPE_MESSAGE(AssignActors)
TROUPE_MESSAGE(EndActor)
TROUPE_MESSAGE(EndActors)
TROUPE_MESSAGE(SegmentAttached)
TROUPE_MESSAGE(DropSegments)
TROUPE_MESSAGE(ReserveExtent)
TROUPE_MESSAGE(Block)
TROUPE_MESSAGE(SealBlocks)
TROUPE_MESSAGE(ReturnExtents)
TROUPE_MESSAGE(GetBlock)
TROUPE_MESSAGE(ReleaseBlocks)
TROUPE_MESSAGE(FetchChunk)
TROUPE_MESSAGE(Chunk)
TROUPE_MESSAGE(AttachProcess)
TROUPE_MESSAGE(Attached)
TROUPE_MESSAGE(OpenRing)
TROUPE_MESSAGE(RingOffer)
TROUPE_MESSAGE(ReadLog)
TROUPE_MESSAGE(LogChunk)
TROUPE_MESSAGE(CollectiveChunk)
TROUPE_MESSAGE(DeploymentSpec)
TROUPE_MESSAGE(DeploymentInfo)
TROUPE_MESSAGE(NameOf)
TROUPE_MESSAGE(NodeList)
TROUPE_MESSAGE(ActorList)
TROUPE_MESSAGE(JobList)
TROUPE_MESSAGE(DeploymentList)
TROUPE_MESSAGE(ClusterInfo)
TROUPE_MESSAGE(PlacementSpec)
TROUPE_MESSAGE(PlacementGroupSpecs)
TROUPE_MESSAGE(PlacementGroupResults)
TROUPE_MESSAGE(PlacementGroupInfo)
TROUPE_MESSAGE(PlacementGroupList)
TROUPE_MESSAGE(GetPlacementGroup)
TROUPE_MESSAGE(RemovePlacementGroups)

template <>
Bytes encode<Empty>(const Empty&) {
  return {};
}
template <>
Result<Empty> decode<Empty>(BytesView) {
  return Empty{};
}

}  // namespace troupe::protocol
