#include "client/placement.h"

#include <fmt/format.h>

#include "protocol/codec.h"

namespace troupe::client {

namespace {

constexpr Duration question_budget = std::chrono::seconds(5);

}  // namespace

bool is_anywhere(const protocol::PlacementSpec& placement) {
  return placement.selectors.empty() && placement.node.is_nil() && placement.group.is_nil();
}

void capture(protocol::PlacementSpec& placement, PlacementGroupId captured_in) {
  if (!placement.outside && is_anywhere(placement)) placement.group = captured_in;
}

std::string placement_key(const protocol::PlacementSpec& placement) {
  if (is_anywhere(placement)) return {};
  return "|" + std::string(as_text(protocol::encode(placement)));
}

Async<Error> why_it_died(Client& client, protocol::PlacementSpec placement, Error failure) {
  protocol::GetPlacementGroup question;
  question.group = placement.group;
  auto group = co_await client.ask_head<protocol::PlacementGroupInfo>(
      Method::get_placement_group, std::move(question), question_budget);
  if (group || group.error().code() != Code::not_found) co_return failure;
  co_return error(Code::not_found, "the task ended with its place: " + group.error().message());
}

}  // namespace troupe::client
