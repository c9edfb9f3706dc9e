// One head of a simulated cluster: its machine and its disk, which outlive its process, and the
// supervisor that starts a process anew when one ends by itself.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "head/candidate.h"
#include "head/head.h"
#include "tests/sim/sim_coordinator.h"
#include "tests/sim/sim_disk.h"
#include "tests/sim/simulation.h"

namespace troupe::sim {

struct SimHeadOptions {
  ClusterId cluster;
  size_t index = 0;
  bool lazy_sync = false;  // As in ClusterOptions.
  // Where several heads agree; null: it is the only one.
  CoordinatorModel* coordinator = nullptr;
  Duration coordinator_patience{};
};

// What the cluster learns of its heads.
class HeadObserver {
 public:
  virtual ~HeadObserver() = default;
  // Of the only head: it has started.
  virtual void head_began(uint64_t epoch) = 0;
  virtual void head_violates(std::string what) = 0;
};

class SimHead {
 public:
  // All outlive it.
  SimHead(Simulation& simulation, HeadObserver& observer, const SimHeadOptions& options);

  static transport::Endpoint endpoint_of(size_t index);
  static std::string machine_of(size_t index);

  size_t index() const { return options_.index; }
  std::string name() const;
  std::string machine() const { return machine_of(options_.index); }
  SimDisk& disk() { return disk_; }

  void start();
  // As kill -9; its disk keeps what was synced. Silently: as the loss of its machine, of which
  // nobody is told.
  void kill(bool silently = false);
  // In good order: one that leads gives the lead up. Returns when it has ended. False: it was not
  // up.
  Async<bool> stop();
  // It stays down: settle() expects nothing of it.
  void abandon() { abandoned_ = true; }
  // No process is started from here on; the one that runs ends.
  Async<void> shut_down();

  bool is_up() const { return process_ != nullptr; }
  bool is_abandoned() const { return abandoned_; }
  bool may_start() const { return !process_ && !stopping_ && !abandoned_; }
  // It serves: the only one has started, one of several leads, as far as it knows.
  bool serves() const;
  // One of several that does not lead, or not yet.
  bool stands_by() const { return is_up() && options_.coordinator != nullptr && !serves(); }
  // There must be a process.
  SimHost& host() { return *process_->host; }

  // Asks the process to hand the lead over to whoever may have it. True: it did.
  Async<bool> hand_over();
  // Each way to the coordinator takes up to so long, also for processes to come.
  void set_coordinator_latency(Duration most);

 private:
  struct Process {
    explicit Process(const Executor& executor)
        : start_ended(executor), ended(executor), over(executor), life(executor) {}
    SimHost* host = nullptr;
    std::shared_ptr<Store> store;
    // Of the only one.
    std::unique_ptr<head::Head> head;
    bool started = false;
    Event start_ended;
    // Of one of several.
    std::unique_ptr<SimCoordinator> coordinator;
    std::unique_ptr<head::Candidate> candidate;
    std::string why;
    Event ended;  // By itself.
    Event over;   // It was killed or stopped.
    Scope life;   // What it does, and what is asked of it here.
  };
  using ProcessPointer = std::shared_ptr<Process>;

  Async<void> run(ProcessPointer process);
  static Async<void> live(Process* process);
  static Async<void> ask_for_hand_over(Process* process, std::shared_ptr<bool> done,
                                       std::shared_ptr<Event> answered);
  static Async<void> end(ProcessPointer process, bool resigns);
  Async<void> start_again();

  Simulation& simulation_;
  HeadObserver& observer_;
  const SimHeadOptions options_;
  SimDisk disk_;
  ProcessPointer process_;  // Null: none runs.
  Duration coordinator_latency_ = SimCoordinator::usual_latency;
  uint32_t started_ = 0;
  bool stopping_ = false;
  bool abandoned_ = false;
  bool shuts_down_ = false;
};

}  // namespace troupe::sim
