// Calls to whichever of several actors has the least to do: a bounded number is sent to each, and
// the others wait here, in their order.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>

#include "client/actor_caller.h"

namespace troupe::client {

// Thread-safe. A member is called from when it was reached until its process is gone, and again
// once it was restarted. What surely did not run on one goes to another. Held by its owner and by
// its unfinished calls; the owner must close() it.
class CallPool final : public CallRoute,
                       public ActorWatch,
                       public std::enable_shared_from_this<CallPool> {
 public:
  // At most `calls_a_member` (at least 1) unfinished calls are sent to one.
  CallPool(Client& client, uint32_t calls_a_member);

  // False: it is a member already.
  bool add(ActorId actor);
  // A member without unfinished calls that was reached: it is none any more.
  std::optional<ActorId> take_idle();

  // `spec` names no actor, and its extras name this as their route. `more`: as of
  // Client::start_call. Without a living member it fails with unavailable.
  std::shared_ptr<Object> submit(ActorCallSpec spec, std::vector<std::shared_ptr<Object>>* more);

  struct Counts {
    size_t members = 0;     // Those that are dead for good are none.
    size_t reached = 0;     // Of them, those that can be called now.
    size_t idle = 0;        // Of these, those without unfinished calls.
    size_t unfinished = 0;  // Calls that were sent.
    size_t queued = 0;      // Calls that wait here.
  };
  Counts counts() const;
  // Those that are not dead.
  std::vector<ActorId> members() const;

  // Calls that wait here fail with cancelled, and later ones at once. What was sent goes on.
  void close();

  void take_back(std::shared_ptr<ActorCall> call, Error why) override;
  void process_gone(ActorId actor) override;

 private:
  using MemberId = uint32_t;
  // A call's place at a member: given back when its result is there, or when it is taken back.
  class Seat;
  struct Member {
    std::shared_ptr<ActorTarget> target;
    bool is_reached = false;
    bool is_sought = false;  // A coroutine waits until it is reached.
    uint32_t refusals = 0;   // In a row.
    size_t unfinished = 0;
    uint64_t turn = 0;  // Of those that have equally many, the one that waits longest is next.
  };
  struct Choice {
    size_t unfinished;
    uint64_t turn;
    MemberId member;
    auto operator<=>(const Choice&) const = default;
  };
  struct Sending {
    std::shared_ptr<ActorCall> call;
    std::shared_ptr<ActorTarget> target;
    std::shared_ptr<Seat> seat;
  };

  // Sends what waits, as far as members have room. Not with an object's or this one's lock held.
  void dispatch();
  // The same for whoever may hold such a lock.
  void dispatch_soon();
  struct LeaveOptions {
    bool has_ended;  // False: the member did not run the call.
  };
  void leave(Seat& seat, LeaveOptions options);
  // Looks for it, after a pause, until it is reached or dead.
  static Async<void> seek(Client& client, std::weak_ptr<CallPool> pool, MemberId id,
                          std::shared_ptr<ActorTarget> target, Duration pause);
  void found(MemberId id, const Status& outcome);
  Error nobody_left() const;

  // --- With the lock held.
  std::optional<Sending> next_sending();
  void set_unfinished(MemberId id, Member& member, size_t unfinished);
  void set_reached(MemberId id, Member& member, bool is_reached);
  Choice choice_of(MemberId id, const Member& member) const {
    return {member.unfinished, member.turn, id};
  }
  void start_seeking(MemberId id, Member& member);

  Client& client_;
  ActorCaller& caller_;
  const uint32_t calls_a_member_;

  mutable std::mutex mutex_;  // Guards what follows. No object is touched with it held.
  bool is_closed_ = false;
  MemberId last_id_ = 0;
  uint64_t turns_ = 0;
  std::map<MemberId, Member> members_;
  std::map<ActorId, MemberId> ids_;
  std::set<Choice> reached_;  // Those that can be called, the best first.
  size_t unfinished_ = 0;
  std::deque<std::shared_ptr<ActorCall>> queue_;
  std::optional<Error> last_death_;
  bool dispatch_posted_ = false;
};

}  // namespace troupe::client
