#include "training/trainer_config.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <limits>

namespace troupe::training {
namespace {

namespace json = boost::json;

constexpr std::string_view precision_names[] = {"auto", "f32", "bf16"};

Error wrong(std::string_view field, std::string_view expected) {
  return error(Code::invalid, fmt::format("trainer config: \"{}\" must be {}", field, expected));
}

Status read_value(std::string_view name, const json::value& from, std::string& out) {
  if (!from.is_string()) return wrong(name, "a string");
  out = from.get_string();
  return ok();
}

Status read_value(std::string_view name, const json::value& from, double& out) {
  if (!from.is_number()) return wrong(name, "a number");
  out = from.to_number<double>();
  return ok();
}

Status read_value(std::string_view name, const json::value& from, PrecisionChoice& out) {
  for (size_t i = 0; i < std::size(precision_names); ++i) {
    if (from.is_string() && from.get_string() == precision_names[i]) {
      out = static_cast<PrecisionChoice>(i);
      return ok();
    }
  }
  return wrong(name, "auto, f32 or bf16");
}

template <std::integral Integer>
Status read_value(std::string_view name, const json::value& from, Integer& out) {
  json::error_code failed;
  const auto number = from.to_number<Integer>(failed);
  if (failed) {
    return wrong(name,
                 fmt::format("a whole number of at most {}", std::numeric_limits<Integer>::max()));
  }
  out = number;
  return ok();
}

// Names every field once, for both directions.
template <class Config, class Visit>
void visit_fields(Config& c, const Visit& visit) {
  visit("rank", c.rank);
  visit("world", c.world);
  visit("train_data", c.train_data);
  visit("validation_data", c.validation_data);
  visit("tokenizer", c.tokenizer);
  visit("vocab_size", c.model.vocab_size);
  visit("n_positions", c.model.n_positions);
  visit("n_embd", c.model.n_embd);
  visit("n_layer", c.model.n_layer);
  visit("n_head", c.model.n_head);
  visit("batch", c.batch);
  visit("micro_batch", c.micro_batch);
  visit("sequence_length", c.sequence_length);
  visit("steps", c.steps);
  visit("lr_peak", c.lr_peak);
  visit("lr_floor", c.lr_floor);
  visit("warmup_steps", c.warmup_steps);
  visit("weight_decay", c.weight_decay);
  visit("gradient_norm_max", c.gradient_norm_max);
  visit("seed", c.seed);
  visit("precision", c.precision);
  visit("threads", c.threads);
  visit("eval_interval", c.eval_interval);
  visit("eval_sequences", c.eval_sequences);
  visit("checkpoint", c.checkpoint);
  visit("checkpoint_interval", c.checkpoint_interval);
}

struct Writer {
  json::object& out;
  void operator()(std::string_view name, const PrecisionChoice& value) const {
    out[name] = precision_names[static_cast<size_t>(value)];
  }
  template <class T>
  void operator()(std::string_view name, const T& value) const {
    out[name] = value;
  }
};

Status expect(bool holds, std::string message) {
  if (holds) return ok();
  return error(Code::invalid, "trainer config: " + std::move(message));
}

Status validate_batch(const TrainerConfig& c) {
  TROUPE_CHECK(expect(c.world > 0 && c.rank < c.world,
                      fmt::format("rank {} of a world of {}", c.rank, c.world)));
  TROUPE_CHECK(expect(c.batch > 0 && c.batch <= 1 << 20, "\"batch\" must be 1 to 1048576"));
  TROUPE_CHECK(expect(c.batch % c.world == 0,
                      fmt::format("a batch of {} sequences cannot be shared evenly by {} workers; "
                                  "take a multiple of {}",
                                  c.batch, c.world, c.world)));
  return expect(c.micro_batch >= 0 && c.rank_batch() % c.pass_batch() == 0,
                fmt::format("\"micro_batch\" {} does not divide a rank's {} sequences",
                            c.micro_batch, c.rank_batch()));
}

}  // namespace

Status TrainerConfig::validate() const {
  TROUPE_CHECK(validate_batch(*this));
  TROUPE_CHECK(model.validate());
  TROUPE_CHECK(
      expect(sequence_length > 0 && sequence_length <= model.n_positions,
             fmt::format("\"sequence_length\" {} is not within 1 to the model's n_positions {}",
                         sequence_length, model.n_positions)));
  TROUPE_CHECK(expect(!train_data.empty(), "\"train_data\" is missing"));
  TROUPE_CHECK(expect(steps > 0, "\"steps\" must be at least 1"));
  // Written so that NaN fails, too.
  TROUPE_CHECK(expect(lr_peak > 0 && lr_floor >= 0 && lr_floor <= lr_peak && lr_peak <= 1e3,
                      "the learning rate must be over 0 and its floor not above it"));
  TROUPE_CHECK(expect(weight_decay >= 0 && weight_decay <= 1e3 && gradient_norm_max >= 0,
                      "\"weight_decay\" and \"gradient_norm_max\" must not be negative"));
  TROUPE_CHECK(expect(threads > 0 && threads <= 1024, "\"threads\" must be 1 to 1024"));
  return expect(eval_sequences > 0, "\"eval_sequences\" must be at least 1");
}

Result<TrainerConfig> TrainerConfig::from_json(std::string_view text) {
  json::error_code failed;
  const json::value parsed = json::parse({text.data(), text.size()}, failed);
  if (failed || !parsed.is_object()) {
    return error(Code::invalid, "trainer config: not a JSON object");
  }
  const json::object& fields = parsed.get_object();
  TrainerConfig config;
  Status outcome = ok();
  size_t known = 0;
  visit_fields(config, [&](std::string_view name, auto& value) {
    const auto* found = fields.if_contains(name);
    if (found == nullptr) return;
    ++known;
    if (outcome) outcome = read_value(name, *found, value);
  });
  if (!outcome) return std::move(outcome).error();
  if (known != fields.size()) {
    std::string names;
    visit_fields(config, [&](std::string_view name, auto&) { names += fmt::format(" {}", name); });
    for (const auto& [key, value] : fields) {
      if ((names + " ").find(fmt::format(" {} ", std::string_view(key))) == std::string::npos) {
        return error(Code::invalid, fmt::format("trainer config: there is no field \"{}\"; the "
                                                "fields are{}",
                                                std::string_view(key), names));
      }
    }
  }
  if (config.model.n_positions == 0) config.model.n_positions = config.sequence_length;
  TROUPE_CHECK(config.validate());
  return config;
}

std::string TrainerConfig::to_json() const {
  json::object out;
  visit_fields(*this, Writer{out});
  return json::serialize(out);
}

}  // namespace troupe::training
