// A training run on the cluster: one trainer actor a worker, restarted together when one dies.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "training/trainer_config.h"
#include "troupe/session.h"

namespace troupe::training {

struct TrainJobOptions {
  TrainerConfig config;  // Of every rank; `rank` is filled in.
  int restarts = 0;      // How often a member's death is answered by going on from the checkpoint.
  bool resume = false;
};

// What happens, told on the caller's thread.
struct TrainJobEvents {
  std::function<void(std::string_view item)> on_item;    // Of rank 0.
  std::function<void(std::string_view text)> on_notice;  // For people.
  std::function<void()> on_restart;                      // Before the ranks begin again.
};

// Blocks until the run ends. `interrupted` may be set at any time by a signal handler: the ranks
// then stop after their step and rank 0 saves. Returns the summary of rank 0 as JSON.
// Errors: those of the trainers and of the cluster.
Result<std::string> run_train_job(const Session& session, const TrainJobOptions& options,
                                  const TrainJobEvents& events,
                                  const std::atomic<bool>& interrupted);

}  // namespace troupe::training
