#include "inference/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

namespace troupe::inference {
namespace json = boost::json;

namespace {

using Timer = std::chrono::steady_clock;

// While only slow clients are left there is nothing to compute; looking at them without a rest
// would use up a core.
constexpr std::chrono::milliseconds stalled_rest{1};

// Adds the time of its life to a counter.
class Stopwatch {
 public:
  explicit Stopwatch(std::chrono::nanoseconds& total) : total_(total) {}
  ~Stopwatch() { total_ += Timer::now() - begin_; }

 private:
  std::chrono::nanoseconds& total_;
  Timer::time_point begin_ = Timer::now();
};

json::object to_json(const llm::Tokenizer& tokenizer, const llm::TokenLogprob& entry) {
  return {{"token", tokenizer.decode({&entry.token, 1}, {.skip_special = false})},
          {"logprob", entry.logprob}};
}

json::object to_json(const llm::Tokenizer& tokenizer, const llm::Logprobs& logprobs) {
  json::object out = to_json(tokenizer, logprobs.chosen);
  json::array top;
  for (const llm::TokenLogprob& entry : logprobs.top) top.push_back(to_json(tokenizer, entry));
  out["top"] = std::move(top);
  return out;
}

}  // namespace

// With fewer blocks than one whole context, the context is what all of them hold: so any sequence
// can run alone.
Engine::Engine(LoadedModel loaded, const EngineConfig& config, std::unique_ptr<Random> random)
    : loaded_(std::move(loaded)),
      limits_{.sequences_max = config.sequences_max, .batch_tokens_max = config.batch_tokens_max},
      waiting_max_(config.waiting_max),
      max_context_(
          std::min(loaded_.model.config().n_positions, kv_blocks_total() * llm::kv_block_tokens)),
      random_(std::move(random)) {}

Status Engine::check(const GenerateRequest& request) const {
  const int64_t prompt = std::ssize(request.prompt);
  if (prompt >= max_context_) {
    return error(Code::invalid,
                 fmt::format("This model's maximum context length is {} tokens. However, your "
                             "prompt has {} tokens and leaves no room for an answer.",
                             max_context_, prompt));
  }
  if (waiting() >= waiting_max_) {
    return error(Code::exhausted,
                 fmt::format("{} requests wait already, which is the most; retry after 1 second",
                             waiting()));
  }
  return ok();
}

void Engine::submit(GenerateRequest request, plugin::Call call) {
  if (const Status allowed = check(request); !allowed) return call.fail(allowed.error());
  if (!request.seeded) request.sampling.seed = random_->next();
  auto sampler = llm::Sampler::make(request.sampling, loaded_.tokenizer.vocab_size());
  if (!sampler) return call.fail(sampler.error());
  ++counters_.requests;
  counters_.prompt_tokens += request.prompt.size();
  std::vector<int32_t> tokens = request.prompt;
  TextStream text(loaded_.tokenizer, request.stops);
  Answer answer(std::move(call), tokens.size());
  answer.add_text(request.echo);
  sequences_.push_back(std::make_unique<Sequence>(Sequence{.request = std::move(request),
                                                           .tokens = std::move(tokens),
                                                           .kv = {},
                                                           .sampler = std::move(*sampler),
                                                           .text = std::move(text),
                                                           .answer = std::move(answer)}));
}

Result<bool> Engine::iterate() {
  const Stopwatch stopwatch(counters_.busy);
  drop_cancelled();
  drain();
  if (paused_) return false;
  const IterationPlan now = plan();
  TROUPE_CHECK(apply(now));
  if (now.chunks.empty()) {
    const bool stalled = !sequences_.empty() || !draining_.empty();
    if (stalled) std::this_thread::sleep_for(stalled_rest);
    return stalled;
  }
  TROUPE_CHECK(forward(now));
  return !sequences_.empty() || !draining_.empty();
}

void Engine::drop_cancelled() {
  const Error gone = error(Code::cancelled, "the caller gave up");
  for (std::vector<Slot>* slots : {&sequences_, &draining_}) {
    for (Slot& slot : *slots) {
      if (slot->answer.cancelled()) fail(slot, gone);
    }
    std::erase(*slots, nullptr);
  }
}

void Engine::drain() {
  for (Slot& slot : sequences_) {
    if (slot->answer.stalled()) deliver(slot, false);
  }
  for (Slot& slot : draining_) {
    if (slot->answer.deliver() == Answer::Delivery::closed) slot.reset();
  }
  std::erase(sequences_, nullptr);
  std::erase(draining_, nullptr);
}

IterationPlan Engine::plan() {
  std::vector<SequenceView> views;
  views.reserve(sequences_.size());
  for (const Slot& slot : sequences_) views.push_back(slot->view());
  return plan_iteration(limits_, views, kv_blocks_free());
}

Status Engine::apply(const IterationPlan& plan) {
  for (const size_t i : plan.preempted) preempt(*sequences_[i]);
  for (const size_t i : plan.admitted) {
    Sequence& sequence = *sequences_[i];
    TROUPE_CHECK(loaded_.model.reserve(sequence.kv, std::ssize(sequence.tokens)));
    sequence.running = true;
    ++running_;
  }
  return ok();
}

Status Engine::forward(const IterationPlan& plan) {
  std::vector<llm::SequenceChunk> chunks;
  chunks.reserve(plan.chunks.size());
  for (const IterationPlan::Chunk& chunk : plan.chunks) {
    Sequence& sequence = *sequences_[chunk.sequence];
    chunks.push_back({&sequence.kv, std::span<const int32_t>(sequence.tokens)
                                        .subspan(static_cast<size_t>(sequence.kv.length),
                                                 static_cast<size_t>(chunk.tokens))});
  }
  const auto width = static_cast<size_t>(loaded_.model.config().vocab_size);
  if (logits_.size() < chunks.size() * width) logits_.resize(chunks.size() * width);
  const std::span<float> logits{logits_.data(), chunks.size() * width};
  {
    const Stopwatch stopwatch(counters_.forward);
    TROUPE_CHECK(loaded_.model.forward(chunks, logits));
  }
  // Padding of the model's vocabulary is never sampled.
  const auto vocab = static_cast<size_t>(loaded_.tokenizer.vocab_size());
  for (size_t row = 0; row < chunks.size(); ++row) {
    Slot& slot = sequences_[plan.chunks[row].sequence];
    const bool whole = slot->kv.length == std::ssize(slot->tokens);
    if (whole) take_token(slot, logits.subspan(row * width, vocab));
  }
  std::erase(sequences_, nullptr);
  return ok();
}

void Engine::take_token(Slot& slot, std::span<const float> logits) {
  const Result<bool> finished = sample(*slot, logits);
  if (!finished) return fail(slot, finished.error());
  deliver(slot, *finished);
}

// Returns whether the sequence is finished.
Result<bool> Engine::sample(Sequence& sequence, std::span<const float> logits) {
  const GenerateRequest& request = sequence.request;
  TROUPE_TRY(const int32_t token, sequence.sampler.sample(logits));
  if (token == loaded_.eos && !request.ignore_eos) {
    sequence.answer.add_text(sequence.text.finish());
    sequence.answer.finish("stop");
    return true;
  }
  sequence.tokens.push_back(token);
  ++counters_.tokens_generated;
  sequence.answer.add_token(token);
  if (request.logprobs) {
    TROUPE_TRY(const auto logprobs, llm::logprobs(logits, token, *request.logprobs));
    sequence.answer.add_logprobs(to_json(loaded_.tokenizer, logprobs));
  }
  sequence.answer.add_text(sequence.text.push(token));
  const bool full =
      sequence.generated() >= request.tokens_max || std::ssize(sequence.tokens) >= max_context_;
  if (full && !sequence.text.stopped()) sequence.answer.add_text(sequence.text.finish());
  if (sequence.text.stopped()) {
    sequence.answer.finish("stop");
  } else if (full) {
    sequence.answer.finish("length");
  }
  return full || sequence.text.stopped();
}

void Engine::deliver(Slot& slot, bool finished) {
  const Answer::Delivery delivery = slot->answer.deliver();
  if (finished || delivery == Answer::Delivery::closed) release(*slot);
  if (delivery == Answer::Delivery::closed) {
    slot.reset();
  } else if (finished) {
    draining_.push_back(std::move(slot));
  }
}

void Engine::release(Sequence& sequence) {
  loaded_.model.release(sequence.kv);
  if (sequence.running) --running_;
  sequence.running = false;
}

void Engine::preempt(Sequence& sequence) {
  release(sequence);
  ++counters_.preemptions;
}

void Engine::fail(Slot& slot, const Error& failure) {
  release(*slot);
  slot->answer.fail(failure);
  slot.reset();
}

void Engine::pause() {
  for (Slot& slot : sequences_) {
    if (slot->running) preempt(*slot);
  }
  paused_ = true;
}

}  // namespace troupe::inference
