#include "protocol/call_record.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/random.h"
#include "protocol/codec.h"

namespace troupe::protocol {
namespace {

class CallRecordTest : public testing::Test {
 protected:
  static Argument value(std::string_view text) { return {to_bytes(text), {}, {}}; }
  Argument ref() {
    Argument argument;
    argument.object = ObjectId::random(random);
    argument.owner.process = ProcessId::random(random);
    argument.owner.node = NodeId::random(random);
    argument.owner.unix_path = "/some/where.sock";
    return argument;
  }
  CallHead head() {
    CallHead made;
    made.actor = ActorId::random(random);
    made.result = ObjectId::random(random);
    made.signature = 0x1234567890abcdef;
    made.budget_us = 77;
    made.incarnation = 3;
    return made;
  }
  Bytes record(std::string_view method, const std::vector<Argument>& arguments) {
    // A byte more than was asked for shows a writer that goes beyond.
    Bytes bytes(call_record_bytes(method, arguments) + 1, 0xa5);
    write_call_record(bytes.data(), last_head = head(), method, arguments);
    EXPECT_EQ(bytes.back(), 0xa5);
    bytes.pop_back();
    return bytes;
  }
  template <class Field>
  static void put(Bytes& record, size_t at, Field field) {
    std::memcpy(record.data() + at, &field, sizeof field);
  }
  static Code code_of(BytesView record) {
    const auto call = read_call_record(record);
    return call ? Code::ok : call.error().code();
  }

  SeededRandom random{11};
  CallHead last_head;
};

constexpr size_t count_at = offsetof(CallHead, argument_count);
constexpr size_t method_at = offsetof(CallHead, method_bytes);

TEST_F(CallRecordTest, WhatFewCallsHaveComesBackToo) {
  const CallExtras extras{5'000'000, 1'000'000, 3, "train step"};
  const std::vector<Argument> arguments{value("a")};
  Bytes bytes(call_record_bytes("f", arguments, extras));
  write_call_record(bytes.data(), head(), "f", arguments, extras);
  const auto call = read_call_record(bytes);
  ASSERT_TRUE(call);
  EXPECT_EQ(call->method, "f");
  const auto invoke = to_invoke(*call);
  ASSERT_TRUE(invoke);
  EXPECT_EQ(invoke->time_limit_us, 5'000'000u);
  EXPECT_EQ(invoke->grace_us, 1'000'000u);
  EXPECT_EQ(invoke->results, 3u);
  EXPECT_EQ(invoke->name, "train step");
  EXPECT_EQ(as_text(invoke->arguments.at(0).inline_value), "a");
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(read_call_record(BytesView{bytes}.first(size))) << size;
  }
  const uint32_t endless = UINT32_MAX;  // The name's length.
  put(bytes, sizeof(CallHead) + 20, endless);
  EXPECT_EQ(code_of(bytes), Code::invalid);
}

TEST_F(CallRecordTest, ComesBackAsItWasWritten) {
  const std::vector<Argument> arguments{
      value(""), value("a"), ref(), value("12345678"), value(std::string(65536, 'x')), ref()};
  for (const std::string_view method : {"", "f", "a_method", "a_method_of_17_by"}) {
    const Bytes bytes = record(method, arguments);
    const auto call = read_call_record(bytes).value();
    EXPECT_EQ(call.method, method);
    EXPECT_EQ(call.head.actor, last_head.actor);
    EXPECT_EQ(call.head.result, last_head.result);
    EXPECT_EQ(call.head.signature, last_head.signature);
    EXPECT_EQ(call.head.budget_us, 77u);
    EXPECT_EQ(call.head.incarnation, 3u);
    ASSERT_EQ(call.arguments.size(), arguments.size());
    const Invoke invoke = to_invoke(call).value();
    EXPECT_EQ(invoke.actor, last_head.actor);
    EXPECT_EQ(invoke.result, last_head.result);
    EXPECT_EQ(invoke.signature, last_head.signature);
    EXPECT_EQ(invoke.incarnation, 3u);
    EXPECT_EQ(invoke.method, method);
    ASSERT_EQ(invoke.arguments.size(), arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) {
      EXPECT_EQ(invoke.arguments[i].inline_value, arguments[i].inline_value);
      EXPECT_EQ(invoke.arguments[i].object, arguments[i].object);
      EXPECT_EQ(invoke.arguments[i].owner.process, arguments[i].owner.process);
      EXPECT_EQ(invoke.arguments[i].owner.node, arguments[i].owner.node);
      EXPECT_EQ(invoke.arguments[i].owner.unix_path, arguments[i].owner.unix_path);
      EXPECT_EQ(call.arguments[i].ref.empty(), arguments[i].object.is_nil());
    }
  }
}

TEST_F(CallRecordTest, EveryCutIsRefused) {
  const Bytes bytes = record("method", {value("12345678"), ref(), value("xyz")});
  for (size_t size = 0; size < bytes.size(); ++size) {
    // In memory of its own, so that a sanitizer sees a reader that goes beyond.
    const Bytes cut{bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size)};
    EXPECT_EQ(code_of(cut), Code::invalid) << size;
  }
  EXPECT_EQ(code_of(bytes), Code::ok);
}

TEST_F(CallRecordTest, AMethodLongerThanTheRecordIsRefused) {
  for (const uint32_t bytes : {17u, 4096u, 0xfffffff8u, 0xffffffffu}) {
    Bytes made = record("method", {});
    put(made, method_at, bytes);
    EXPECT_EQ(code_of(made), Code::invalid) << bytes;
  }
}

TEST_F(CallRecordTest, MoreArgumentsThanFitAreRefused) {
  for (const uint32_t count : {3u, 1000u, 0x1fffffffu, 0xffffffffu}) {
    Bytes made = record("method", {value("a"), value("b")});
    put(made, count_at, count);
    EXPECT_EQ(code_of(made), Code::invalid) << count;
  }
}

TEST_F(CallRecordTest, AnArgumentLongerThanTheRecordIsRefused) {
  const size_t argument_at = sizeof(CallHead) + 8;
  for (const uint32_t bytes : {9u, 4096u, 0xfffffff8u, 0xffffffffu}) {
    Bytes made = record("method", {value("12345678")});
    put(made, argument_at, bytes);
    EXPECT_EQ(code_of(made), Code::invalid) << bytes;
  }
}

TEST_F(CallRecordTest, ARefThatIsNoneIsRefusedByToInvoke) {
  const Bytes bytes = record("method", {value("not a ref at all")});
  Bytes made = bytes;
  put(made, sizeof(CallHead) + 8 + 4, uint32_t{1});
  const auto call = read_call_record(made).value();
  EXPECT_FALSE(call.arguments[0].ref.empty());
  EXPECT_EQ(to_invoke(call).error().code(), Code::invalid);
}

TEST_F(CallRecordTest, RepliesComeBackAsTheyWereWritten) {
  for (const auto form : {ReplyForm::value, ReplyForm::reply, ReplyForm::error}) {
    for (const std::string_view text : {"", "x", "a longer body"}) {
      Bytes bytes(reply_head_bytes + text.size());
      write_reply_record(bytes.data(), form, 7, as_bytes(text));
      const auto reply = read_reply_record(bytes).value();
      EXPECT_EQ(reply.form, form);
      EXPECT_EQ(as_text(reply.body), text);
    }
  }
}

TEST_F(CallRecordTest, MalformedRepliesAreRefused) {
  for (size_t size = 0; size < reply_head_bytes; ++size) {
    EXPECT_EQ(read_reply_record(Bytes(size, 1)).error().code(), Code::invalid);
  }
  for (const uint32_t form : {0u, 4u, 0xffffffffu}) {
    Bytes bytes(reply_head_bytes);
    put(bytes, 0, form);
    EXPECT_EQ(read_reply_record(bytes).error().code(), Code::invalid) << form;
  }
}

}  // namespace
}  // namespace troupe::protocol
