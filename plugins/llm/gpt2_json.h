// Gpt2Config as Hugging Face's JSON. Private to plugins/llm.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"
#include "llm/gpt2_config.h"

namespace troupe::llm {

// Errors: invalid (see load_gpt2_config).
Result<Gpt2Config> gpt2_config_from_json(std::string_view text);
std::string gpt2_config_to_json(const Gpt2Config& config, std::optional<int32_t> eos_token_id);
std::string generation_config_to_json(std::optional<int32_t> eos_token_id);

}  // namespace troupe::llm
