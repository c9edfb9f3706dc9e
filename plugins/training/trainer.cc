#include "training/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <utility>
#include <vector>

namespace troupe::training {
namespace {

namespace json = boost::json;
using std::chrono::steady_clock;

// A piece of the gradient that is reduced at once: 4 MiB.
constexpr size_t reduce_floats_max = 1 << 20;

double seconds_since(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

Result<std::unique_ptr<TokenFile>> open_tokens(const std::string& path, int64_t vocab_size) {
  TROUPE_TRY(TokenFile file, TokenFile::open(path));
  if (file.vocab_size() != vocab_size) {
    return error(Code::invalid,
                 fmt::format("{} was made with a vocabulary of {} tokens, the model has {}: make "
                             "it again with the model's tokenizer",
                             path, file.vocab_size(), vocab_size));
  }
  return std::make_unique<TokenFile>(std::move(file));
}

}  // namespace

Trainer::Trainer(plugin::Context context, TrainerConfig config, RunState state)
    : context_(context), config_(std::move(config)), state_(std::move(state)) {}

Result<std::unique_ptr<Trainer>> Trainer::create(plugin::Context context,
                                                 std::span<const BytesView> arguments) {
  if (arguments.size() != 1) {
    return error(Code::invalid, "a trainer is created with one argument, its config as JSON");
  }
  TROUPE_TRY(auto config, TrainerConfig::from_json(as_text(arguments[0])));
  const int64_t vocab_size = config.model.vocab_size;
  TROUPE_TRY(auto train_data, open_tokens(config.train_data, vocab_size));
  std::unique_ptr<TokenFile> validation_data;
  if (!config.validation_data.empty()) {
    TROUPE_TRY(validation_data, open_tokens(config.validation_data, vocab_size));
    if (validation_data->size() <= static_cast<uint64_t>(config.sequence_length)) {
      return error(Code::invalid, fmt::format("{} holds {} tokens, too few for a sequence of {}",
                                              config.validation_data, validation_data->size(),
                                              config.sequence_length));
    }
  }
  TROUPE_TRY(auto sampler,
             BatchSampler::make(*train_data,
                                {.batch = config.batch, .sequence_length = config.sequence_length},
                                config.seed));
  TROUPE_TRY(auto state, RunState::create(config));
  std::unique_ptr<Trainer> made{new Trainer{context, std::move(config), std::move(state)}};
  made->train_data_ = std::move(train_data);
  made->validation_data_ = std::move(validation_data);
  made->sampler_ = std::move(sampler);
  return made;
}

void Trainer::call(plugin::Call call, std::string_view method,
                   std::span<const BytesView> arguments) {
  if (method == "train") {
    begin_call(std::move(call), arguments);
  } else if (method == "stop") {
    stop_asked_ = run_.has_value();
    call.reply("{}");
  } else if (method == "status") {
    json::object status{
        {"step", state_.step()}, {"steps", config_.steps}, {"training", run_.has_value()}};
    if (!summary_.empty()) status["summary"] = json::parse(summary_);
    call.reply(json::serialize(status));
  } else {
    call.fail(error(Code::not_found,
                    fmt::format("a trainer has train, stop and status, but no {}", method)));
  }
}

void Trainer::begin_call(plugin::Call call, std::span<const BytesView> arguments) {
  if (run_) return call.fail(error(Code::conflict, "this trainer is training already"));
  Run run{std::move(call), {}, {}, {}, false, 0, {}, 0, {}, 0};
  json::error_code failed;
  const std::string_view text = arguments.empty() ? "{}" : as_text(arguments[0]);
  const json::value parsed = json::parse({text.data(), text.size()}, failed);
  const auto* fields = failed ? nullptr : parsed.if_object();
  bool good = fields != nullptr;
  if (good) {
    const auto read_number = [&](const char* name, auto& out) {
      const auto* value = fields->if_contains(name);
      if (value == nullptr) return;
      json::error_code wrong;
      out = value->to_number<int64_t>(wrong);
      good = good && !wrong;
    };
    int64_t generation = 1;
    read_number("generation", generation);
    read_number("from_step", run.from_step);
    good = good && generation > 0;
    run.spec.generation = static_cast<uint64_t>(generation);
    if (const auto* members = fields->if_contains("members")) {
      good = good && members->is_array();
      for (const auto& id : good ? members->get_array() : json::array{}) {
        good = good && id.is_string();
        if (good) run.spec.members.emplace_back(id.get_string());
      }
    }
  }
  if (!good) {
    return run.call.fail(
        error(Code::invalid, R"(train takes {"members": [ids], "generation": n, "from_step": n})"));
  }
  if (run.spec.members.size() != config_.world && (config_.world > 1 || run.spec.members.size())) {
    return run.call.fail(error(Code::invalid, fmt::format("{} members for a world of {}",
                                                          run.spec.members.size(), config_.world)));
  }
  summary_.clear();
  run.spec.rank = config_.rank;
  if (config_.world > 1) run.spec.name = "train-" + run.spec.members[0];
  stop_asked_ = false;
  run_.emplace(std::move(run));
}

Result<bool> Trainer::step(std::chrono::microseconds) {
  if (!run_ || paused_) return false;
  if (!run_->begun) {
    if (const Status begun = begin(); !begun) {
      fail(begun.error());
      return false;
    }
  }
  auto more = train_once();
  if (!more) {
    const Error why = std::move(more).error();
    // The update comes last, so what a broken group leaves behind is the edge of the last step.
    if (run_->begun && (why.code() == Code::unavailable || why.code() == Code::cancelled ||
                        why.code() == Code::deadline_exceeded)) {
      if (const Status saved = save(); !saved) {
        context_.log(TROUPE_LOG_WARNING, "checkpoint_failed", "why=" + saved.error().message());
      }
    }
    if (why.code() == Code::cancelled) {
      finish(true);
    } else {
      fail(why);
    }
    return false;
  }
  return *more;
}

bool Trainer::stop_wanted() const {
  return stop_asked_ || run_->call.cancelled() || context_.stopping();
}

Status Trainer::begin() {
  Run& run = *run_;
  if (run.from_step) TROUPE_CHECK(go_to(*run.from_step));
  run.saved_step = state_.step();
  if (config_.world > 1) {
    TROUPE_TRY(auto group, context_.join(run.spec));
    run.group.emplace(std::move(group));
    TROUPE_CHECK(check_ranks_agree());
  }
  run.begun = true;
  run.start = steady_clock::now();
  context_.log(TROUPE_LOG_INFO, "training_started",
               fmt::format("rank={} world={} step={}", config_.rank, config_.world, state_.step()));
  return ok();
}

Status Trainer::go_to(int64_t from_step) {
  if (from_step != 0) {
    Status loaded = config_.checkpoint.empty()
                        ? error(Code::not_found, "the config names no checkpoint")
                        : state_.load(config_.checkpoint);
    if (loaded) {
      if (from_step < 0 || static_cast<uint64_t>(from_step) == state_.step()) return ok();
      return error(Code::conflict, fmt::format("{} is at step {}, not {}", config_.checkpoint,
                                               state_.step(), from_step));
    }
    if (from_step > 0 || loaded.error().code() != Code::not_found) return loaded;
  }
  state_.start_over();
  return ok();
}

Result<bool> Trainer::train_once() {
  if (state_.step() >= config_.steps) {
    finish(false);
    return false;
  }
  const auto start = steady_clock::now();
  TROUPE_TRY(const StepSums sums, accumulate());
  const uint64_t number = state_.step() + 1;
  const auto diverged = [&](std::string_view what, double value) {
    return error(Code::invalid,
                 fmt::format("training diverged at step {}: the {} is {}; take a lower learning "
                             "rate or a longer warm-up (the last checkpoint is of step {})",
                             number, what, value, run_->saved_step));
  };
  if (!std::isfinite(sums.loss)) return diverged("loss", sums.loss);
  const float rate = config_.schedule().learning_rate(state_.step());
  auto norm = state_.update(rate);
  if (!norm) return diverged("gradient's norm", NAN);
  const double step_seconds = seconds_since(start);

  run_->loss = sums.loss;
  run_->validation_loss.reset();
  const bool last = number == config_.steps || sums.stop;
  const auto due = [&](uint64_t interval) { return interval > 0 && number % interval == 0; };
  if (last || due(config_.eval_interval)) {
    TROUPE_CHECK(check_ranks_agree());
    if (validation_data_) {
      TROUPE_TRY(run_->validation_loss, evaluate());
    }
  }
  report(*norm, rate, step_seconds);
  if (last || due(config_.checkpoint_interval)) TROUPE_CHECK(save());
  if (last) finish(sums.stop && number < config_.steps);
  return !last;
}

// The gradient's mean over all rows of the step, and their mean loss, on every rank.
Result<Trainer::StepSums> Trainer::accumulate() {
  auto& model = state_.model();
  model.zero_gradients();
  const int64_t pass = config_.pass_batch();
  const int64_t begin = config_.rank * config_.rank_batch();
  const auto share = static_cast<float>(pass) / static_cast<float>(config_.batch);
  float loss = 0;
  for (int64_t row = begin; row < begin + config_.rank_batch(); row += pass) {
    TROUPE_CHECK(sampler_->fill(state_.step(), row, row + pass, rows_));
    TROUPE_TRY(const float mean, model.forward_backward(rows_.batch(), share));
    loss += mean * share;
  }
  // A wish to stop travels with the loss, so that all ranks stop after the same step.
  float sums[2] = {loss, stop_wanted() ? 1.0f : 0.0f};
  TROUPE_CHECK(all_reduce(sums));
  TROUPE_CHECK(all_reduce(model.gradients()));
  return StepSums{sums[0], sums[1] > 0};
}

Status Trainer::all_reduce(std::span<float> values) {
  if (!run_->group) return ok();
  for (size_t at = 0; at < values.size(); at += reduce_floats_max) {
    const size_t count = std::min(reduce_floats_max, values.size() - at);
    TROUPE_CHECK(run_->group->all_reduce(values.subspan(at, count)));
  }
  return ok();
}

Status Trainer::check_ranks_agree() {
  if (!run_->group) return ok();
  const uint64_t ours = state_.hash();
  uint64_t first = ours;
  TROUPE_CHECK(run_->group->broadcast(0, &first, sizeof first));
  if (first == ours) return ok();
  return error(Code::data_loss,
               fmt::format("rank {}, at step {}, has other parameters than rank 0; start again "
                           "from the checkpoint",
                           config_.rank, state_.step()));
}

// The mean loss over evenly spread validation sequences, which the ranks share.
Result<double> Trainer::evaluate() {
  const auto length = static_cast<uint64_t>(config_.sequence_length);
  const uint64_t present = (validation_data_->size() - 1) / length;
  const uint64_t rows = std::min(present, static_cast<uint64_t>(config_.eval_sequences));
  const auto pass = static_cast<uint64_t>(config_.pass_batch());
  float sum = 0;
  for (uint64_t row = config_.rank; row < rows;) {
    rows_.clear();
    uint64_t filled = 0;
    for (; filled < pass && row < rows; ++filled, row += config_.world) {
      TROUPE_CHECK(
          rows_.append(*validation_data_, row * present / rows * length, config_.sequence_length));
    }
    TROUPE_TRY(const float mean, state_.model().loss(rows_.batch()));
    sum += mean * static_cast<float>(filled);
  }
  TROUPE_CHECK(all_reduce({&sum, 1}));
  return sum / static_cast<double>(rows);
}

Status Trainer::save() {
  if (config_.rank != 0 || config_.checkpoint.empty()) return ok();
  if (run_->saved_step == state_.step() && state_.step() > 0) return ok();
  TROUPE_CHECK(state_.save(config_.checkpoint));
  run_->saved_step = state_.step();
  context_.log(TROUPE_LOG_INFO, "checkpoint_saved", fmt::format("step={}", state_.step()));
  return ok();
}

void Trainer::report(float grad_norm, float learning_rate, double step_seconds) {
  const double tokens = static_cast<double>(config_.batch * config_.sequence_length);
  const double rate = tokens / std::max(step_seconds, 1e-9);
  context_.metric("train_step", static_cast<double>(state_.step()));
  context_.metric("train_loss", run_->loss);
  context_.metric("train_tokens_per_second", rate);
  if (config_.rank != 0 || !run_->call.streams()) return;
  const double flops =
      llm::gpt2_training_flops(config_.model, config_.batch, config_.sequence_length);
  json::object item{{"step", state_.step()},
                    {"loss", run_->loss},
                    {"lr", learning_rate},
                    {"grad_norm", grad_norm},
                    {"tokens_per_s", rate},
                    {"model_flops_per_s", flops / std::max(step_seconds, 1e-9)},
                    {"elapsed_s", seconds_since(run_->start)}};
  if (run_->validation_loss) item["val_loss"] = *run_->validation_loss;
  // A caller that does not keep up loses items rather than holding up all ranks. One that is gone
  // shows at the next step's edge.
  if (run_->call.emit(json::serialize(item)) == Code::exhausted) ++run_->dropped_items;
}

void Trainer::finish(bool stopped) {
  json::object summary{{"step", state_.step()},
                       {"stopped", stopped},
                       {"elapsed_s", seconds_since(run_->start)},
                       {"parameters", state_.model().layout().total()},
                       {"dropped_items", run_->dropped_items},
                       {"loss", run_->loss}};
  if (run_->validation_loss) summary["val_loss"] = *run_->validation_loss;
  summary_ = json::serialize(summary);
  const std::string text = fmt::format(R"({{"summary":{}}})", summary_);
  Run ended = std::move(*run_);
  run_.reset();
  ended.group.reset();
  if (!ended.call.streams()) return ended.call.reply(text);
  (void)ended.call.emit(text);  // Who misses it asks for the status.
  ended.call.reply("{}");
}

void Trainer::fail(const Error& why) {
  context_.log(TROUPE_LOG_WARNING, "training_failed", "why=" + why.to_string());
  Run ended = std::move(*run_);
  run_.reset();
  ended.group.reset();
  ended.call.fail(why);
}

Status Trainer::pause() {
  paused_ = true;
  return ok();
}

Status Trainer::resume() {
  paused_ = false;
  return ok();
}

Status Trainer::checkpoint(const std::string& path) {
  return state_.save(path);
}

Status Trainer::restore(const std::string& path) {
  return state_.load(path);
}

}  // namespace troupe::training
