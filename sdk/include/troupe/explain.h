// Why something waits.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "troupe/object_ref.h"

namespace troupe {

// The steps from a ref to what it waits for in the end: a resource, an argument, a call before it
// in a mailbox, an actor that restarts, a node that does not answer, or a circle.
struct Explanation {
  struct Step {
    // The step above it with a depth of one less waits for it.
    size_t depth = 0;
    std::string kind;   // object, call, actor, lease, process, node, placement group.
    std::string id;     // For `troupe why`.
    std::string name;   // For people; may be empty.
    std::string state;  // queued, sent, running, waiting, restarting, ...; empty: it did not say.
    std::string why;    // A sentence.
    std::chrono::microseconds since{};        // How long it has been so; zero: not known.
    std::chrono::microseconds deadline_in{};  // What is left until its deadline; zero: none.
  };
  std::vector<Step> steps;  // The first is what was asked about.
  // "A.f of a waits for B.g of b, which waits for A.f of a"; empty: nothing waits for itself.
  std::string deadlock;
  // All of it, a line a step.
  std::string text;
};

namespace detail {
Result<Explanation> explain(const RefHandle& ref);
}

// Asks the processes that know, one after the other; a few seconds at most. From any thread, also
// in tasks and actors. Errors: invalid (an empty ref), cancelled (the session was closed).
template <class T>
Result<Explanation> explain(const ObjectRef<T>& ref) {
  if (!ref.is_valid()) return error(Code::invalid, "an empty ref");
  return detail::explain(*ref.handle());
}

}  // namespace troupe
