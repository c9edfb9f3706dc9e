#include "tests/sim/episode.h"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <set>

#include "tests/sim/fault_plan.h"
#include "tests/sim/workload.h"

namespace troupe::sim {

using namespace std::chrono_literals;

namespace {

constexpr Duration progress_limit = 30s;
// After faults without end a cluster may take longer to come to itself.
constexpr Duration patience = 120s;
constexpr Duration idle_limit = 15s;  // Longer than a worker keeps the processes of idle slots.
constexpr Duration aftermath = 5s;    // Longer than the last fault holds up a frame, or a disk.
constexpr Duration calm = 7s;         // Longer than a node may be silent.
constexpr size_t violations_enough = 3;

class Episode {
 public:
  explicit Episode(const EpisodeOptions& options)
      : sim_(options.seed), mode_(options.seed % 4 == 0 ? Mode::safety : Mode::liveness) {
    if (options.shows_history) sim_.history().keep_text();
  }

  EpisodeResult run() {
    EpisodeResult result;
    result.mode = mode_;
    {
      ClusterOptions options;
      options.heads = sim_.random().chance(0.5) ? 3 : 1;
      options.workers = sim_.random().chance(0.1) ? 10 : 2 + below(3);
      options.main_driver = false;
      result.heads = options.heads;
      SimCluster cluster{sim_, options};
      Promises promises{sim_, cluster};
      Workload workload{sim_, cluster, promises};
      cluster_ = &cluster;
      promises_ = &promises;
      cluster.also_settled([&promises] { return promises.broken(); });
      workload_ = &workload;
      live();
      cluster.stop();
      result.violations = cluster.checks().violations();
      result.succeeded = workload.succeeded();
      result.failed = workload.failed();
      result.calls_run = cluster.checks().calls_run();
      result.leases = cluster.checks().leases_granted();
      result.grants = cluster.checks().grants_seen();
      // What still unwinds may look at the plans.
      sim_.run_until([this] { return sim_.scope().size() == 0; }, patience);
    }
    result.hash = sim_.history_hash();
    result.simulated = sim_.clock().now().time_since_epoch();
    result.faults = sim_.network().fault_counts();
    for (const std::string& line : sim_.history().text()) std::fputs(line.c_str(), stdout);
    return result;
  }

 private:
  uint64_t below(uint64_t bound) { return sim_.random().below(bound); }
  bool is_hopeless() const { return cluster_->checks().violations().size() >= violations_enough; }
  void violation(std::string what) { cluster_->checks().violation(std::move(what)); }

  void live() {
    if (!cluster_->start()) return violation("the cluster does not come up");
    const uint64_t rounds = mode_ == Mode::safety ? 1 : 2 + below(5);
    for (uint64_t round = 0; round < rounds && !is_hopeless(); ++round) {
      suffer();
      recover(mode_ == Mode::safety ? patience : progress_limit);
    }
    if (!is_hopeless()) finish();
  }

  void suffer() {
    plans_.push_back(std::make_unique<FaultPlan>(sim_, *cluster_));
    plans_.back()->begin();
    workload_->begin(1 + below(3));
    const uint64_t seconds = mode_ == Mode::safety ? 60 + below(120) : 5 + below(40);
    sim_.run_for(std::chrono::seconds(seconds));
    // One that does not come back, of three or more.
    const bool abandons = !abandoned_ && cluster_->workers() > 2 && sim_.random().chance(0.15);
    if (abandons) {
      const size_t index = below(cluster_->workers());
      abandoned_ = true;
      cluster_->abandon_worker(index);
      if (cluster_->is_worker_up(index)) cluster_->kill_worker(index, sim_.random().chance(0.5));
    }
    if (cluster_->heads() > 1 && sim_.random().chance(0.1)) abandon_head();
    plans_.back()->end();
    workload_->wind_down();
  }

  // Not the one that leads, which may be recording that the others lack something; nor the last one
  // that has all.
  void abandon_head() {
    SimHead& head = cluster_->head(below(cluster_->heads()));
    const head::LeadRecord record = cluster_->coordinator().read();
    const bool is_needed = record.in_sync == std::vector<std::string>{head.name()};
    if (std::exchange(abandoned_head_, true) || is_needed || record.leader == head.name()) return;
    head.abandon();
    if (head.is_up()) head.kill(sim_.random().chance(0.5));
  }

  void recover(Duration limit) {
    if (!sim_.run_until([this] { return workload_->is_idle(); }, limit)) {
      return violation(fmt::format("{} s after the last fault this has not ended: {}", limit / 1s,
                                   workload_->what_runs()));
    }
    cluster_->settle(limit);
    if (is_hopeless()) return;
    stay_calm();
    auto outcome = std::make_shared<Status>(error(Code::deadline_exceeded, "it never ends"));
    sim_.run(try_all(outcome), limit);
    if (!*outcome) violation("no progress: " + outcome->error().to_string());
  }

  // Nothing fails and nobody asks for anything: each actor whose owner lives goes on where it is.
  void stay_calm() {
    sim_.run_for(aftermath);
    std::set<JobId> jobs;
    for (const auto& driver : cluster_->drivers()) jobs.insert(driver->job);
    std::vector<std::shared_ptr<SimProcess>> actors;
    for (const auto& [id, process] : cluster_->checks().processes()) {
      const protocol::AssignActor& actor = process->actor();
      const bool is_owned = actor.spec.detached || jobs.contains(process->job());
      if (actor.incarnation != 0 && is_owned) actors.push_back(process);
    }
    sim_.run_for(calm);
    for (const auto& process : actors) {
      if (process->is_alive()) continue;
      violation(fmt::format("actor {} ended in calm: {}",
                            process->actor().spec.actor.short_string(), process->exit_reason()));
    }
  }

  Async<void> try_all(std::shared_ptr<Status> outcome) {
    // A write that had begun may be slow yet.
    std::shared_ptr<SimDriver> driver;
    for (int tries = 0; !driver && tries < 3; ++tries) driver = co_await workload_->new_program();
    if (!driver) {
      *outcome = error(Code::unavailable, "no program starts");
      co_return;
    }
    *outcome = co_await workload_->try_all(driver);
    promises_->driver_gone(driver->job);
    co_await cluster_->stop_driver(driver);
  }

  // Of what the programs had, nothing is left when they have ended.
  void finish() {
    if (!sim_.run(workload_->end_all(), progress_limit)) violation("the programs do not end");
    cluster_->settle(progress_limit);
    sim_.run_for(idle_limit);
    for (const auto& [id, process] : cluster_->checks().processes()) {
      violation("process " + id.short_string() + " outlives its job");
    }
  }

  Simulation sim_;
  const Mode mode_;
  SimCluster* cluster_ = nullptr;
  Promises* promises_ = nullptr;
  Workload* workload_ = nullptr;
  std::vector<std::unique_ptr<FaultPlan>> plans_;
  bool abandoned_ = false;       // A worker.
  bool abandoned_head_ = false;  // Or tried to.
};

}  // namespace

EpisodeResult run_episode(const EpisodeOptions& options) {
  return Episode{options}.run();
}

}  // namespace troupe::sim
