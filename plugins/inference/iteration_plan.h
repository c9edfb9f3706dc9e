// Decides what runs in one iteration of the engine. A pure function: no clock, no I/O, no state.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace troupe::inference {

struct IterationLimits {
  int64_t sequences_max = 32;      // Running at a time; at most batch_tokens_max.
  int64_t batch_tokens_max = 512;  // In one forward pass.
};

// What the plan needs to know of a sequence.
struct SequenceView {
  bool running = false;  // Holds KV blocks; otherwise it waits (or was preempted) and holds none.
  bool stalled = false;  // Its client does not keep up: more tokens would find no room.
  int64_t tokens = 0;    // Known so far: the prompt and what was sampled. At least one more than
  int64_t cached = 0;    // those whose keys and values are in the cache.
  int64_t blocks = 0;    // KV blocks that it holds.
};

// To be carried out in this order. Numbers are places in the span of views.
struct IterationPlan {
  struct Chunk {
    size_t sequence = 0;
    int64_t tokens = 0;  // The next ones after `cached`.
  };
  std::vector<size_t> preempted;  // Lose all blocks and wait; later they are computed again.
  std::vector<size_t> admitted;   // Run from now on: reserve blocks for all their tokens.
  std::vector<Chunk> chunks;      // One forward pass.
};

// The KV blocks that `tokens` need.
int64_t blocks_of(int64_t tokens);

// `by_arrival`: all sequences, the oldest first. Any of them must fit into all blocks alone.
//  - Every running sequence that is not stalled decodes; prompts fill up what is left of the batch,
//    in chunks. Older ones come first in either.
//  - When blocks run out, stalled sequences are preempted, then the newest: the oldest one that is
//    not stalled always gets on, so every sequence ends.
//  - Admission is in order of arrival and past nobody but the stalled. It leaves one free block for
//    each running sequence, so that it does not at once lead to a preemption.
IterationPlan plan_iteration(const IterationLimits& limits,
                             std::span<const SequenceView> by_arrival, int64_t free_blocks);

}  // namespace troupe::inference
