// troupe-train: trains a small GPT-2 on text files, on the workers of a cluster.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <cmath>
#include <filesystem>

#include "llm/checkpoint.h"
#include "training/driver/dataset.h"
#include "training/driver/display.h"
#include "training/driver/run_summary.h"
#include "training/driver/train_job.h"
#include "troupe/session.h"

namespace troupe::training {
namespace {

namespace fs = std::filesystem;

constexpr int exit_interrupted = 130;
std::atomic<bool> interrupted{false};

void on_signal(int) {
  if (interrupted.exchange(true)) ::_exit(exit_interrupted);  // The second one does not wait.
}

struct CommandLine {
  std::vector<std::string> texts;
  std::string out;
  std::string state_folder;
  TrainerConfig config{.world = 2,
                       .batch = 16,
                       .sequence_length = 128,
                       .steps = 2200,
                       .lr_peak = 2e-3,
                       .eval_interval = 100,
                       .checkpoint_interval = 200};
  int32_t vocab_size = 2048;
  double validation_share = 0.05;
  int restarts = 3;
  bool resume = false, overwrite = false, json = false, quiet = false;
};

void define_options(CLI::App& app, CommandLine& c) {
  c.config.model.n_layer = 4;
  c.config.model.n_head = 4;
  c.config.model.n_embd = 192;
  c.config.lr_floor = -1;
  app.add_option("--text", c.texts, "Text files to learn from")->required();
  app.add_option("--out", c.out, "Where the model goes (a Hugging Face directory)")->required();
  app.add_option("--workers", c.config.world, "Trainers, one rank each")->capture_default_str();
  app.add_option("--steps", c.config.steps, "Training steps")->capture_default_str();
  app.add_option("--batch", c.config.batch, "Sequences a step, over all workers")
      ->capture_default_str();
  app.add_option("--micro-batch", c.config.micro_batch, "Sequences a pass; 0: all of a worker's")
      ->capture_default_str();
  app.add_option("--seq", c.config.sequence_length, "Tokens a sequence")->capture_default_str();
  app.add_option("--layers", c.config.model.n_layer)->capture_default_str();
  app.add_option("--heads", c.config.model.n_head)->capture_default_str();
  app.add_option("--embd", c.config.model.n_embd, "Width of the model")->capture_default_str();
  app.add_option("--vocab", c.vocab_size, "Tokens of the vocabulary")->capture_default_str();
  app.add_option("--lr", c.config.lr_peak, "Highest learning rate")->capture_default_str();
  app.add_option("--lr-floor", c.config.lr_floor, "Last learning rate (a tenth of the highest)");
  app.add_option("--warmup", c.config.warmup_steps, "Steps of warm-up (a twentieth of all)");
  app.add_option("--weight-decay", c.config.weight_decay)->capture_default_str();
  app.add_option("--clip", c.config.gradient_norm_max, "Highest norm of the gradient; 0: any")
      ->capture_default_str();
  app.add_option("--seed", c.config.seed)->capture_default_str();
  app.add_option("--threads", c.config.threads, "Threads, and CPUs, a worker")
      ->capture_default_str();
  app.add_option("--precision", c.config.precision, "auto, f32 or bf16")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, PrecisionChoice>{{"auto", PrecisionChoice::automatic},
                                                 {"f32", PrecisionChoice::f32},
                                                 {"bf16", PrecisionChoice::bf16}}));
  app.add_option("--eval-every", c.config.eval_interval, "Steps between evaluations")
      ->capture_default_str();
  app.add_option("--checkpoint-every", c.config.checkpoint_interval)->capture_default_str();
  app.add_option("--validation", c.validation_share, "Share of the text that is held out")
      ->check(CLI::Range(0.001, 0.5))
      ->capture_default_str();
  app.add_option("--restarts", c.restarts, "How often to go on when a worker's process dies")
      ->capture_default_str();
  app.add_option("--state", c.state_folder, "The cluster's state folder");
  app.add_flag("--resume", c.resume, "Go on from the checkpoint in --out");
  app.add_flag("--overwrite", c.overwrite, "Replace a model in --out");
  app.add_flag("--json", c.json, "Print the summary as one line of JSON and nothing else");
  app.add_flag("--quiet", c.quiet, "No progress");
}

// Looks at the directory before minutes are spent: a checkpoint takes only a folder of plain files.
Status prepare_directory(const CommandLine& c) {
  std::error_code failed;
  fs::create_directories(c.out, failed);
  if (failed) {
    return error(Code::denied, fmt::format("cannot make {}: {}", c.out, failed.message()));
  }
  for (const auto& entry : fs::directory_iterator(c.out, failed)) {
    if (!entry.is_regular_file()) {
      return error(Code::conflict,
                   fmt::format("{} is not a file of a model: give --out a folder of its own",
                               entry.path().string()));
    }
  }
  const bool has_model = fs::exists(fs::path(c.out) / "config.json");
  if (has_model && !c.resume && !c.overwrite) {
    return error(Code::conflict, fmt::format("{} holds a model already: give --resume to go on "
                                             "training it, --overwrite to replace it, or another "
                                             "--out",
                                             c.out));
  }
  if (!has_model || c.resume) return ok();
  // Or a restart of this run could go on from the old one.
  for (const char* name : {"config.json", "model.safetensors", "optimizer.safetensors"}) {
    fs::remove(fs::path(c.out) / name, failed);
  }
  return ok();
}

// The step of the checkpoint; 0 if there is none.
Result<uint64_t> checkpoint_step(const fs::path& directory) {
  auto state = llm::load_training_state(directory);
  if (state) return state->optimizer.step;
  if (state.error().code() == Code::not_found) return uint64_t{0};
  return std::move(state).error();
}

Status make_data(CommandLine& c, ProgressLine& line) {
  DatasetOptions options{.texts = c.texts,
                         .directory = c.out,
                         .vocab_size = c.vocab_size,
                         .validation_share = c.validation_share,
                         .reuse_tokenizer = c.resume,
                         .progress = [&](std::string_view doing, double share) {
                           line.show(fmt::format("{:<9} {:3.0f} %", doing, share * 100), share);
                         }};
  TROUPE_TRY(const Dataset data, make_dataset(options));
  line.say(fmt::format("text      {:.1f} MB, {} training and {} validation tokens, vocabulary {}",
                       static_cast<double>(data.text_bytes) / 1e6, data.train_tokens,
                       data.validation_tokens, data.vocab_size));
  // Actors run elsewhere in the file system.
  c.config.train_data = fs::absolute(data.train);
  c.config.validation_data = fs::absolute(data.validation);
  c.config.tokenizer = fs::absolute(data.tokenizer);
  c.config.checkpoint = fs::absolute(c.out);
  c.config.model.vocab_size = data.vocab_size;
  c.config.model.n_positions = c.config.sequence_length;
  if (c.config.lr_floor < 0) c.config.lr_floor = c.config.lr_peak / 10;
  if (c.config.warmup_steps == 0) c.config.warmup_steps = c.config.steps / 20;
  return c.config.validate();
}

std::string clock_text(double seconds) {
  const auto whole = std::llround(seconds);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

// Shows and records what rank 0 reports.
class Watcher {
 public:
  Watcher(const CommandLine& command, ProgressLine& line, RunRecord& record, uint64_t first_step)
      : command_(command), line_(line), record_(record), first_step_(first_step) {}

  void on_item(std::string_view item) {
    const auto report = StepReport::from_json(item);
    if (!report) return;
    note(record_.add(*report, item));
    if (report->validation_loss) note(record_.draw(title()));
    const auto steps = command_.config.steps;
    const double done = static_cast<double>(report->step - std::min(first_step_, report->step));
    const double left = static_cast<double>(steps - std::min(report->step, steps));
    const auto validation = record_.last_validation_loss();
    line_.show(
        fmt::format("step {}/{}  loss {:.3f}  val {}  {:.1f}k tokens/s  {} left", report->step,
                    steps, report->loss, validation ? fmt::format("{:.3f}", *validation) : "-",
                    report->tokens_per_s / 1000,
                    clock_text(report->elapsed_s / std::max(done, 1.0) * left)),
        static_cast<double>(report->step) / static_cast<double>(steps));
  }
  void on_restart() {
    const auto step = checkpoint_step(command_.out);
    first_step_ = step ? *step : 0;
    note(record_.rewind(first_step_));
  }
  void draw() { note(record_.draw(title())); }

 private:
  std::string title() const {
    const auto& model = command_.config.model;
    return fmt::format("{} layers of {}, vocabulary {}, {} workers", model.n_layer, model.n_embd,
                       model.vocab_size, command_.config.world);
  }
  // A record that cannot be written is no reason to stop training; said once.
  void note(const Status& outcome) {
    if (!outcome && !std::exchange(complained_, true)) line_.say(outcome.error().message());
  }

  const CommandLine& command_;
  ProgressLine& line_;
  RunRecord& record_;
  uint64_t first_step_;
  bool complained_ = false;
};

// Errors: internal (no summary), cancelled (others stopped the run).
Status print_summary(const CommandLine& c, const std::string& text, ProgressLine& line) {
  TROUPE_TRY(const RunSummary summary, RunSummary::from_json(text));
  if (c.json) {
    auto fields = boost::json::parse(text).as_object();
    fields["out"] = c.out;
    fmt::print("{}\n", boost::json::serialize(fields));
  } else {
    line.say(fmt::format(
        "{} at step {} after {}: loss {:.3f}, validation loss {:.3f}, {:.1f} M "
        "parameters\nmodel     {}\nchart     {}/loss.svg",
        summary.stopped ? "stopped" : "done", summary.step, clock_text(summary.elapsed_s),
        summary.loss, summary.validation_loss.value_or(0), summary.parameters / 1e6, c.out, c.out));
  }
  return outcome_of(summary, c.config.steps, interrupted);
}

Status run(CommandLine& c, ProgressLine& line) {
  TROUPE_CHECK(prepare_directory(c));
  // Before minutes go into data: is there a cluster at all?
  TROUPE_TRY(const Session session,
             connect({.state_folder = c.state_folder, .job_name = "troupe-train"}));
  const auto failed = [&](const Error& why) -> Status {
    session.fail_job(why.message());
    return why;
  };
  if (const Status made = make_data(c, line); !made) return failed(made.error());
  uint64_t first_step = 0;
  if (c.resume) {
    const auto step = checkpoint_step(c.out);
    if (!step) return failed(step.error());
    first_step = *step;
  }
  auto record = RunRecord::open(c.out, first_step);
  if (!record) return failed(record.error());

  Watcher watcher{c, line, *record, first_step};
  const TrainJobEvents events{
      .on_item = [&](std::string_view item) { watcher.on_item(item); },
      .on_notice = [&](std::string_view text) { line.say(text); },
      .on_restart = [&] { watcher.on_restart(); },
  };
  const auto summary =
      run_train_job(session, {.config = c.config, .restarts = c.restarts, .resume = c.resume},
                    events, interrupted);
  watcher.draw();
  if (!summary) return failed(summary.error());
  if (const Status ended = print_summary(c, *summary, line); !ended) return failed(ended.error());
  return ok();
}

int main_of(int argc, char** argv) {
  CommandLine command;
  CLI::App app{"Trains a small GPT-2 on text files, on the workers of a Troupe cluster."};
  define_options(app, command);
  CLI11_PARSE(app, argc, argv);
  struct sigaction action {};
  action.sa_handler = on_signal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ProgressLine line{command.json || command.quiet};
  const Status outcome = run(command, line);
  if (!outcome) {
    line.end();
    fmt::print(stderr, "troupe-train: {}\n", outcome.error().to_string());
  }
  if (interrupted) return exit_interrupted;
  return outcome ? 0 : 1;
}

}  // namespace
}  // namespace troupe::training

int main(int argc, char** argv) {
  return troupe::training::main_of(argc, argv);
}
