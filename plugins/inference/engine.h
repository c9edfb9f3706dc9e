// Continuous batching: each iteration is one forward pass over all sequences that can get on.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/random.h"
#include "base/status.h"
#include "inference/engine_config.h"
#include "inference/loaded_model.h"
#include "inference/sequence.h"

namespace troupe::inference {

struct EngineCounters {
  uint64_t requests = 0;  // Accepted.
  uint64_t prompt_tokens = 0;
  uint64_t tokens_generated = 0;
  uint64_t preemptions = 0;
  std::chrono::nanoseconds busy{};     // In iterations.
  std::chrono::nanoseconds forward{};  // Of those, in the model.
};

// Belongs to one thread. `random` gives seeds to requests without one.
class Engine {
 public:
  Engine(LoadedModel loaded, const EngineConfig& config, std::unique_ptr<Random> random);

  // Queues a request and finishes its call some day, or at once with an error: invalid (too long
  // for the context), exhausted (too many wait).
  void submit(GenerateRequest request, plugin::Call call);

  // One iteration. Returns whether more work waits. Errors: internal (the model failed).
  Result<bool> iterate();

  // Gives all KV blocks back and stands still until resume(); requests are still taken.
  void pause();
  void resume() { paused_ = false; }

  const LoadedModel& loaded() const { return loaded_; }
  // Tokens of prompt and answer together.
  int64_t max_context() const { return max_context_; }
  int64_t running() const { return running_; }
  int64_t waiting() const { return std::ssize(sequences_) - running_; }
  uint32_t kv_blocks_free() { return loaded_.model.kv_blocks().free_count(); }
  uint32_t kv_blocks_total() { return loaded_.model.kv_blocks().total_count(); }
  const EngineCounters& counters() const { return counters_; }

 private:
  using Slot = std::unique_ptr<Sequence>;

  Status check(const GenerateRequest& request) const;
  void drop_cancelled();
  void drain();
  IterationPlan plan();
  Status apply(const IterationPlan& plan);
  Status forward(const IterationPlan& plan);
  void take_token(Slot& slot, std::span<const float> logits);
  Result<bool> sample(Sequence& sequence, std::span<const float> logits);
  void preempt(Sequence& sequence);
  void release(Sequence& sequence);
  void fail(Slot& slot, const Error& failure);
  void deliver(Slot& slot, bool finished);

  LoadedModel loaded_;
  IterationLimits limits_;
  int64_t waiting_max_;
  int64_t max_context_;
  std::unique_ptr<Random> random_;
  std::vector<Slot> sequences_;  // Running and waiting ones in order of arrival.
  std::vector<Slot> draining_;   // Done, but their clients have not taken everything.
  std::vector<float> logits_;
  int64_t running_ = 0;
  bool paused_ = false;
  EngineCounters counters_;
};

}  // namespace troupe::inference
