#include "client/result_refs.h"

#include <utility>

namespace troupe::client {

namespace {
std::vector<HeldRef>& pending() {
  thread_local std::vector<HeldRef> refs;
  return refs;
}
}  // namespace

void put_result_refs(std::vector<HeldRef> refs) {
  pending() = std::move(refs);
}
std::vector<HeldRef> take_result_refs() {
  return std::exchange(pending(), {});
}

}  // namespace troupe::client
