// The actor class "engine": methods, metrics and settings around an Engine.
#pragma once

#include "inference/engine.h"
#include "troupe/plugin_class.h"

namespace troupe::inference {

// Methods, all with one JSON argument but info, which takes none:
//   generate    {"prompt" | "prompt_tokens", ...}: see generate_request.h. Streams items
//               {"text", "tokens", "finish_reason", "prompt_tokens" (first item),
//               "completion_tokens" (so far), "logprobs"}; to a unary caller one for all.
//   info        {"model", "name", "max_context", ...}: sizes, load and counters.
//   tokenize    {"text"} to {"tokens"}.   detokenize  {"tokens"} to {"text"}.
class EngineActor {
 public:
  // Argument 0: JSON, see engine_config.h. Errors: those of load_model.
  static Result<std::unique_ptr<EngineActor>> create(plugin::Context context,
                                                     std::span<const BytesView> arguments);
  void call(plugin::Call call, std::string_view method, std::span<const BytesView> arguments);
  Result<bool> step(std::chrono::microseconds budget);
  Status pause();
  Status resume();

 private:
  EngineActor(plugin::Context context, EngineConfig config, LoadedModel loaded);

  void generate(plugin::Call call, std::string_view argument);
  std::string info();
  Result<std::string> tokenize(std::string_view argument) const;
  Result<std::string> detokenize(std::string_view argument) const;
  void publish();

  plugin::Context context_;
  EngineConfig config_;
  Engine engine_;
};

}  // namespace troupe::inference
