// What an engine is created with.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "llm/gpt2.h"

namespace troupe::inference {

struct EngineConfig {
  std::string model;  // A Hugging Face directory with a tokenizer.json.
  std::string name;   // Default: the directory's.
  int threads = 1;
  llm::Precision precision = llm::Precision::f32;  // "auto": bf16 where the processor has it.
  std::optional<uint32_t> kv_blocks;               // Default: what kv_bytes_default holds.
  int64_t sequences_max = 32;                      // "max_sequences": running at a time.
  int64_t waiting_max = 256;                       // "max_waiting": more are refused.
  int64_t batch_tokens_max = 512;                  // "max_batch_tokens": in one forward pass.
};

inline constexpr uint64_t kv_bytes_default = uint64_t{256} << 20;

// Errors: invalid (no JSON, a member that is unknown or wrong).
Result<EngineConfig> parse_engine_config(std::string_view text);

}  // namespace troupe::inference
