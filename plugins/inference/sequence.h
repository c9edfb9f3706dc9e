// One request on its way through the engine.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "inference/answer.h"
#include "inference/generate_request.h"
#include "inference/iteration_plan.h"
#include "inference/text_stream.h"
#include "llm/inference_model.h"
#include "llm/sampling.h"

namespace troupe::inference {

struct Sequence {
  GenerateRequest request;
  std::vector<int32_t> tokens;  // The prompt and what was sampled.
  llm::KvSequence kv;           // Empty while it waits.
  bool running = false;
  llm::Sampler sampler;  // Outlives a preemption, so that a seed's numbers go on.
  TextStream text;
  Answer answer;

  int64_t generated() const { return std::ssize(tokens) - std::ssize(request.prompt); }
  SequenceView view() const {
    return {.running = running,
            .stalled = answer.stalled(),
            .tokens = std::ssize(tokens),
            .cached = kv.length,
            .blocks = std::ssize(kv.blocks)};
  }
};

}  // namespace troupe::inference
