// Of the head that leads: sends what it commits to the heads that stand by, and keeps the lead.
//
// A promise waits until every head that the coordinator records as in sync has it durably, and is
// not given once the lease may have passed on. So whoever is promoted has all that was promised. A
// head that does not keep up is taken off the record first, and only then not waited for any more;
// one that comes back is waited for first, and then recorded.
//
// Rows name files (named_files.h), and who is recorded has those of all rows that it has. Before a
// row is written that names a new one, the heads in sync are told of it (bring_files) and fetch it,
// so that no batch waits for a file. Who has not got one in time is taken off the record, and asked
// then for all that its rows name; it may take batches without their files until it says that it
// has them. Whoever may be recorded takes none without. Both are asked by a Replicate that is no
// part of a copy and has no place: with the rows that will be written, or with none.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "head/coordinator.h"
#include "head/history.h"
#include "metadata/replication.h"
#include "transport/environment.h"
#include "transport/peer.h"

namespace troupe::head {

// What a head holds when it begins to lead.
struct Lead {
  LeadRecord record;
  Instant since;  // When it asked for the lease.
  History history;
};

struct ReplicatorOptions {
  std::string name;
  // A head in sync that has not confirmed what it was sent for so long, or is away, is given up.
  Duration patience = std::chrono::seconds(1);
  // The same of a file that it is told of, beside what its size takes.
  Duration file_patience = std::chrono::seconds(5);
};

// Everything runs on the environment's loop. Stop it before it is destroyed.
class Replicator final : public Replication {
 public:
  // All outlive it.
  Replicator(transport::Environment environment, Store& store, Coordinator& coordinator,
             ReplicatorOptions options, Lead lead);
  ~Replicator() override;

  void start();
  // Gives the lead up, if `resigns`, so that nobody need wait until the lease is over.
  Async<void> stop(bool resigns);

  uint64_t term() const { return record_.term; }
  // Set once this head does not lead any more: nothing is promised from then on.
  Event& lost() { return lost_; }

  // A head that stands by asks for what it lacks. Errors: conflict (this head does not lead),
  // invalid.
  Async<Result<protocol::Following>> follow(protocol::FollowLeader request,
                                            std::shared_ptr<transport::Peer> peer);
  // Hands over to a head in sync, and is lost then. Errors: not_found (no such head in sync),
  // unavailable, deadline_exceeded: this head still leads, or is lost.
  Async<Result<protocol::TransferLead>> hand_over(protocol::TransferLead request);
  std::vector<protocol::HeadInfo> heads() const;
  // Rows like these will be written, and name files of so many bytes that are here: returns once
  // the heads in sync have those, or do not count as in sync any more.
  Async<void> bring_files(Batch rows, uint64_t bytes);

  // --- Replication
  void begin(Batch& group) override;
  void confirm(std::function<void(Status)> told) override;
  bool holds() const override { return leads() && !hands_over_; }

 private:
  struct Follower;
  using FollowerPointer = std::shared_ptr<Follower>;
  struct Announcement;

  Async<void> keep_lease();
  Async<void> keep_set();
  Async<void> watch();
  Async<void> feed(FollowerPointer follower);
  Async<Status> copy_whole(FollowerPointer follower);
  Async<Status> await_confirmed(FollowerPointer follower, uint64_t sequence,
                                transport::OutgoingCall call);
  Async<void> note_confirmed(FollowerPointer follower, uint64_t sequence,
                             transport::OutgoingCall call);
  Async<Result<Place>> send_snapshot(FollowerPointer follower, Snapshot& snapshot);
  Async<void> announce(FollowerPointer follower, std::shared_ptr<Announcement> announcement,
                       Duration budget);
  void lacks_files(Follower& follower, const Error& why);
  Async<void> keep_files(FollowerPointer follower);
  // The names that should be recorded now.
  std::vector<std::string> wanted() const;
  void count_close_ones();
  // Errors: nobody knows whether it was recorded, or the lead is lost.
  Async<Status> record(LeadRecord next);
  bool is_recorded(const std::string& name) const;
  // The same, now or once a write of the record is through.
  bool may_be_recorded(const std::string& name) const;
  void settle();
  void give_none();
  void lose(Error why);
  bool leads() const;

  transport::Environment environment_;
  Store& store_;
  Coordinator& coordinator_;
  const ReplicatorOptions options_;
  Scope scope_;
  LeadRecord record_;
  Instant valid_until_;
  History history_;
  std::map<std::string, FollowerPointer> followers_;
  std::map<std::string, Instant> away_since_;  // Those that count and do not follow.
  std::set<std::string> counts_;  // Promises wait for them: no fewer than are, or may be, recorded.
  bool unsure_ = false;           // A write of the record was not answered, and may still be done.
  bool records_ = false;          // One is under way.
  std::deque<uint64_t> ends_;     // The history's end at the last looks; never empty.
  uint64_t promised_ = 0;         // The sequence of the last promise.
  struct Waiter {
    uint64_t sequence;
    std::function<void(Status)> told;
  };
  std::vector<Waiter> waiters_;
  uint64_t announced_bytes_ = 0;  // Of files that heads are waited for with.
  bool hands_over_ = false;
  Event changed_;   // A batch was begun, or the set of heads may have to change.
  Event recorded_;  // A write of the record was answered, or was not.
  Event lost_;
  Error lost_why_;
};

}  // namespace troupe::head
