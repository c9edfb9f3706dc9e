#include "head/standby.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/log.h"
#include "protocol/codec.h"
#include "security/audit.h"

namespace troupe::head {

using protocol::Empty;
using transport::CallContext;
using transport::Endpoint;
using transport::Message;
using transport::Method;
using transport::Peer;
using transport::PeerIdentity;
using transport::Role;

namespace {
constexpr Duration greet_budget = std::chrono::seconds(2);
constexpr Duration follow_budget = std::chrono::seconds(2);
constexpr Duration probe_budget = std::chrono::milliseconds(500);
constexpr size_t apply_bytes_max = size_t{8} << 20;  // In one write.
constexpr size_t erase_page_rows = 4096;
constexpr size_t decode_here_bytes_max = size_t{64} << 10;  // More is left to a thread.
}  // namespace

Standby::Standby(transport::Environment environment, Store& store, Coordinator& coordinator,
                 StandbyOptions options)
    : environment_(environment),
      store_(store),
      coordinator_(coordinator),
      options_(std::move(options)),
      scope_(environment.loop),
      files_(environment, store, scope_, options_.files),
      applied_(environment.loop) {
  hello_.kind = "head";
  hello_.cluster = options_.cluster;
  hello_.pid = options_.pid;
  hello_.address.process = ProcessId::random(environment_.random);
  on_message(Method::replicate, [this](Message message, CallContext call) {
    return replicate(std::move(message), std::move(call));
  });
}

Standby::~Standby() = default;

// --- The door.

Status Standby::listen(const std::vector<Endpoint>& endpoints) {
  for (const Endpoint& wanted : endpoints) {
    TROUPE_TRY(auto listener, environment_.network.listen(wanted));
    endpoints_.push_back(listener->endpoint());
    listeners_.push_back(std::move(listener));
  }
  for (auto& listener : listeners_) spawn(scope_, accept_from(*listener));
  return ok();
}

Async<void> Standby::accept_from(transport::Listener& listener) {
  for (;;) {
    auto connection = co_await listener.accept();
    if (!connection) co_return;
    spawn(scope_, turn_away(std::move(*connection)));
  }
}

Async<void> Standby::turn_away(std::unique_ptr<transport::Connection> connection) {
  co_await Peer::refuse(
      environment_, std::move(connection),
      error(Code::unavailable, fmt::format("head {} stands by: it does not lead", options_.name)),
      environment_.clock.now() + greet_budget);
}

Async<void> Standby::stop() {
  for (const auto& listener : listeners_) co_await listener->stop();
  listeners_.clear();
  co_await scope_.stop();
}

// --- Who leads.

Result<bool> Standby::may_lead(const LeadRecord& record) const {
  const bool is_new = record.term == 0 && record.in_sync.empty();
  if (is_new && place_.sequence > 0) {
    return error(Code::not_found,
                 fmt::format("the coordinator knows nothing of cluster {}, but head {} has a copy "
                             "of its tables: it was emptied, or it is another one. Bring back its "
                             "data, or make one head the only one",
                             options_.cluster.to_string(), options_.name));
  }
  if (is_half_copied_) return false;
  if (is_new) return options_.is_first;
  // What is recorded of this name was lost with its disk, unless it died as the first one to lead,
  // before it had written anything.
  if (place_.sequence == 0) {
    return options_.is_first && record.in_sync == std::vector<std::string>{options_.name};
  }
  return std::ranges::find(record.in_sync, options_.name) != record.in_sync.end();
}

Async<Result<Lead>> Standby::wait_for_lead() {
  auto load = [this]() -> Status {
    TROUPE_TRY(place_, read_place(store_));
    TROUPE_TRY(is_half_copied_, is_half_copied(store_));
    return ok();
  };
  TROUPE_CO_CHECK(co_await transport::run_blocking(environment_, load));
  history_ = History{place_};
  log::info("head_stands_by",
            {{"name", options_.name}, {"term", place_.term}, {"sequence", place_.sequence}});
  std::string said;
  for (;;) {
    if (!health_) co_return health_.error();
    auto record = co_await coordinator_.read();
    if (!record) {
      if (std::exchange(said, "away") != "away") {
        log::warning("coordinator_away", {{"why", record.error()}});
      }
      co_await sleep_for(environment_.clock, options_.look);
      continue;
    }
    if (record->leader == options_.name) {
      // An earlier life of this head: there is no other process of its name.
      if (const Status ended = co_await coordinator_.end_lease(record->lease); !ended) {
        co_await sleep_for(environment_.clock, options_.look_soon);
      }
      continue;
    }
    if (!record->leader.empty()) {
      said.clear();
      const Instant began = environment_.clock.now();
      const Status ended = co_await follow(*record);
      log::info("head_does_not_follow", {{"leader", record->leader}, {"why", ended.error()}});
      co_await sleep_until(environment_.clock, began + options_.look_soon);
      continue;
    }
    TROUPE_CO_TRY(const bool may, may_lead(*record));
    if (may) {
      auto lead = co_await take_lead(std::move(*record));
      if (lead) co_return lead;
      log::info("lead_not_taken", {{"why", lead.error()}});
    } else {
      const std::string names = fmt::format("{}", fmt::join(record->in_sync, ","));
      if (std::exchange(said, names) != names) {
        log::warning("nobody_leads", {{"waits_for", names}, {"name", options_.name}});
      }
    }
    co_await sleep_for(environment_.clock, options_.look_soon);
  }
}

Async<Result<Lead>> Standby::take_lead(LeadRecord record) {
  const uint64_t term = std::max(record.term, store_.epoch()) + 1;
  record.term = term;
  // The one that led is hardly there to confirm what this one promises, and may have more than was
  // promised: when it is back, it is looked at anew.
  if (!record.in_sync.empty()) record.in_sync.erase(record.in_sync.begin());
  std::erase(record.in_sync, options_.name);
  std::ranges::sort(record.in_sync);
  record.in_sync.insert(record.in_sync.begin(), options_.name);
  record.leader = options_.name;
  record.address = options_.address;
  const Instant since = environment_.clock.now();
  auto taken = co_await coordinator_.lead(std::move(record));
  if (!taken) co_return std::move(taken).error();
  // A batch of its own, so that no other head's tables end at the same place by chance.
  const Place place{term, place_.sequence + 1};
  Batch batch;
  batch.add(place_row(place));
  protocol::Replicate first{place.term, place.sequence, false, to_changes(batch)};
  auto write = [this, &batch, term] { return store_.commit(batch, term); };
  health_ = co_await transport::run_blocking(environment_, write);
  if (!health_) co_return health_.error();
  place_ = place;
  history_.add(place, std::make_shared<const Bytes>(protocol::encode(first)));
  co_return Lead{std::move(*taken), since, std::move(history_)};
}

// --- Following.

Async<Status> Standby::follow(LeadRecord record) {
  TROUPE_CO_CHECK(co_await files_.open());
  if (!is_half_copied_) files_.sweep();
  auto endpoint = Endpoint::parse(record.address);
  if (!endpoint) co_return std::move(endpoint).error();
  const Instant deadline = environment_.clock.now() + greet_budget;
  auto connection = co_await environment_.network.connect(std::move(*endpoint), deadline);
  if (!connection) co_return std::move(connection).error();
  const PeerIdentity identity = (*connection)->peer();
  if (!identity.local && identity.role != Role::head) {
    security::Audit{}.refuse(security::audit_name(identity), "be a head", "its role");
    co_return error(Code::denied, "the certificate at the leader's address is not a head's");
  }
  auto peer =
      co_await Peer::start(scope_, environment_, std::move(*connection), *this, hello_, deadline);
  if (!peer) co_return std::move(peer).error();
  leader_ = *peer;
  term_ = record.term;
  expected_ = place_.sequence + 1;
  copy_began_ = may_lack_files_ = false;
  takes_batches_ = true;
  protocol::FollowLeader request{options_.name, place_.term, place_.sequence};
  // Whose disk lost files is taken off the record before anything else.
  const bool is_recorded = std::ranges::find(record.in_sync, options_.name) != record.in_sync.end();
  if (is_half_copied_ || (is_recorded && !files_.is_complete())) {
    request.term = request.sequence = 0;
  }
  files_.follow(leader_);
  auto following = co_await transport::call<protocol::Following>(leader_, Method::follow_leader,
                                                                 std::move(request), follow_budget);
  Status ended = ok();
  if (!following) {
    ended = std::move(following).error();
  } else if (following->term != record.term) {
    ended = error(Code::conflict, fmt::format("{} leads in term {}, not {}", record.leader,
                                              following->term, record.term));
  } else {
    log::info(
        "head_follows",
        {{"leader", record.leader}, {"term", record.term}, {"whole_copy", following->whole_copy}});
    ended = co_await watch_leader(record, leader_);
    co_await bury(record);
  }
  leader_->close();
  leader_.reset();
  files_.part();
  co_await settled();
  co_return ended;
}

// Returns why it need not be followed any more.
Async<Status> Standby::watch_leader(const LeadRecord& record, std::shared_ptr<Peer> peer) {
  TimerClock& clock = environment_.clock;
  for (;;) {
    if (co_await wait_until(clock, clock.now() + options_.look, peer->closed())) {
      co_return error(Code::unavailable, "the connection to the head that leads closed");
    }
    if (!health_) co_return health_.error();
    const auto seen = co_await coordinator_.read();
    if (seen && seen->lease != record.lease) {
      co_return error(Code::conflict, "another head leads, or nobody does");
    }
  }
}

// It answered a moment ago: if nobody listens there now its process is gone, and its lease need not
// be waited for. Were it not, it could promise nothing without those heads that may lead next.
Async<void> Standby::bury(const LeadRecord& record) {
  if (leader_->is_open()) co_return;
  auto endpoint = Endpoint::parse(record.address);
  if (!endpoint) co_return;
  const Instant deadline = environment_.clock.now() + probe_budget;
  const transport::Reach reach = co_await environment_.network.probe(*endpoint, deadline);
  if (reach != transport::Reach::refused) co_return;
  // Who may not lead itself leaves that to those who may.
  const auto seen = co_await coordinator_.read();
  if (!seen || seen->lease != record.lease) co_return;
  if (std::ranges::find(seen->in_sync, options_.name) == seen->in_sync.end()) co_return;
  log::warning("leader_gone", {{"leader", record.leader}, {"term", record.term}});
  (void)co_await coordinator_.end_lease(record.lease);
}

// --- The copy.

Async<Result<Message>> Standby::replicate(Message message, CallContext call) {
  if (!leader_ || call.peer != leader_) {
    co_return error(Code::denied, "this head does not follow you");
  }
  TROUPE_CO_TRY(auto batch, protocol::decode<protocol::Replicate>(message.body));
  if (!batch.is_copy && batch.sequence == 0) {
    co_return co_await bring_files(std::move(batch), std::move(call));
  }
  if (!takes_batches_) co_return error(Code::unavailable, "this head follows you no more");
  if (batch.is_copy) {
    if (batch.sequence > 0) expected_ = batch.sequence + 1;
  } else if (batch.sequence != expected_) {
    co_return error(Code::conflict,
                    fmt::format("batch {} came where {} was expected", batch.sequence, expected_));
  } else {
    ++expected_;
  }
  if (!health_) co_return health_.error();
  arrived_.push_back({std::move(batch), std::make_shared<const Bytes>(std::move(message.body))});
  const uint64_t mine = ++arrived_count_;
  if (!std::exchange(applying_, true)) spawn(scope_, apply());
  while (applied_count_ < mine && health_) co_await applied_.wait();
  if (applied_count_ < mine) co_return health_.error();
  if (mine <= dropped_count_) co_return error(Code::unavailable, "this head follows you no more");
  co_return Message{};
}

Async<Result<Message>> Standby::bring_files(protocol::Replicate request, CallContext call) {
  TROUPE_CO_TRY(const Batch rows, to_batch(std::move(request.changes)));
  if (rows.empty()) {
    // Batches that wait for files are applied first: of those it is asked, too.
    const uint64_t before = arrived_count_;
    may_lack_files_ = true;
    files_.ask_anew();
    files_.changed().pulse();
    while (applied_count_ < before || !files_.is_complete()) {
      if (call.cancelled->is_set() || call.peer != leader_) {
        co_return error(Code::cancelled, "nobody waits for this any more");
      }
      (void)co_await wait_either(files_.changed(), *call.cancelled);
    }
    if (call.peer == leader_) may_lack_files_ = false;
    co_return Message{};
  }
  TROUPE_CO_TRY(const auto named, files_of(rows));
  std::vector<NamedFile> wanted;
  for (const FilesOfRow& row : named) {
    if (row.checkpoint) wanted.push_back(*row.checkpoint);
    wanted.insert(wanted.end(), row.packages.begin(), row.packages.end());
  }
  TROUPE_CO_CHECK(co_await files_.bring(std::move(wanted), std::move(call)));
  co_return Message{};
}

Async<void> Standby::apply() {
  while (!arrived_.empty() && health_) {
    Status applied = co_await apply_some();
    if (!applied) {
      log::error("copy_failed", {{"why", applied.error()}});
      health_ = std::move(applied);
      if (leader_) leader_->close();
    }
    applied_.pulse();
    files_.changed().pulse();
  }
  applying_ = false;
  applied_.pulse();
}

// As many as are there, in one write.
Async<Status> Standby::apply_some() {
  std::vector<Arrived> taken;
  Batch batch;
  bool is_half = is_half_copied_;
  bool ends_copy = false;
  Place place = place_;
  const bool begins_copy = arrived_.front().batch.is_copy && !std::exchange(copy_began_, true);
  while (!arrived_.empty() && batch.bytes() < apply_bytes_max) {
    Arrived next = std::move(arrived_.front());
    arrived_.pop_front();
    TROUPE_CO_TRY(Batch changes, to_batch(std::move(next.batch.changes)));
    batch.append(std::move(changes));
    if (next.batch.is_copy) is_half = next.batch.sequence == 0;
    ends_copy = ends_copy || (next.batch.is_copy && !is_half);
    if (next.batch.sequence > 0) place = {next.batch.term, next.batch.sequence};
    taken.push_back(std::move(next));
  }
  TROUPE_CO_TRY(const auto files, co_await read_files(batch));
  const StandbyFiles::Need need{files_, files_.named_by(files)};
  if (!taken.back().batch.is_copy && !is_half_copied_) {
    const bool has_files = co_await await_files(need);
    if (!has_files) {
      drop_arrived();
      co_return ok();
    }
  }
  if (is_half || is_half_copied_ || begins_copy) {
    batch.add(half_copied_row(is_half));
    if (!is_half) batch.add(place_row(place));
  }
  auto write = [this, &batch, begins_copy]() -> Status {
    Batch all;
    if (begins_copy) {
      TROUPE_TRY(all, erase_all());
    }
    all.append(std::move(batch));
    return store_.commit(all, term_);
  };
  TROUPE_CO_CHECK(co_await transport::run_blocking(environment_, write));
  if (begins_copy) files_.begin_copy();
  files_.applied(files);
  if (ends_copy) files_.sweep();
  is_half_copied_ = is_half;
  for (Arrived& one : taken) {
    if (one.batch.sequence == 0) continue;
    const Place its{one.batch.term, one.batch.sequence};
    if (one.batch.is_copy) {
      history_ = History{its};
    } else {
      history_.add(its, std::move(one.message));
    }
  }
  place_ = is_half ? Place{} : place;
  applied_count_ += taken.size();
  co_return ok();
}

Async<Result<std::vector<FilesOfRow>>> Standby::read_files(const Batch& batch) {
  if (!files_.is_used()) co_return std::vector<FilesOfRow>{};
  if (batch.bytes() <= decode_here_bytes_max) co_return files_of(batch);
  auto read = [&batch] { return files_of(batch); };
  auto found = co_await transport::run_blocking(environment_, read);
  co_return found;
}

Async<bool> Standby::await_files(const StandbyFiles::Need& need) {
  const auto leader = leader_;
  while (!need.is_met() && !may_lack_files_) {
    if (!leader || !leader->is_open()) co_return false;
    (void)co_await wait_either(files_.changed(), leader->closed());
  }
  co_return true;
}

// It goes on from its place with whom it follows next.
void Standby::drop_arrived() {
  takes_batches_ = false;
  arrived_.clear();
  applied_count_ = dropped_count_ = arrived_count_;
}

// What is here goes, with the first part of the copy.
Result<Batch> Standby::erase_all() {
  Batch batch;
  for (const Table table : tables) {
    Page page{{}, erase_page_rows};
    for (;;) {
      TROUPE_TRY(Rows rows, store_.scan(table, {}, page));
      const bool is_last = rows.size() < erase_page_rows;
      if (!rows.empty()) page.after = rows.back().first;
      for (auto& [key, value] : rows) {
        if (table == Table::meta && key.starts_with(store_prefix)) continue;  // The store's own.
        batch.erase(table, std::move(key));
      }
      if (is_last) break;
    }
  }
  return batch;
}

// Until what has arrived is applied.
Async<void> Standby::settled() {
  while (applying_) co_await applied_.wait();
}

}  // namespace troupe::head
