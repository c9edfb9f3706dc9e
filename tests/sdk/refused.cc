// Calls that must not compile. refused_test.sh wants errors for the marked lines, with the texts
// that stand there, and for no others.
#include <troupe/troupe.h>

double half(int n) {
  return n / 2.0;
}
TROUPE_TASK(half);
troupe::Generator<int> below(int n) {
  for (int i = 0; i < n; ++i) co_yield i;
}
TROUPE_TASK(below);

class Counter {
 public:
  explicit Counter(int) {}
  int add(int n) { return n; }
};
TROUPE_ACTOR(Counter(int), add);

using Counters = troupe::ActorRef<Counter>;
using Ints = troupe::ObjectRef<int>;

// The way it is meant, which shows that the others fail for what they change.
void good(const troupe::Session& session, const Counters& counter, const Ints& number) {
  const Ints sum = counter.call<&Counter::add>(number);
  const troupe::ObjectRef<double> result = session.submit(half, sum);
  (void)session.create<Counter>({}, 1);
}

void wrong_count(const troupe::Session& session, const Counters& counter) {
  (void)session.submit(half, 1, 2);         // refused: the function takes another number
  (void)session.stream({}, below);          // refused: the function takes another number
  (void)session.create<Counter>({}, 1, 2);  // refused: the constructor takes another number
  (void)counter.call<&Counter::add>();      // refused: the method takes another number
}

// Of several types, for what was refused once is not complained about again.
void wrong_type(const troupe::Session& session, const Counters& counter) {
  (void)session.submit(half, "text");                   // refused: the argument does not convert
  (void)session.create<Counter>({}, std::string("x"));  // refused: the argument does not convert
  (void)counter.call<&Counter::add>(Counters{});        // refused: the argument does not convert
}

void wrong_ref(const troupe::Session& session, const Counters& counter) {
  const troupe::ObjectRef<std::string> text;
  (void)session.submit(half, text);                              // refused: a ref to another type
  (void)session.create<Counter>({}, troupe::ObjectRef<bool>{});  // refused: a ref to another type
  const troupe::ObjectRef<double> real;
  (void)counter.call<&Counter::add>(real);      // refused: a ref to another type
  const Ints result = session.submit(half, 1);  // refused: conversion from
}
