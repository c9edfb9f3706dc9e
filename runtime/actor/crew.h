// The threads that run a process's light actors: an actor that has something to do stands in line,
// and one thread at a time gives it a turn.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "actor/lookout.h"
#include "transport/environment.h"

namespace troupe::actor {

struct CrewOptions {
  // At most so many turns at once: when each of them waits for an actor that stands in line, none
  // goes on.
  size_t threads_max = 1024;
  // A line that does not move for so long, because what runs computes or waits, gets one more
  // thread.
  Duration patience = std::chrono::milliseconds(1);
};

// It starts as many threads as there are processors; those that come on top go when they have
// nothing to do.
class Crew {
 public:
  class Member {
   public:
    enum class After : uint8_t {
      idle,
      again,  // There is more to do.
      gone,   // The member may not exist any more.
    };
    Member() = default;
    Member(const Member&) = delete;
    Member& operator=(const Member&) = delete;
    // Never on two threads at once. It should end soon, so that others have their turn.
    virtual After turn() noexcept = 0;

   protected:
    ~Member() = default;

   private:
    friend class Crew;
    enum class State : uint8_t { idle, in_line, running, running_and_wanted };
    std::atomic<State> state_ = State::idle;
  };

  // `scope` ends before the crew does.
  Crew(transport::Environment environment, Scope& scope, CrewOptions options = {});
  // Waits for the threads; no member may be in line or run.
  ~Crew();

  // The member has something to do. Thread-safe.
  void ready(Member& member);
  size_t threads() const;

 private:
  void line_up(Member& member);
  // With the lock held.
  void add_thread();
  void run() noexcept;
  void tend_soon();
  Async<void> tend();

  const transport::Environment environment_;
  Scope& scope_;
  const CrewOptions options_;
  const size_t threads_least_;
  mutable std::mutex mutex_;
  Lookout lookout_;
  std::deque<Member*> line_;
  std::atomic<size_t> line_count_ = 0;
  std::atomic<bool> closed_ = false;
  size_t threads_ = 0;
  uint64_t turns_ = 0;
  bool tending_ = false;
  std::condition_variable ended_;  // A thread.
};

}  // namespace troupe::actor
