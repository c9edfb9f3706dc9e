// The actor class "trainer": one rank of a data-parallel training run.
//
// Created with a TrainerConfig as JSON. Methods:
//   train  {"members": [actor ids in the order of ranks], "generation": n, "from_step": n}
//          A stream. Without members, or with one, it trains alone. from_step -1: from the
//          checkpoint, or from step 0 if there is none; 0: from fresh parameters; absent: from
//          where this actor is; any other: from the checkpoint, which must be at that step. Rank 0
//          emits {"step", "loss", "lr", "grad_norm", "tokens_per_s", "model_flops_per_s",
//          "elapsed_s"} for each step, with "val_loss" at evaluations. Every rank ends with
//          {"summary": {"step", "stopped", "loss", "val_loss", "elapsed_s", "parameters",
//          "dropped_items"}}.
//   stop   All ranks stop after the present step, rank 0 with a checkpoint.
//   status Replies {"step", "steps", "training"}, and the "summary" of the run that ended last, for
//          a caller whose stream was full.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "training/batches.h"
#include "training/run_state.h"
#include "training/token_file.h"
#include "training/trainer_config.h"
#include "troupe/plugin_class.h"

namespace troupe::training {

class Trainer {
 public:
  // Errors: those of the config, the data files, the tokenizer and the model; invalid (tokens of
  // another vocabulary than the model's).
  static Result<std::unique_ptr<Trainer>> create(plugin::Context context,
                                                 std::span<const BytesView> arguments);

  void call(plugin::Call call, std::string_view method, std::span<const BytesView> arguments);
  // One training step. What fails ends the train call, not the actor.
  Result<bool> step(std::chrono::microseconds budget);

  // While paused no step runs, and the other ranks wait for this one until their time-out.
  Status pause();
  Status resume();
  Status checkpoint(const std::string& path);
  Status restore(const std::string& path);

 private:
  using SteadyTime = std::chrono::steady_clock::time_point;

  // A train call under way.
  struct Run {
    plugin::Call call;
    plugin::GroupSpec spec;
    std::optional<int64_t> from_step;
    std::optional<plugin::Group> group;  // Once joined; none if alone.
    bool begun = false;
    uint64_t saved_step = 0;  // Of the newest checkpoint that this run knows.
    SteadyTime start{};
    double loss = 0;
    std::optional<double> validation_loss;
    uint64_t dropped_items = 0;
  };
  // What a step learnt from all ranks.
  struct StepSums {
    float loss = 0;
    bool stop = false;
  };

  Trainer(plugin::Context context, TrainerConfig config, RunState state);

  void begin_call(plugin::Call call, std::span<const BytesView> arguments);
  Status begin();
  Status go_to(int64_t from_step);
  Result<bool> train_once();  // false: the run is at its end.
  Result<StepSums> accumulate();
  Status all_reduce(std::span<float> values);
  Status check_ranks_agree();
  Result<double> evaluate();
  Status save();
  void report(float grad_norm, float learning_rate, double step_seconds);
  void finish(bool stopped);
  void fail(const Error& why);
  bool stop_wanted() const;

  plugin::Context context_;
  TrainerConfig config_;
  RunState state_;
  // Behind pointers: the sampler refers to its file.
  std::unique_ptr<TokenFile> train_data_;
  std::unique_ptr<TokenFile> validation_data_;
  std::optional<BatchSampler> sampler_;
  SequenceBuffer rows_;
  std::optional<Run> run_;
  std::string summary_;  // Of the last run; empty if it failed or a new one began.
  bool paused_ = false;
  bool stop_asked_ = false;
};

}  // namespace troupe::training
