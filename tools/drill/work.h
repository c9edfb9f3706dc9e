// What a drill's cluster has to do meanwhile, and what it has acknowledged of that.
#pragma once

#include <troupe/troupe.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "drill/cluster.h"
#include "drill/drill.h"

namespace troupe::drill {

// How long a drill waits for what should be there soon, before it gives up.
constexpr auto patience = std::chrono::seconds(30);

// An actor that counts its calls.
class Tally {
 public:
  int64_t add() { return ++count_; }
  int64_t count() { return count_; }
  int64_t incarnation() const;

 private:
  int64_t count_ = 0;
};
using TallyRef = ActorRef<Tally>;

Result<Session> join(const Cluster& cluster);
// Returns once it is alive.
Result<TallyRef> create_tally(const Session& session, const ActorOptions& options);
Result<std::vector<TallyRef>> create_tallies(const Session& session, const ActorOptions& options,
                                             size_t count);
Result<int64_t> incarnation_of(const TallyRef& tally, std::chrono::nanoseconds timeout);

// Calls an actor again and again, on a thread of its own.
class Caller {
 public:
  explicit Caller(TallyRef tally);
  ~Caller() { stop(); }
  uint64_t acknowledged() const { return acknowledged_; }
  void stop();
  // After stop(): whether the actor has counted each call that was acknowledged, once.
  void check(Report& report) const;

 private:
  void run();

  const TallyRef tally_;
  std::atomic<bool> over_ = false;
  std::atomic<uint64_t> acknowledged_ = 0;
  uint64_t failed_ = 0;
  int64_t last_ = 0;
  std::string wrong_;
  std::thread thread_;
};

// Actors and placement groups with names, which belong to nobody: each that is acknowledged must
// be there ever after, and each whose end is acknowledged must not.
class Promises {
 public:
  // What their names begin with.
  explicit Promises(std::string prefix = "drill") : prefix_(std::move(prefix)) {}
  // One of them. Errors: those of the cluster, which then has promised nothing.
  Status make(const Session& session);
  size_t size() const;
  // Whether all are as promised; what is not is noted in the report.
  void check(const Session& session, Report& report) const;
  // Of what was promised after a backup: those that are there all the same.
  size_t found(const Session& session) const;

 private:
  enum class Kind : uint8_t { actor, group };
  struct Promise {
    Kind kind = Kind::actor;
    std::string id;
    bool ended = false;
  };
  static Status look(const Session& session, const std::string& name, const Promise& promise);

  const std::string prefix_;
  mutable std::mutex mutex_;
  std::map<std::string, Promise> made_;  // By name.
  size_t tried_ = 0;
};

// Asks for promises again and again, on a thread of its own.
class Asker {
 public:
  Asker(const Session& session, Promises& promises);
  ~Asker() { stop(); }
  void stop();

 private:
  const Session& session_;
  Promises& promises_;
  std::atomic<bool> over_ = false;
  std::thread thread_;
};

}  // namespace troupe::drill
