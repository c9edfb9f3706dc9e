#include "etcd/etcd_coordinator.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_to.hpp>
#include <charconv>
#include <optional>

namespace troupe::etcd {
namespace json = boost::json;
using head::LeadRecord;

namespace {

constexpr int renewals_max = 3;  // Of one call, while etcd changes its own leader.

std::string to_base64(std::string_view text) {
  std::string out((text.size() + 2) / 3 * 4 + 1, '\0');  // OpenSSL ends it with a zero.
  const int size = ::EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                     reinterpret_cast<const unsigned char*>(text.data()),
                                     static_cast<int>(text.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

std::optional<std::string> from_base64(std::string_view text) {
  std::string out(text.size() / 4 * 3, '\0');
  const int size = ::EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                     reinterpret_cast<const unsigned char*>(text.data()),
                                     static_cast<int>(text.size()));
  if (size < 0 || static_cast<size_t>(size) != out.size()) return {};
  // It counts the padding as zeros.
  for (int i = 0; i < 2 && text.ends_with('='); ++i) {
    out.pop_back();
    text.remove_suffix(1);
  }
  return out;
}

const json::object* object_in(const json::object& object, std::string_view name) {
  const json::value* found = object.if_contains(name);
  return found != nullptr ? found->if_object() : nullptr;
}

std::string text_in(const json::object& object, std::string_view name) {
  const json::value* found = object.if_contains(name);
  if (found == nullptr || !found->is_string()) return {};
  return std::string{found->get_string().data(), found->get_string().size()};
}

// Numbers of 64 bits are strings in its JSON, and zeros are left out.
int64_t number_in(const json::object& object, std::string_view name) {
  const std::string text = text_in(object, name);
  int64_t number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  return failed == std::errc{} && end == text.data() + text.size() ? number : 0;
}

json::object compare(const std::string& key, std::string_view target, std::string_view field,
                     int64_t wanted) {
  return {{"key", key}, {"target", target}, {field, std::to_string(wanted)}, {"result", "EQUAL"}};
}

json::object put(const std::string& key, std::string_view value, int64_t lease) {
  const json::object request{
      {"key", key}, {"value", to_base64(value)}, {"lease", std::to_string(lease)}};
  return {{"request_put", request}};
}

json::object range(const std::string& key) {
  const json::object request{{"key", key}};
  return {{"request_range", request}};
}

std::string leader_value(const LeadRecord& record) {
  return json::serialize(
      json::object{{"name", record.leader}, {"address", record.address}, {"term", record.term}});
}

// `change` tells two writes of the same from each other.
std::string sync_value(const LeadRecord& record, int64_t lease, uint64_t change) {
  json::array names;
  for (const std::string& name : record.in_sync) names.emplace_back(name);
  return json::serialize(json::object{{"term", record.term},
                                      {"in_sync", std::move(names)},
                                      {"change", fmt::format("{}/{}", lease, change)}});
}

Error unreadable(std::string_view what) {
  return error(Code::data_loss, fmt::format("{} cannot be read: look at it with etcdctl", what));
}

Result<json::object> parse_value(const std::string& value, std::string_view what) {
  boost::system::error_code failed;
  json::value parsed = json::parse(value, failed);
  if (failed || !parsed.is_object()) return unreadable(what);
  return std::move(parsed.get_object());
}

Status read_sync(const std::string& value, LeadRecord& record) {
  constexpr std::string_view what = "the record of who is in sync";
  TROUPE_TRY(const auto object, parse_value(value, what));
  const json::value* term = object.if_contains("term");
  const json::value* names = object.if_contains("in_sync");
  if (term == nullptr || names == nullptr || !names->is_array()) return unreadable(what);
  boost::system::error_code failed;
  record.term = term->to_number<uint64_t>(failed);
  if (failed) return unreadable(what);
  for (const json::value& name : names->get_array()) {
    if (!name.is_string()) return unreadable(what);
    record.in_sync.emplace_back(name.get_string().data(), name.get_string().size());
  }
  return ok();
}

Status read_leader(const std::string& value, LeadRecord& record) {
  constexpr std::string_view what = "the leader's record";
  TROUPE_TRY(const auto object, parse_value(value, what));
  record.leader = text_in(object, "name");
  record.address = text_in(object, "address");
  return record.leader.empty() ? Status{unreadable(what)} : ok();
}

// The range's only key; null if there is none.
const json::object* key_in(const json::value& response) {
  const json::object* object = response.if_object();
  const json::object* found = object != nullptr ? object_in(*object, "response_range") : nullptr;
  const json::value* keys = found != nullptr ? found->if_contains("kvs") : nullptr;
  const json::array* list = keys != nullptr ? keys->if_array() : nullptr;
  return list != nullptr && !list->empty() ? list->front().if_object() : nullptr;
}

Error lease_is_over(int64_t lease) {
  return error(Code::conflict, fmt::format("the lease {} is over: another head may lead", lease));
}

// Why a transaction was not done.
Error conflict_with(const LeadRecord& found, const LeadRecord& wanted) {
  if (found.lease != 0 && found.lease != wanted.lease) {
    return error(Code::conflict, fmt::format("{} at {} leads, in term {}", found.leader,
                                             found.address, found.term));
  }
  if (found.revision != wanted.revision) {
    return error(Code::conflict, fmt::format("the record has changed: it is of revision {}, not {}",
                                             found.revision, wanted.revision));
  }
  return lease_is_over(wanted.lease);
}

}  // namespace

Result<std::unique_ptr<EtcdCoordinator>> EtcdCoordinator::create(Executor loop, TimerClock& clock,
                                                                 EtcdOptions options) {
  std::vector<transport::Endpoint> members;
  for (const std::string& text : options.endpoints) {
    TROUPE_TRY(auto endpoint, transport::Endpoint::parse(text));
    if (endpoint.is_unix()) {
      return error(Code::invalid, fmt::format("etcd is reached at HOST:PORT, not at {}", text));
    }
    members.push_back(std::move(endpoint));
  }
  if (members.empty()) return error(Code::invalid, "no endpoint of etcd is given");
  if (options.prefix.size() < 2 || options.prefix.front() != '/' || options.prefix.back() == '/') {
    return error(Code::invalid, fmt::format("'{}' is no prefix for keys: /troupe/<cluster id> is",
                                            options.prefix));
  }
  if (options.lease_time < std::chrono::seconds(1)) {
    return error(Code::invalid, "a lease lasts at least one second");
  }
  TROUPE_TRY(auto credentials, security::Credentials::load(options.credentials));
  options.credentials = {};
  return std::unique_ptr<EtcdCoordinator>{new EtcdCoordinator{
      std::move(loop), clock, std::move(options), std::move(credentials), std::move(members)}};
}

EtcdCoordinator::EtcdCoordinator(Executor loop, TimerClock& clock, EtcdOptions options,
                                 std::unique_ptr<security::Credentials> credentials,
                                 std::vector<transport::Endpoint> members)
    : clock_(clock),
      options_(std::move(options)),
      credentials_(std::move(credentials)),
      http_(std::move(loop), clock, *credentials_, std::move(members), options_.attempt_budget),
      leader_key_(to_base64(options_.prefix + "/leader")),
      sync_key_(to_base64(options_.prefix + "/sync")) {}

Async<Result<LeadRecord>> EtcdCoordinator::read() {
  TROUPE_CO_TRY(auto outcome, co_await transact(json::array{}, json::array{}, call_end()));
  co_return std::move(outcome.record);
}

Async<Result<LeadRecord>> EtcdCoordinator::lead(LeadRecord wanted) {
  if (wanted.leader.empty()) co_return error(Code::invalid, "a leader has a name");
  const Instant deadline = call_end();
  TROUPE_CO_TRY(wanted.lease, co_await grant(deadline));
  json::array compared;
  compared.push_back(compare(leader_key_, "CREATE", "create_revision", 0));
  compared.push_back(compare(sync_key_, "MOD", "mod_revision", wanted.revision));
  json::array changes;
  changes.push_back(put(leader_key_, leader_value(wanted), wanted.lease));
  changes.push_back(put(sync_key_, sync_value(wanted, wanted.lease, 0), 0));
  auto outcome = co_await transact(std::move(compared), std::move(changes), deadline);
  if (!outcome) {
    // The lease is left to run out: it may be the leader's by now.
    if (outcome.error().code() != Code::not_found) co_return std::move(outcome).error();
    co_return error(Code::unavailable, "the new lease ran out before etcd came to use it");
  }
  // A first attempt whose answer was lost makes the second one fail, but the lead was taken.
  if (outcome->done || outcome->record.lease == wanted.lease) co_return std::move(outcome->record);
  (void)co_await revoke(wanted.lease, deadline);
  co_return conflict_with(outcome->record, wanted);
}

Async<Status> EtcdCoordinator::renew(int64_t lease) {
  const Instant deadline = call_end();
  if (lease == 0) co_return lease_is_over(lease);
  for (int i = 0; i < renewals_max; ++i) {
    const json::object request{{"ID", std::to_string(lease)}};
    TROUPE_CO_TRY(const auto answer, co_await http_.post("/v3/lease/keepalive", request, deadline));
    const json::object* renewed = object_in(answer, "result");
    const json::object* header = renewed != nullptr ? object_in(*renewed, "header") : nullptr;
    if (header == nullptr) co_return error(Code::unavailable, "etcd's answer lacks its result");
    if (number_in(*renewed, "TTL") <= 0) co_return lease_is_over(lease);
    // A member that was etcd's leader until a moment ago renews in vain. Its header is of before;
    // what is read now comes from whom a majority takes for the leader. So one term in both says
    // that this leader has renewed.
    const std::string term = text_in(*header, "raft_term");
    TROUPE_CO_TRY(const auto outcome, co_await transact(json::array{}, json::array{}, deadline));
    if (outcome.record.lease != lease) co_return lease_is_over(lease);
    if (outcome.raft_term == term) co_return ok();
  }
  co_return error(Code::unavailable, "etcd changes its leader: try again");
}

Async<Result<LeadRecord>> EtcdCoordinator::set_in_sync(LeadRecord mine) {
  if (mine.lease == 0) co_return lease_is_over(mine.lease);
  const std::string value = sync_value(mine, mine.lease, ++changes_);
  json::array compared;
  compared.push_back(compare(leader_key_, "LEASE", "lease", mine.lease));
  compared.push_back(compare(sync_key_, "MOD", "mod_revision", mine.revision));
  json::array changes;
  changes.push_back(put(sync_key_, value, 0));
  TROUPE_CO_TRY(auto outcome,
                co_await transact(std::move(compared), std::move(changes), call_end()));
  // As in lead(): it was this very write, if an answer was lost.
  const bool was_done = outcome.record.lease == mine.lease && outcome.sync_value == value;
  if (outcome.done || was_done) co_return std::move(outcome.record);
  co_return conflict_with(outcome.record, mine);
}

Async<Status> EtcdCoordinator::end_lease(int64_t lease) {
  if (lease == 0) co_return ok();
  co_return co_await revoke(lease, call_end());
}

Async<Result<int64_t>> EtcdCoordinator::grant(Instant deadline) {
  const auto wanted = options_.lease_time.count();
  const json::object request{{"TTL", std::to_string(wanted)}};
  TROUPE_CO_TRY(const auto answer, co_await http_.post("/v3/lease/grant", request, deadline));
  const int64_t lease = number_in(answer, "ID");
  const int64_t granted = number_in(answer, "TTL");
  if (lease == 0) co_return error(Code::unavailable, "etcd's answer lacks the lease");
  if (granted == wanted) co_return lease;
  (void)co_await revoke(lease, deadline);
  co_return error(Code::invalid,
                  fmt::format("etcd grants a lease of {} s, not of {} s: start it with a shorter "
                              "--election-timeout, or choose another lease time",
                              granted, wanted));
}

Async<Status> EtcdCoordinator::revoke(int64_t lease, Instant deadline) {
  const json::object request{{"ID", std::to_string(lease)}};
  const auto answer = co_await http_.post("/v3/lease/revoke", request, deadline);
  if (answer || answer.error().code() == Code::not_found) co_return ok();
  co_return answer.error();
}

Async<Result<EtcdCoordinator::Outcome>> EtcdCoordinator::transact(json::array compared,
                                                                  json::array changes,
                                                                  Instant deadline) {
  const json::array reads{range(leader_key_), range(sync_key_)};
  changes.insert(changes.end(), reads.begin(), reads.end());
  const json::object request{
      {"compare", std::move(compared)}, {"success", std::move(changes)}, {"failure", reads}};
  TROUPE_CO_TRY(const auto answer, co_await http_.post("/v3/kv/txn", request, deadline));
  co_return read_outcome(answer);
}

Result<EtcdCoordinator::Outcome> EtcdCoordinator::read_outcome(const json::object& answer) const {
  const json::object* header = object_in(answer, "header");
  const json::value* found = answer.if_contains("responses");
  const json::array* responses = found != nullptr ? found->if_array() : nullptr;
  if (header == nullptr || responses == nullptr || responses->size() < 2) {
    return error(Code::unavailable, "etcd's answer to a transaction lacks its parts");
  }
  Outcome outcome;
  const json::value* succeeded = answer.if_contains("succeeded");
  outcome.done = succeeded != nullptr && succeeded->is_bool() && succeeded->get_bool();
  outcome.raft_term = text_in(*header, "raft_term");
  // The reads come last, after what they follow.
  if (const json::object* leader = key_in((*responses)[responses->size() - 2])) {
    const auto value = from_base64(text_in(*leader, "value"));
    outcome.record.lease = number_in(*leader, "lease");
    if (!value) return unreadable("the leader's record");
    TROUPE_CHECK(read_leader(*value, outcome.record));
  }
  if (const json::object* sync = key_in(responses->back())) {
    auto value = from_base64(text_in(*sync, "value"));
    outcome.record.revision = number_in(*sync, "mod_revision");
    if (!value) return unreadable("the record of who is in sync");
    TROUPE_CHECK(read_sync(*value, outcome.record));
    outcome.sync_value = std::move(*value);
  }
  return outcome;
}

}  // namespace troupe::etcd
