#include "head/replicator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/log.h"
#include "head/under_way.h"
#include "protocol/codec.h"

namespace troupe::head {

using protocol::Empty;
using transport::Message;
using transport::Method;
using transport::Peer;

namespace {

// The lease is taken for over a little before it is: clocks run at different speeds.
constexpr Duration lease_margin = std::chrono::milliseconds(100);
constexpr Duration retry = std::chrono::milliseconds(100);
constexpr Duration watch_period = std::chrono::milliseconds(50);
constexpr Duration confirm_budget = std::chrono::seconds(10);
constexpr Duration copy_budget = std::chrono::seconds(30);  // Of one part.
constexpr Duration hand_over_budget = std::chrono::seconds(2);
constexpr Duration files_budget = std::chrono::seconds(10);  // Of one question for all of them.
constexpr Duration files_retry = std::chrono::seconds(1);
constexpr uint64_t file_bytes_per_s = uint64_t{16} << 20;  // Slower is not waited for.
constexpr size_t copy_part_bytes = size_t{1} << 20;
constexpr size_t copy_page_rows = 4096;
constexpr size_t unconfirmed_max = 256;  // Batches on their way to one head.
constexpr size_t close_looks = 4;        // So far behind, a head is as good as in sync.

Error too_late() {
  return error(Code::deadline_exceeded, "it did not confirm in time");
}

}  // namespace

struct Replicator::Follower {
  Follower(std::string its_name, std::shared_ptr<Peer> its_peer, const Executor& loop)
      : name(std::move(its_name)), peer(std::move(its_peer)), changed(loop), files_changed(loop) {}

  bool lags(Instant now, Duration patience) const {
    return (sent > confirmed || is_choked) && now - progress_at > patience;
  }

  const std::string name;
  const std::shared_ptr<Peer> peer;
  bool is_copying = true;  // It has no place to go on from yet.
  bool has_files = false;  // It confirms no batch without the files that its rows name.
  Instant ask_at;          // When it may be asked whether it has them.
  bool is_choked = false;  // Its connection takes nothing more, and there is more.
  uint64_t sent = 0;
  uint64_t confirmed = 0;
  Instant progress_at;  // When it last confirmed something, or was last sent the first of more.
  Event changed;
  Event files_changed;  // Whether it has them, or may be asked for them.
};

// Of files that heads are told of.
struct Replicator::Announcement {
  struct Asked {
    FollowerPointer follower;
    bool has_answered = false;
  };
  Bytes message;
  std::vector<Asked> asked;
};

Replicator::Replicator(transport::Environment environment, Store& store, Coordinator& coordinator,
                       ReplicatorOptions options, Lead lead)
    : environment_(environment),
      store_(store),
      coordinator_(coordinator),
      options_(std::move(options)),
      scope_(environment.loop),
      record_(std::move(lead.record)),
      valid_until_(lead.since + coordinator.lease_time() - lease_margin),
      history_(std::move(lead.history)),
      ends_{history_.end().sequence},
      promised_(history_.end().sequence),
      changed_(environment.loop),
      recorded_(environment.loop),
      lost_(environment.loop) {
  for (const std::string& name : record_.in_sync) {
    if (name == options_.name) continue;
    counts_.insert(name);
    away_since_[name] = environment.clock.now();
  }
}

Replicator::~Replicator() = default;

void Replicator::start() {
  log::info("head_leads", {{"term", record_.term},
                           {"in_sync", fmt::format("{}", fmt::join(record_.in_sync, ","))},
                           {"lease_s", coordinator_.lease_time() / std::chrono::seconds(1)},
                           {"sequence", history_.end().sequence}});
  spawn(scope_, keep_lease());
  spawn(scope_, keep_set());
  spawn(scope_, watch());
}

Async<void> Replicator::stop(bool resigns) {
  const bool led = !lost_.is_set();
  lose(error(Code::cancelled, "this head stops"));
  co_await scope_.stop();
  if (led && resigns) (void)co_await coordinator_.end_lease(record_.lease);
}

bool Replicator::leads() const {
  return !lost_.is_set() && environment_.clock.now() < valid_until_;
}

void Replicator::lose(Error why) {
  if (lost_.is_set()) return;
  log::warning("lead_lost", {{"term", record_.term}, {"why", why}});
  lost_why_ = std::move(why);
  lost_.set();
  give_none();
}

// Some heads may have what waits, and one of those may be promoted.
void Replicator::give_none() {
  const Error untold =
      error(Code::outcome_unknown, "this head does not lead any more: " + lost_why_.message());
  for (const Waiter& waiter : std::exchange(waiters_, {})) waiter.told(untold);
}

// --- The lease.

Async<void> Replicator::keep_lease() {
  TimerClock& clock = environment_.clock;
  const Duration period = coordinator_.lease_time() / 4;
  while (!lost_.is_set()) {
    const Instant asked = clock.now();
    const Status renewed = co_await coordinator_.renew(record_.lease);
    if (renewed) {
      valid_until_ = asked + coordinator_.lease_time() - lease_margin;
    } else if (renewed.error().code() == Code::conflict) {
      lose(renewed.error());
      co_return;
    } else {
      log::warning("lease_not_renewed", {{"why", renewed.error()}});
    }
    if (clock.now() >= valid_until_) {
      lose(renewed ? error(Code::deadline_exceeded, "it stood still for longer than its lease")
                   : renewed.error());
      co_return;
    }
    const Instant next = clock.now() + (renewed ? period : retry);
    (void)co_await wait_until(clock, std::min(next, valid_until_), lost_);
  }
}

// --- Promises.

void Replicator::begin(Batch& group) {
  const Place place{record_.term, history_.end().sequence + 1};
  group.add(place_row(place));
  protocol::Replicate batch;
  batch.term = place.term;
  batch.sequence = place.sequence;
  batch.changes = to_changes(group);
  history_.add(place, std::make_shared<const Bytes>(protocol::encode(batch)));
  for (const auto& [name, follower] : followers_) follower->changed.pulse();
}

void Replicator::confirm(std::function<void(Status)> told) {
  waiters_.push_back({history_.end().sequence, std::move(told)});
  settle();
}

// Gives the promises that can be given.
void Replicator::settle() {
  if (lost_.is_set()) return give_none();
  if (waiters_.empty() || hands_over_) return;
  if (!leads()) return lose(error(Code::deadline_exceeded, "the lease may be over"));
  uint64_t everywhere = history_.end().sequence;
  for (const std::string& name : counts_) {
    const auto follower = followers_.find(name);
    if (follower == followers_.end() || follower->second->is_copying) return;
    everywhere = std::min(everywhere, follower->second->confirmed);
  }
  const auto rest = std::ranges::find_if(
      waiters_, [&](const Waiter& waiter) { return waiter.sequence > everywhere; });
  std::vector<Waiter> ready{std::make_move_iterator(waiters_.begin()),
                            std::make_move_iterator(rest)};
  waiters_.erase(waiters_.begin(), rest);
  for (const Waiter& waiter : ready) {
    promised_ = std::max(promised_, waiter.sequence);
    waiter.told(ok());
  }
}

// --- Who is in sync.

bool Replicator::is_recorded(const std::string& name) const {
  return std::ranges::find(record_.in_sync, name) != record_.in_sync.end();
}

bool Replicator::may_be_recorded(const std::string& name) const {
  return is_recorded(name) || records_ || unsure_;
}

std::vector<std::string> Replicator::wanted() const {
  const Instant now = environment_.clock.now();
  std::vector<std::string> names;
  for (const auto& [name, follower] : followers_) {
    if (!follower->peer->is_open() || follower->is_copying || !follower->has_files) continue;
    if (follower->lags(now, options_.patience)) continue;
    // One that is recorded has all that was promised before this head led.
    if (is_recorded(name) || follower->confirmed >= promised_) names.push_back(name);
  }
  for (const auto& [name, since] : away_since_) {
    // One that is not recorded may lack what was promised since it went.
    if (is_recorded(name) && now - since <= options_.patience) names.push_back(name);
  }
  std::ranges::sort(names);
  names.insert(names.begin(), options_.name);
  return names;
}

// Promises wait for those that are nearly there, or they would never be while more is promised.
void Replicator::count_close_ones() {
  const Instant now = environment_.clock.now();
  for (const auto& [name, follower] : followers_) {
    if (is_recorded(name)) continue;
    const bool is_close = follower->peer->is_open() && !follower->is_copying &&
                          follower->has_files && !follower->lags(now, options_.patience) &&
                          follower->confirmed >= ends_.front();
    if (is_close) {
      counts_.insert(name);
    } else if (!unsure_) {
      counts_.erase(name);
    }
    // It may wait for a file: then it need not.
    if (follower->lags(now, options_.patience)) lacks_files(*follower, too_late());
  }
}

Async<void> Replicator::keep_set() {
  while (!lost_.is_set()) {
    count_close_ones();
    if (!unsure_) {
      std::erase_if(counts_, [this](const std::string& name) {
        return !is_recorded(name) && !followers_.contains(name);
      });
    }
    settle();
    std::vector<std::string> names = wanted();
    if (hands_over_ || (names == record_.in_sync && !unsure_)) {
      (void)co_await wait_either(changed_, lost_);
      continue;
    }
    // From now on promises wait for those, so that they have all of them when they are recorded.
    for (const std::string& name : names) {
      if (name != options_.name) counts_.insert(name);
    }
    LeadRecord next = record_;
    next.in_sync = std::move(names);
    const std::vector<std::string> before = record_.in_sync;
    records_ = true;
    const Status recorded = co_await record(std::move(next));
    records_ = false;
    recorded_.pulse();
    for (const auto& [name, follower] : followers_) {
      const bool was_recorded = std::ranges::find(before, name) != before.end();
      if (was_recorded && !is_recorded(name)) {
        lacks_files(*follower, too_late());
      }
      follower->files_changed.pulse();
    }
    if (lost_.is_set()) co_return;
    if (!recorded) {
      co_await sleep_for(environment_.clock, retry);
      continue;
    }
    std::erase_if(counts_, [&](const std::string& name) { return !is_recorded(name); });
    std::erase_if(away_since_, [&](const auto& entry) { return !is_recorded(entry.first); });
    log::info("heads_in_sync", {{"names", fmt::format("{}", fmt::join(record_.in_sync, ","))}});
  }
}

// Without an answer nobody knows whether it was done, or will be. Until the record has changed,
// what this head waits for must be all that it may come to name: so it is written again, even as it
// is, for each write makes a new revision, and voids those before.
Async<Status> Replicator::record(LeadRecord next) {
  auto done = co_await coordinator_.set_in_sync(std::move(next));
  const bool is_refused = !done && done.error().code() == Code::conflict;
  if (!done && (unsure_ || !is_refused)) {
    const Error why = done.error();
    unsure_ = true;
    auto seen = co_await coordinator_.read();
    if (!seen) co_return std::move(seen).error();
    if (seen->lease == record_.lease && seen->revision == record_.revision) co_return why;
    done = std::move(seen);
  }
  if (!done || done->lease != record_.lease) {
    lose(done ? error(Code::conflict, "another head leads") : done.error());
    co_return lost_why_;
  }
  unsure_ = false;
  record_ = std::move(*done);
  co_return ok();
}

// Time passes without an event.
Async<void> Replicator::watch() {
  while (!lost_.is_set()) {
    (void)co_await wait_until(environment_.clock, environment_.clock.now() + watch_period, lost_);
    ends_.push_back(history_.end().sequence);
    if (ends_.size() > close_looks) ends_.pop_front();
    changed_.pulse();
  }
}

// --- The heads that follow.

Async<Result<protocol::Following>> Replicator::follow(protocol::FollowLeader request,
                                                      std::shared_ptr<Peer> peer) {
  if (!leads()) co_return error(Code::conflict, "this head does not lead");
  if (request.name.empty() || request.name == options_.name) {
    co_return error(Code::invalid,
                    fmt::format("a head named '{}' cannot follow {}", request.name, options_.name));
  }
  const auto follower =
      std::make_shared<Follower>(request.name, std::move(peer), environment_.loop);
  const Place place{request.term, request.sequence};
  follower->is_copying = !history_.knows(place);
  follower->has_files = !follower->is_copying && is_recorded(request.name);
  follower->sent = follower->confirmed = follower->is_copying ? 0 : place.sequence;
  follower->progress_at = environment_.clock.now();
  if (const auto old = followers_.find(request.name); old != followers_.end()) {
    old->second->peer->close();
  }
  followers_[request.name] = follower;
  away_since_.erase(request.name);
  log::info("head_follows", {{"name", request.name},
                             {"term", place.term},
                             {"sequence", place.sequence},
                             {"whole_copy", follower->is_copying}});
  spawn(scope_, keep_files(follower));
  spawn(scope_, feed(follower));
  changed_.pulse();
  settle();
  co_return protocol::Following{record_.term, history_.end().sequence, follower->is_copying};
}

Async<void> Replicator::feed(FollowerPointer follower) {
  // What it has is of no use from here on: it must not be promoted with half of the copy.
  while (follower->is_copying && may_be_recorded(follower->name) && !lost_.is_set()) {
    (void)co_await wait_either(recorded_, lost_);
  }
  Status ended = ok();
  if (follower->is_copying) ended = co_await copy_whole(follower);
  while (ended && !lost_.is_set() && follower->peer->is_open()) {
    const History::Message next = history_.after(follower->sent);
    if (!next && follower->sent < history_.end().sequence) {
      ended = error(Code::exhausted, "it is further behind than this head remembers");
      break;
    }
    if (!next || follower->sent - follower->confirmed >= unconfirmed_max) {
      (void)co_await wait_either(follower->changed, follower->peer->closed());
      continue;
    }
    if (!follower->peer->is_writable()) {  // Full of a file, perhaps.
      if (follower->sent == follower->confirmed) follower->progress_at = environment_.clock.now();
      follower->is_choked = true;
      co_await follower->peer->writable();
      follower->is_choked = false;
      continue;
    }
    if (follower->sent == follower->confirmed) follower->progress_at = environment_.clock.now();
    Message message{*next, {}};
    auto call = follower->peer->begin_call(Method::replicate, std::move(message), confirm_budget);
    if (!call) {
      ended = call.error();
      break;
    }
    ++follower->sent;
    spawn(scope_, note_confirmed(follower, follower->sent, std::move(*call)));
  }
  follower->peer->close();
  follower->files_changed.pulse();
  if (!ended) {
    log::warning("head_not_fed", {{"name", follower->name}, {"why", ended.error()}});
  }
  const auto found = followers_.find(follower->name);
  if (found != followers_.end() && found->second == follower) {
    followers_.erase(found);
    // A connection that broke may be back at once; a process that is gone is not waited for.
    if (counts_.contains(follower->name)) {
      away_since_[follower->name] = environment_.clock.now() - options_.patience / 2;
    }
  }
  changed_.pulse();
}

Async<void> Replicator::note_confirmed(FollowerPointer follower, uint64_t sequence,
                                       transport::OutgoingCall call) {
  auto answer = co_await call.reply();
  if (!answer) {
    log::warning("batch_not_confirmed", {{"name", follower->name}, {"why", answer.error()}});
    follower->peer->close();
    co_return;
  }
  follower->confirmed = std::max(follower->confirmed, sequence);
  follower->progress_at = environment_.clock.now();
  follower->changed.pulse();
  settle();
  if (!counts_.contains(follower->name)) changed_.pulse();
}

Async<Status> Replicator::copy_whole(FollowerPointer follower) {
  std::unique_ptr<Snapshot> snapshot;
  auto take = [this, &snapshot]() -> Status {
    TROUPE_TRY(snapshot, store_.snapshot());
    return ok();
  };
  TROUPE_CO_CHECK(co_await transport::run_blocking(environment_, take));
  auto place = co_await send_snapshot(follower, *snapshot);
  if (!place) co_return std::move(place).error();
  if (!history_.knows(*place) && *place != history_.end()) {
    co_return error(Code::exhausted, "more was written during its copy than this head remembers");
  }
  follower->sent = follower->confirmed = place->sequence;
  follower->is_copying = false;
  follower->progress_at = environment_.clock.now();
  follower->files_changed.pulse();
  changed_.pulse();
  co_return ok();
}

Async<Result<Place>> Replicator::send_snapshot(FollowerPointer follower, Snapshot& snapshot) {
  auto find_place = [&snapshot] { return read_place(snapshot); };
  TROUPE_CO_TRY(const Place place, co_await transport::run_blocking(environment_, find_place));
  protocol::Replicate part;
  part.is_copy = true;
  size_t bytes = 0;
  for (const Table table : tables) {
    Page page{{}, copy_page_rows};
    for (;;) {
      auto read = [&snapshot, table, &page] { return snapshot.scan(table, {}, page); };
      TROUPE_CO_TRY(Rows rows, co_await transport::run_blocking(environment_, read));
      const bool is_last = rows.size() < copy_page_rows;
      if (!rows.empty()) page.after = rows.back().first;
      for (auto& [key, value] : rows) {
        if (table == Table::meta && !is_copied(key)) continue;
        bytes += key.size() + value.size();
        part.changes.push_back(
            {static_cast<uint32_t>(table), std::move(key), std::move(value), false});
        if (bytes < copy_part_bytes) continue;
        auto taken = co_await transport::call<Empty>(follower->peer, Method::replicate,
                                                     std::move(part), copy_budget);
        if (!taken) co_return std::move(taken).error();
        part = {};
        part.is_copy = true;
        bytes = 0;
      }
      if (is_last) break;
    }
  }
  // The last part: whoever has it has everything up to the place.
  part.term = place.term;
  part.sequence = place.sequence;
  auto taken = co_await transport::call<Empty>(follower->peer, Method::replicate, std::move(part),
                                               copy_budget);
  if (!taken) co_return std::move(taken).error();
  co_return place;
}

// --- The files that rows name.

Async<void> Replicator::bring_files(Batch rows, uint64_t bytes) {
  TimerClock& clock = environment_.clock;
  const auto announcement = std::make_shared<Announcement>();
  announcement->message =
      protocol::encode(protocol::Replicate{record_.term, 0, false, to_changes(rows)});
  const UnderWay under_way{announced_bytes_, bytes};
  // Those before it come first.
  const auto size_takes = std::chrono::milliseconds(announced_bytes_ * 1000 / file_bytes_per_s);
  const Instant end = clock.now() + options_.file_patience + size_takes;
  while (!lost_.is_set()) {
    bool waits = false;
    for (const auto& [name, follower] : followers_) {
      if (!follower->has_files || !follower->peer->is_open()) continue;
      const auto asked =
          std::ranges::find(announcement->asked, follower, &Announcement::Asked::follower);
      if (asked == announcement->asked.end()) {
        announcement->asked.push_back({follower});
        spawn(scope_, announce(follower, announcement, end - clock.now()));
        waits = true;
      } else if (!asked->has_answered) {
        waits = true;
        if (clock.now() < end) continue;
        lacks_files(*follower, too_late());
      }
    }
    if (!waits || clock.now() >= end) co_return;
    (void)co_await wait_until(clock, end, changed_);
  }
}

Async<void> Replicator::announce(FollowerPointer follower,
                                 std::shared_ptr<Announcement> announcement, Duration budget) {
  Message message{announcement->message, {}};
  auto answer = co_await follower->peer->call(Method::replicate, std::move(message), budget);
  if (!answer) lacks_files(*follower, answer.error());
  std::ranges::find(announcement->asked, follower, &Announcement::Asked::follower)->has_answered =
      true;
  changed_.pulse();
}

void Replicator::lacks_files(Follower& follower, const Error& why) {
  if (!std::exchange(follower.has_files, false)) return;
  log::warning("head_may_lack_files", {{"name", follower.name}, {"why", why}});
  // What it lacks is named by then, by a row that it was sent.
  follower.ask_at = environment_.clock.now() + files_retry;
  follower.files_changed.pulse();
  changed_.pulse();
}

// Asks a head that is surely off the record whether it has all that its rows name.
Async<void> Replicator::keep_files(FollowerPointer follower) {
  while (!lost_.is_set() && follower->peer->is_open()) {
    if (follower->has_files || follower->is_copying || may_be_recorded(follower->name)) {
      (void)co_await wait_either(follower->files_changed, follower->peer->closed());
      continue;
    }
    if (environment_.clock.now() < follower->ask_at) {
      (void)co_await wait_until(environment_.clock, follower->ask_at, follower->peer->closed());
      continue;
    }
    protocol::Replicate question;
    question.term = record_.term;
    auto answer = co_await transport::call<Empty>(follower->peer, Method::replicate,
                                                  std::move(question), files_budget);
    if (answer) {
      follower->has_files = true;
      changed_.pulse();
    } else if (answer.error().code() != Code::deadline_exceeded) {
      log::warning("files_not_confirmed", {{"name", follower->name}, {"why", answer.error()}});
      follower->ask_at = environment_.clock.now() + files_retry;
    }
  }
}

// --- What operators ask.

std::vector<protocol::HeadInfo> Replicator::heads() const {
  std::vector<protocol::HeadInfo> infos;
  infos.push_back({options_.name, "leads", true, 0});
  for (const auto& [name, follower] : followers_) {
    const bool has_all = !follower->is_copying && follower->has_files;
    infos.push_back({name, has_all ? "follows" : "copies", is_recorded(name),
                     history_.end().sequence - follower->confirmed});
  }
  for (const std::string& name : record_.in_sync) {
    if (name != options_.name && !followers_.contains(name))
      infos.push_back({name, "away", true, 0});
  }
  return infos;
}

Async<Result<protocol::TransferLead>> Replicator::hand_over(protocol::TransferLead request) {
  if (!leads() || hands_over_) co_return error(Code::conflict, "this head does not lead any more");
  FollowerPointer next;
  for (const auto& [name, follower] : followers_) {
    const bool may = is_recorded(name) && !follower->is_copying && follower->peer->is_open();
    if (may && (request.to.empty() || request.to == name)) next = follower;
  }
  if (!next) {
    std::string names;
    for (const auto& [name, follower] : followers_) {
      if (is_recorded(name)) names += (names.empty() ? "" : ", ") + name;
    }
    co_return error(Code::not_found,
                    fmt::format("no head {} is in sync with this one; those in sync: {}",
                                request.to, names.empty() ? "none" : names));
  }
  // Nothing is promised meanwhile, so that the next head has all of it.
  struct Pause {
    Replicator& replicator;
    explicit Pause(Replicator& its) : replicator(its) { replicator.hands_over_ = true; }
    ~Pause() {
      replicator.hands_over_ = false;
      replicator.settle();
    }
  } const pause{*this};
  const Instant end = environment_.clock.now() + hand_over_budget;
  while (next->confirmed < history_.end().sequence && next->peer->is_open() && leads()) {
    if (environment_.clock.now() >= end) break;
    const Instant soon = std::min(end, environment_.clock.now() + retry);
    (void)co_await wait_until(environment_.clock, soon, next->changed);
  }
  if (next->confirmed < history_.end().sequence || !leads()) {
    co_return error(Code::deadline_exceeded,
                    next->name + " did not confirm all in time: this head goes on");
  }
  while (records_ && environment_.clock.now() < end) {
    (void)co_await wait_until(environment_.clock, end, recorded_);
  }
  if (records_ || unsure_ || !is_recorded(next->name) || !leads()) {
    co_return error(Code::unavailable, "who is in sync is being recorded: try again");
  }
  LeadRecord last = record_;
  last.in_sync = {options_.name, next->name};
  const Status recorded = co_await record(std::move(last));
  if (!recorded) co_return recorded.error();
  const Status ended = co_await coordinator_.end_lease(record_.lease);
  lose(error(Code::cancelled, "handed over to " + next->name));
  if (!ended) co_return ended.error();
  co_return protocol::TransferLead{next->name};
}

}  // namespace troupe::head
