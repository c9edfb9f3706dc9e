#include "tests/fuzz/seeds.h"

#include <cstring>

#include "base/random.h"
#include "base/timeline.h"
#include "protocol/call_record.h"
#include "protocol/codec.h"
#include "protocol/frame.h"
#include "protocol/message_list.h"
#include "security/identity.h"
#include "security/join_token.h"

namespace troupe::fuzz {
namespace {

using namespace protocol;

class Seeds {
 public:
  void add(const std::string& target, Bytes bytes) { made.push_back({target, std::move(bytes)}); }
  std::vector<Seed> made;
};

std::vector<Argument> some_arguments(Random& random) {
  Argument ref;
  ref.object = ObjectId::random(random);
  ref.owner.process = ProcessId::random(random);
  ref.owner.unix_path = "/socket";
  return {{to_bytes("first"), {}, {}}, std::move(ref), {{}, {}, {}}};
}

Bytes reply_record(ReplyForm form, const Bytes& body) {
  Bytes record(reply_head_bytes + body.size());
  write_reply_record(record.data(), form, 7, body);
  return record;
}

// A call as it lies in a TLS stream: see transport/socket_channel.h.
Bytes in_stream(const Bytes& record) {
  const auto record_bytes = static_cast<uint32_t>(record.size());
  const uint32_t words[] = {0, record_bytes + 16, record_bytes, 2, 1, 1};
  Bytes stream(sizeof words + record.size());
  std::memcpy(stream.data(), words, sizeof words);
  std::memcpy(stream.data() + sizeof words, record.data(), record.size());
  return stream;
}

// Of every kind one, with all fields as they are made; the first byte is its place in the list.
void add_messages(Seeds& seeds) {
  uint8_t which = 0;
  const auto add = [&](Bytes bytes) {
    bytes.insert(bytes.begin(), which++);
    seeds.add("message", bytes);
  };
#define TROUPE_ADD_SEED(Name) add(encode(Name{}));
  TROUPE_MESSAGES(TROUPE_ADD_SEED)
#undef TROUPE_ADD_SEED
}

void add_texts(Seeds& seeds, const std::string& target, const std::vector<std::string>& texts) {
  for (size_t i = 0; i < texts.size(); ++i) {
    Bytes bytes = to_bytes(texts[i]);
    bytes.insert(bytes.begin(), static_cast<uint8_t>(i));
    seeds.add(target, bytes);
  }
}

// As packages/archive.h describes it.
Bytes archive() {
  const auto entry = [](char kind, const std::string& name, const std::string& content) {
    const auto name_bytes = static_cast<uint32_t>(name.size());
    const uint64_t content_bytes = content.size();
    std::string text(1, kind);
    text.append(reinterpret_cast<const char*>(&name_bytes), sizeof name_bytes);
    text += name;
    text.append(reinterpret_cast<const char*>(&content_bytes), sizeof content_bytes);
    return text + content;
  };
  return to_bytes("troupe archive 1\n" + entry('d', "code", "") + entry('x', "code/run", "echo") +
                  entry('l', "code/link", "../data") + entry('f', "data", "content") + "e");
}

}  // namespace

std::vector<Seed> make_seeds() {
  Seeds seeds;
  SeededRandom random{1};
  const auto arguments = some_arguments(random);
  for (const size_t count : {0u, 1u, 3u}) {
    const std::vector<Argument> some{arguments.begin(),
                                     arguments.begin() + static_cast<ptrdiff_t>(count)};
    CallHead head;
    head.actor = ActorId::random(random);
    Bytes record(call_record_bytes("method", some));
    write_call_record(record.data(), head, "method", some);
    seeds.add("call_record", record);
    seeds.add("socket", in_stream(record));
    Invoke invoke;
    invoke.actor = head.actor;
    invoke.method = "method";
    invoke.arguments = some;
    seeds.add("invoke", encode(invoke));
  }
  InvokeReply reply;
  reply.inline_value = to_bytes("value");
  reply.borrowed = {ObjectId::random(random)};
  reply.node.host = "10.0.0.1";
  seeds.add("invoke_reply", encode(reply));
  const Bytes failure = encode(to_info(error(Code::conflict, "why").at("here")));
  seeds.add("reply_record", reply_record(ReplyForm::value, to_bytes("value")));
  seeds.add("reply_record", reply_record(ReplyForm::reply, encode(reply)));
  seeds.add("reply_record", reply_record(ReplyForm::error, failure));
  FrameHeader header;
  header.kind = FrameKind::reply;
  header.call = 7;
  header.error = to_info(error(Code::not_found, "nothing"));
  seeds.add("frame_header", encode_header(header));
  Bytes timeline;
  for (uint8_t kind = 1; kind <= static_cast<uint8_t>(timeline_kind_last); ++kind) {
    TimelineEvent event;
    event.kind = static_cast<TimelineKind>(kind);
    event.duration = std::chrono::milliseconds(kind);
    event.amount = kind;
    append_record(timeline, event);
  }
  seeds.add("timeline", timeline);
  seeds.add("archive", archive());
  add_messages(seeds);
  security::PeerIdentity identity;
  identity.role = security::Role::node;
  identity.cluster = "cluster";
  identity.name = "node-1";
  add_texts(
      seeds, "credential",
      {security::to_text(security::make_join_token({}, random)), security::identity_uri(identity)});
  add_texts(seeds, "gateway",
            {R"({"model":"m","prompt":["a",[1,2]],"n":2,"stop":["x"],"logprobs":3,"stream":true,)"
             R"("stream_options":{"include_usage":true},"temperature":0.5,"seed":7})",
             R"({"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":5})",
             R"({"text":"a","tokens":[1],"finish_reason":null,"prompt_tokens":1,)"
             R"("completion_tokens":1,"logprobs":[{"token":"a","logprob":-1,"top":[]}]})"});
  Bytes framed = encode_header(header);
  const uint32_t lengths[] = {static_cast<uint32_t>(framed.size()), 0};
  const auto* first = reinterpret_cast<const uint8_t*>(lengths);
  framed.insert(framed.begin(), first, first + sizeof lengths);
  seeds.add("socket", framed);
  for (const auto op : Bytes{0, 1, 3, 4, 7}) seeds.add("ring", Bytes(64, op));
  for (uint8_t which = 0; which < 6; ++which) {
    Bytes value(300);
    value[0] = which;
    value[1] = 1;
    seeds.add("sdk_reader", value);
  }
  return std::move(seeds.made);
}

}  // namespace troupe::fuzz
