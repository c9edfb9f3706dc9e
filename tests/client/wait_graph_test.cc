// What follows from what waits for what: circles, those that are none, and the text for people.
#include "client/wait_graph.h"

#include <gtest/gtest.h>

namespace troupe::client {
namespace {

using protocol::Explanation;
using protocol::WaitsFor;

const ProcessId process{RawId{9, 9}};

WaitsFor subject(const std::string& kind, uint64_t id) {
  protocol::ProcessAddress at;
  at.process = process;
  return {kind, RawId{0, id}, {}, at};
}
WaitsFor call(uint64_t id) {
  return subject("call", id);
}
WaitsFor object(uint64_t id) {
  return subject("object", id);
}

Explanation told(std::string_view state, std::vector<WaitsFor> waits_for, std::string name = {}) {
  Explanation made;
  made.name = std::move(name);
  made.state = state;
  made.since_us = 1'000'000;
  made.waits_for = std::move(waits_for);
  return made;
}

// Left.ask (1) waits for Right.answer (4), which is queued behind Right.ask (2), and the other way
// round.
struct TwoDesks {
  explicit TwoDesks(std::string_view right_state = wait_state::waiting) {
    graph.tell(graph.add(call(1)), told(wait_state::waiting, {object(4)}, "Left.ask"));
    graph.tell(graph.add(object(4)), told(wait_state::sent, {call(4)}));
    graph.tell(graph.add(call(4)), told(wait_state::queued, {call(2)}, "Right.answer"));
    graph.tell(graph.add(call(2)), told(right_state, {object(3)}, "Right.ask"));
    graph.tell(graph.add(object(3)), told(wait_state::sent, {call(3)}));
    graph.tell(graph.add(call(3)), told(wait_state::queued, {call(1)}, "Left.answer"));
  }
  size_t place(const WaitsFor& of) { return graph.add(of); }
  WaitGraph graph;
};

TEST(WaitGraph, FindsACircleAndItsVictim) {
  TwoDesks desks;
  const auto circle = desks.graph.deadlock();
  ASSERT_EQ(circle.size(), 6u);
  EXPECT_EQ(circle.front(), desks.place(call(2)));  // The largest id among those that wait.
  EXPECT_EQ(desks.graph.describe(circle),
            "Right.ask waits for Left.answer, which is queued behind Left.ask, which waits for "
            "Right.answer, which is queued behind Right.ask");
  // From wherever one looks it is the same.
  for (const uint64_t id : {1, 2, 3, 4}) {
    EXPECT_EQ(desks.graph.deadlock(desks.place(call(id))), circle) << id;
  }
}

TEST(WaitGraph, WhoeverWaitsForACircleIsStuckButNotPartOfIt) {
  TwoDesks desks;
  const size_t outside = desks.place(object(1));
  desks.graph.tell(outside, told(wait_state::sent, {call(1)}));
  EXPECT_TRUE(desks.graph.stuck()[outside]);
  EXPECT_TRUE(desks.graph.deadlock(outside).empty());
  EXPECT_EQ(desks.graph.deadlock().size(), 6u);
}

TEST(WaitGraph, WhatRunsOrHasADeadlineOrWasNotAskedIsNoDeadlock) {
  EXPECT_TRUE(TwoDesks{"running"}.graph.deadlock().empty());
  EXPECT_TRUE(TwoDesks{"waiting for an item"}.graph.deadlock().empty());
  TwoDesks limited;
  auto ends = told(wait_state::waiting, {object(3)});
  ends.deadline_us = 1;
  limited.graph.tell(limited.place(call(2)), ends);
  EXPECT_TRUE(limited.graph.deadlock().empty());
  TwoDesks unknown;
  unknown.graph.tell(unknown.place(call(2)), told(wait_state::waiting, {object(77)}));
  EXPECT_TRUE(unknown.graph.deadlock().empty());
  TwoDesks silent;
  silent.graph.silent(silent.place(object(3)), "its process does not answer");
  EXPECT_TRUE(silent.graph.deadlock().empty());
}

TEST(WaitGraph, OneOfSeveralTurnsThatGoesOnIsEnough) {
  // Right has two threads: the other one runs.
  TwoDesks threads;
  threads.graph.tell(threads.place(call(4)), told(wait_state::queued, {call(2), call(9)}));
  threads.graph.tell(threads.place(call(9)), told("running", {}));
  EXPECT_TRUE(threads.graph.deadlock().empty());
  // Until that waits for the same desk, too.
  threads.graph.tell(threads.place(call(9)), told(wait_state::waiting, {object(3)}));
  EXPECT_FALSE(threads.graph.deadlock().empty());
}

TEST(WaitGraph, AWaitForAnyNeedsOneAndAWaitForAllNeedsEach) {
  TwoDesks any{wait_state::waiting_for_any};
  any.graph.tell(any.place(call(2)), told(wait_state::waiting_for_any, {object(3), object(8)}));
  any.graph.tell(any.place(object(8)), told("ready", {}));
  EXPECT_TRUE(any.graph.deadlock().empty());
  TwoDesks all;
  all.graph.tell(all.place(call(2)), told(wait_state::waiting, {object(3), object(8)}));
  all.graph.tell(all.place(object(8)), told("ready", {}));
  EXPECT_FALSE(all.graph.deadlock().empty());
}

TEST(WaitGraph, ACallThatWaitsForItsOwnActorIsACircle) {
  WaitGraph graph;
  graph.tell(graph.add(call(1)), told(wait_state::waiting, {object(2)}, "A.f"));
  graph.tell(graph.add(object(2)), told(wait_state::sent, {call(2)}));
  graph.tell(graph.add(call(2)), told(wait_state::queued, {call(1)}, "A.g"));
  EXPECT_EQ(graph.describe(graph.deadlock()), "A.f waits for A.g, which is queued behind A.f");
}

TEST(WaitGraph, ACircleHeldAtOneMomentOnlyIfItIsSeenTwice) {
  const TwoDesks first;
  const auto circle = first.graph.deadlock();
  EXPECT_TRUE(is_unbroken(first.graph, circle, TwoDesks{}.graph));
  TwoDesks moved;  // It got its answer, and waits for something else.
  moved.graph.tell(moved.place(call(2)), told(wait_state::waiting, {object(5)}));
  EXPECT_FALSE(is_unbroken(first.graph, circle, moved.graph));
  TwoDesks anew;  // The same wait, but a younger one.
  auto younger = told(wait_state::waiting, {object(3)});
  younger.since_us = 10;
  anew.graph.tell(anew.place(call(2)), younger);
  EXPECT_FALSE(is_unbroken(first.graph, circle, anew.graph));
  EXPECT_FALSE(is_unbroken(first.graph, circle, TwoDesks{"running"}.graph));
  EXPECT_FALSE(is_unbroken(first.graph, circle, WaitGraph{}));
}

TEST(WaitGraph, TextShowsStatesDeadlinesAndWhatWasToldBefore) {
  WaitGraph graph;
  auto first = told(wait_state::sent, {call(2)});
  first.why = "it was sent";
  first.deadline_us = 5'000'000;
  graph.tell(graph.add(object(1)), first);
  graph.tell(graph.add(call(2)), told(wait_state::waiting, {object(1), object(3)}, "A.f"));
  graph.silent(graph.add(object(3)), "process 9 does not answer");
  const std::string digits(31, '0');
  EXPECT_EQ(graph.text(), "object " + digits +
                              "1: sent for 1.0 s, deadline in 5.0 s: it was sent\n"
                              "  call A.f " +
                              digits +
                              "2: waiting for 1.0 s\n"
                              "    object " +
                              digits +
                              "1: as above\n"
                              "    object " +
                              digits + "3: process 9 does not answer");
}

TEST(WaitGraph, OfManyAFewAreShownAndWhatIsReadyIsNot) {
  WaitGraph graph;
  std::vector<WaitsFor> many;
  for (uint64_t i = 10; i < 30; ++i) many.push_back(object(i));
  graph.tell(graph.add(call(1)), told(wait_state::waiting, many));
  graph.tell(graph.add(object(10)), told("ready", {}));
  const auto lines = graph.lines();
  EXPECT_EQ(lines.size(), 1u + 8u + 1u);
  EXPECT_EQ(lines.back().others, 11u);
  EXPECT_NE(graph.text().find("and 11 more"), std::string::npos);
}

TEST(WaitGraph, TimesAreReadable) {
  EXPECT_EQ(seconds_text(1'250'000), "1.2 s");
  EXPECT_EQ(seconds_text(59'000'000), "59 s");
  EXPECT_EQ(seconds_text(125'000'000), "2 min 5 s");
  EXPECT_EQ(seconds_text(7'260'000'000), "2 h 1 min");
}

}  // namespace
}  // namespace troupe::client
