#include "inference/engine_actor.h"

#include <fmt/format.h>

#include "inference/fields.h"

namespace troupe::inference {
namespace json = boost::json;

namespace {

double seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

void finish(plugin::Call call, const Result<std::string>& outcome) {
  if (outcome) {
    call.reply(std::string_view(*outcome));
  } else {
    call.fail(outcome.error());
  }
}

}  // namespace

Result<std::unique_ptr<EngineActor>> EngineActor::create(plugin::Context context,
                                                         std::span<const BytesView> arguments) {
  if (arguments.size() != 1) {
    return error(Code::invalid,
                 fmt::format("an engine takes one argument, its configuration as JSON, not {}",
                             arguments.size()));
  }
  TROUPE_TRY(EngineConfig config, parse_engine_config(as_text(arguments[0])));
  TROUPE_TRY(LoadedModel loaded, load_model(config));
  std::unique_ptr<EngineActor> actor(
      new EngineActor(context, std::move(config), std::move(loaded)));
  actor->publish();
  return actor;
}

EngineActor::EngineActor(plugin::Context context, EngineConfig config, LoadedModel loaded)
    : context_(context),
      config_(std::move(config)),
      engine_(std::move(loaded), config_, std::make_unique<SystemRandom>()) {}

void EngineActor::call(plugin::Call call, std::string_view method,
                       std::span<const BytesView> arguments) {
  if (method == "info") return call.reply(std::string_view(info()));
  if (method != "generate" && method != "tokenize" && method != "detokenize") {
    return call.fail(error(Code::not_found, fmt::format("an engine has no method '{}'", method)));
  }
  if (arguments.size() != 1) {
    return call.fail(error(
        Code::invalid, fmt::format("'{}' takes one argument, not {}", method, arguments.size())));
  }
  const std::string_view argument = as_text(arguments[0]);
  if (method == "generate") return generate(std::move(call), argument);
  finish(std::move(call), method == "tokenize" ? tokenize(argument) : detokenize(argument));
}

void EngineActor::generate(plugin::Call call, std::string_view argument) {
  auto request = parse_generate_request(argument, engine_.loaded().tokenizer);
  if (!request) return call.fail(request.error());
  engine_.submit(std::move(*request), std::move(call));
}

Result<bool> EngineActor::step(std::chrono::microseconds) {
  Result<bool> more = engine_.iterate();
  publish();
  return more;
}

Status EngineActor::pause() {
  engine_.pause();
  publish();
  return ok();
}

Status EngineActor::resume() {
  engine_.resume();
  return ok();
}

std::string EngineActor::info() {
  const EngineCounters& counters = engine_.counters();
  return json::serialize(json::object{{"model", config_.model},
                                      {"name", config_.name},
                                      {"max_context", engine_.max_context()},
                                      {"vocab_size", engine_.loaded().tokenizer.vocab_size()},
                                      {"running", engine_.running()},
                                      {"waiting", engine_.waiting()},
                                      {"kv_blocks_total", engine_.kv_blocks_total()},
                                      {"kv_blocks_free", engine_.kv_blocks_free()},
                                      {"requests_total", counters.requests},
                                      {"tokens_generated_total", counters.tokens_generated},
                                      {"prompt_tokens_total", counters.prompt_tokens},
                                      {"preemptions_total", counters.preemptions},
                                      {"busy_seconds_total", seconds(counters.busy)}});
}

Result<std::string> EngineActor::tokenize(std::string_view argument) const {
  TROUPE_TRY(Fields fields, Fields::parse(argument, "the request"));
  const auto text = fields.text("text");
  TROUPE_CHECK(fields.status());
  if (!text) return error(Code::invalid, "Missing required parameter: 'text'.");
  const auto tokens = engine_.loaded().tokenizer.encode(*text);
  return json::serialize(json::object{{"tokens", json::array(tokens.begin(), tokens.end())}});
}

Result<std::string> EngineActor::detokenize(std::string_view argument) const {
  TROUPE_TRY(Fields fields, Fields::parse(argument, "the request"));
  TROUPE_TRY(const std::vector<int32_t> tokens,
             read_token_ids(fields, "tokens", engine_.loaded().tokenizer.vocab_size()));
  return json::serialize(json::object{{"text", engine_.loaded().tokenizer.decode(tokens)}});
}

void EngineActor::publish() {
  const EngineCounters& counters = engine_.counters();
  const auto set = [&](const char* name, auto value) {
    context_.metric(name, static_cast<double>(value));
  };
  set("running", engine_.running());
  set("waiting", engine_.waiting());
  set("kv_blocks_total", engine_.kv_blocks_total());
  set("kv_blocks_free", engine_.kv_blocks_free());
  set("requests_total", counters.requests);
  set("tokens_generated_total", counters.tokens_generated);
  set("prompt_tokens_total", counters.prompt_tokens);
  set("preemptions_total", counters.preemptions);
  set("busy_seconds_total", seconds(counters.busy));
}

}  // namespace troupe::inference
