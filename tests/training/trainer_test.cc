#include "training/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>

#include "base/random.h"
#include "llm/checkpoint.h"
#include "llm/tokenizer.h"
#include "tests/training/fake_host.h"

namespace troupe::training {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using ::testing::HasSubstr;

constexpr int32_t vocab_size = 48;

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() {
    plugin::detail::host = testing::fake_host();
    std::string pattern = (fs::temp_directory_path() / "troupe_training_XXXXXX").string();
    directory_ = ::mkdtemp(pattern.data());
    write_tokens("train", 4000, vocab_size);
    write_tokens("validation", 600, vocab_size);
  }
  ~TrainerTest() override {
    testing::meetings.by_name.clear();
    fs::remove_all(directory_);
  }

  // Text with something to learn: each token mostly follows from the one before.
  void write_tokens(const std::string& name, size_t count, int32_t size) {
    SeededRandom random{7};
    std::vector<int32_t> tokens{0};
    while (tokens.size() < count) {
      const auto noise = static_cast<int32_t>(random.below(3));
      tokens.push_back((tokens.back() * 5 + 1 + noise) % size);
    }
    ASSERT_TRUE(write_token_file(path(name), tokens, size));
  }
  std::string path(const std::string& name) const { return directory_ / name; }

  TrainerConfig config(uint64_t steps) const {
    TrainerConfig c;
    c.train_data = path("train");
    c.validation_data = path("validation");
    c.model = {
        .vocab_size = vocab_size, .n_positions = 16, .n_embd = 16, .n_layer = 2, .n_head = 2};
    c.batch = 8;
    c.sequence_length = 16;
    c.steps = steps;
    c.lr_peak = 3e-3;
    c.lr_floor = 3e-4;
    c.warmup_steps = 5;
    c.precision = PrecisionChoice::f32;
    c.eval_interval = 10;
    c.eval_sequences = 20;
    c.seed = 11;
    return c;
  }

  fs::path directory_;
};

// One actor, driven as its host would.
struct Actor {
  explicit Actor(const std::string& id) { context.id = id; }

  Status create(const TrainerConfig& config) {
    const std::string text = config.to_json();
    const BytesView arguments[] = {as_bytes(text)};
    TROUPE_TRY(trainer, Trainer::create(plugin::Context{&context}, arguments));
    return ok();
  }
  void send(troupe_call& to, std::string_view method, const std::string& argument = "{}") {
    const BytesView arguments[] = {as_bytes(argument)};
    trainer->call(plugin::Call{&to}, method, arguments);
  }
  // Steps until there is nothing to do, or `at` was reached by rank 0's reports.
  void run(size_t items = std::numeric_limits<size_t>::max()) {
    for (bool more = true; more && call.items.size() < items;) {
      more = trainer->step(std::chrono::microseconds(1000)).value();
    }
  }
  std::vector<double> numbers(const char* name) const {
    std::vector<double> out;
    for (const std::string& item : call.items) {
      const auto fields = json::parse(item).as_object();
      if (const auto* value = fields.if_contains(name)) out.push_back(value->to_number<double>());
    }
    return out;
  }
  json::object summary() const {
    return json::parse(call.items.back()).as_object().at("summary").as_object();
  }

  troupe_context context;
  troupe_call call;
  std::unique_ptr<Trainer> trainer;
};

// Trains with `world` ranks, a thread each, and gives back rank 0.
std::vector<std::unique_ptr<Actor>> train(TrainerConfig config, uint32_t world,
                                          const std::string& from = "\"from_step\": 0") {
  std::vector<std::unique_ptr<Actor>> actors;
  std::string members;
  for (uint32_t rank = 0; rank < world; ++rank) {
    actors.push_back(std::make_unique<Actor>("actor" + std::to_string(rank)));
    members += (rank > 0 ? "," : "") + std::string("\"") + actors.back()->context.id + "\"";
    config.rank = rank;
    config.world = world;
    EXPECT_TRUE(actors.back()->create(config));
  }
  std::vector<std::jthread> threads;
  for (auto& actor : actors) {
    threads.emplace_back([&, raw = actor.get()] {
      raw->send(raw->call, "train", "{\"members\": [" + members + "], " + from + "}");
      raw->run();
    });
  }
  threads.clear();
  return actors;
}

TEST_F(TrainerTest, TwoRanksFollowTheLossCurveOfOne) {
  const auto one = train(config(50), 1);
  const auto two = train(config(50), 2);
  for (const auto* actors : {&one, &two}) {
    for (const auto& actor : *actors) ASSERT_EQ(actor->call.code, TROUPE_OK) << actor->call.reply;
  }
  const auto expected = one[0]->numbers("loss");
  const auto found = two[0]->numbers("loss");
  ASSERT_EQ(expected.size(), 50u);
  ASSERT_EQ(found.size(), 50u);
  for (size_t i = 0; i < 50; ++i) EXPECT_NEAR(found[i], expected[i], 1e-5) << "step " << i + 1;
  const auto validation_one = one[0]->numbers("val_loss");
  const auto validation_two = two[0]->numbers("val_loss");
  ASSERT_EQ(validation_one.size(), 5u);
  ASSERT_EQ(validation_two.size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(validation_two[i], validation_one[i], 1e-5);
  // And it learnt: the text's own entropy is log 3, a blind guess is log 48.
  EXPECT_LT(expected.back(), expected.front() - 0.3);
}

TEST_F(TrainerTest, MicroBatchesGiveTheSameCurve) {
  auto c = config(10);
  const auto whole = train(c, 1);
  c.micro_batch = 2;
  const auto parts = train(c, 1);
  const auto expected = whole[0]->numbers("loss");
  const auto found = parts[0]->numbers("loss");
  ASSERT_EQ(found.size(), 10u);
  for (size_t i = 0; i < 10; ++i) EXPECT_NEAR(found[i], expected[i], 1e-5);
}

TEST_F(TrainerTest, AResumedRunEqualsOneThatWasNotInterrupted) {
  auto c = config(24);
  c.checkpoint = path("whole");
  ASSERT_EQ(train(c, 1)[0]->call.code, TROUPE_OK);

  // The other one is stopped in the middle and goes on in a new actor.
  c.checkpoint = path("parts");
  Actor first("first");
  ASSERT_TRUE(first.create(c));
  first.send(first.call, "train", R"({"from_step": 0})");
  first.run(9);
  troupe_call stop;
  first.send(stop, "stop");
  first.run();
  ASSERT_EQ(first.call.code, TROUPE_OK) << first.call.reply;
  EXPECT_TRUE(first.summary().at("stopped").as_bool());
  EXPECT_EQ(first.summary().at("step").to_number<int>(), 10);

  const auto second = train(c, 1, "\"from_step\": -1");
  ASSERT_EQ(second[0]->call.code, TROUPE_OK) << second[0]->call.reply;
  EXPECT_EQ(second[0]->numbers("loss").size(), 14u);
  const auto expected = llm::load_gpt2(path("whole")).value();
  const auto found = llm::load_gpt2(path("parts")).value();
  EXPECT_EQ(found.parameters, expected.parameters);
  EXPECT_EQ(llm::load_training_state(path("parts")).value().optimizer.v,
            llm::load_training_state(path("whole")).value().optimizer.v);
}

TEST_F(TrainerTest, BothRanksStopAfterTheSameStepWhenOneCallerIsGone) {
  auto c = config(1'000'000);
  c.eval_interval = 0;
  c.world = 2;
  c.checkpoint = path("stopped");
  Actor ranks[] = {Actor("a"), Actor("b")};
  for (uint32_t rank = 0; rank < 2; ++rank) {
    c.rank = rank;
    ASSERT_TRUE(ranks[rank].create(c));
  }
  std::jthread other([&] {
    ranks[1].send(ranks[1].call, "train", R"({"members": ["a", "b"]})");
    for (int i = 0; i < 5; ++i) (void)ranks[1].trainer->step({}).value();
    ranks[1].call.cancelled = true;
    ranks[1].run();
  });
  ranks[0].send(ranks[0].call, "train", R"({"members": ["a", "b"]})");
  ranks[0].run();
  other.join();
  for (const Actor& rank : ranks) {
    ASSERT_EQ(rank.call.code, TROUPE_OK) << rank.call.reply;
    EXPECT_EQ(rank.summary().at("step").to_number<int>(), 6);
  }
  EXPECT_EQ(llm::load_training_state(path("stopped")).value().optimizer.step, 6u);
}

TEST_F(TrainerTest, ADeadMemberEndsTheRunAsUnavailableWithACheckpoint) {
  auto c = config(1'000'000);
  c.eval_interval = 0;
  c.world = 2;
  c.checkpoint = path("orphan");
  Actor ranks[] = {Actor("a"), Actor("b")};
  for (uint32_t rank = 0; rank < 2; ++rank) {
    c.rank = rank;
    ASSERT_TRUE(ranks[rank].create(c));
  }
  std::jthread other([&] {
    ranks[1].send(ranks[1].call, "train", R"({"members": ["a", "b"]})");
    for (int i = 0; i < 4; ++i) (void)ranks[1].trainer->step({}).value();
    ranks[1].trainer.reset();  // Its process ends.
  });
  ranks[0].send(ranks[0].call, "train", R"({"members": ["a", "b"]})");
  ranks[0].run();
  EXPECT_EQ(ranks[0].call.code, TROUPE_UNAVAILABLE);
  EXPECT_EQ(llm::load_training_state(path("orphan")).value().optimizer.step, 4u);
}

TEST_F(TrainerTest, RanksThatDifferAreFound) {
  auto c = config(5);
  c.world = 2;
  Actor ranks[] = {Actor("a"), Actor("b")};
  for (uint32_t rank = 0; rank < 2; ++rank) {
    c.rank = rank;
    c.seed = 1 + rank;  // A fault that a driver could make.
    ASSERT_TRUE(ranks[rank].create(c));
  }
  std::jthread other([&] {
    ranks[1].send(ranks[1].call, "train", R"({"members": ["a", "b"]})");
    ranks[1].run();
  });
  ranks[0].send(ranks[0].call, "train", R"({"members": ["a", "b"]})");
  ranks[0].run();
  other.join();
  EXPECT_EQ(ranks[1].call.code, TROUPE_DATA_LOSS) << ranks[1].call.reply;
  EXPECT_EQ(ranks[0].call.code, TROUPE_UNAVAILABLE) << ranks[0].call.reply;
}

TEST_F(TrainerTest, ABatchThatRanksCannotShareIsRefused) {
  auto c = config(5);
  c.world = 3;
  const Status made = Actor("a").create(c);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::invalid);
  EXPECT_THAT(made.error().message(), HasSubstr("8 sequences cannot be shared evenly by 3"));
}

TEST_F(TrainerTest, OtherVocabulariesAreRefused) {
  auto c = config(5);
  write_tokens("other", 1000, 40);
  c.train_data = path("other");
  auto made = Actor("a").create(c);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::invalid);
  EXPECT_THAT(made.error().message(), HasSubstr("vocabulary of 40 tokens, the model has 48"));

  c.train_data = path("none");
  made = Actor("a").create(c);
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::not_found);
}

TEST_F(TrainerTest, ANumberThatIsNoneStopsTheRun) {
  auto c = config(40);
  c.lr_peak = 1e3;  // Certain to diverge.
  c.lr_floor = 0;
  c.gradient_norm_max = 0;
  c.warmup_steps = 0;
  c.checkpoint = path("diverged");
  // Weight decay at this rate multiplies the weights by -99 a step: soon they are no numbers.
  const auto actors = train(c, 1);
  EXPECT_EQ(actors[0]->call.code, TROUPE_INVALID);
  EXPECT_THAT(actors[0]->call.reply, HasSubstr("training diverged at step"));
  EXPECT_THAT(actors[0]->call.reply, HasSubstr("lower learning rate"));
  EXPECT_FALSE(fs::exists(c.checkpoint)) << "a broken model must not replace a good one";
}

TEST_F(TrainerTest, ACheckpointOfAnotherRunIsRefused) {
  auto c = config(3);
  c.checkpoint = path("model");
  ASSERT_EQ(train(c, 1)[0]->call.code, TROUPE_OK);
  c.batch = 4;
  const auto actors = train(c, 1, "\"from_step\": -1");
  EXPECT_EQ(actors[0]->call.code, TROUPE_CONFLICT);
  EXPECT_THAT(actors[0]->call.reply, HasSubstr("batch 8, this run has 4"));
}

TEST_F(TrainerTest, ASlowCallerLosesItemsButNotTheRun) {
  troupe_call ended, again, running;  // `again` is failed when its actor goes.
  Actor actor("a");
  ASSERT_TRUE(actor.create(config(4)));
  actor.call.emit_answer = TROUPE_EXHAUSTED;
  actor.send(actor.call, "train");
  actor.run();
  EXPECT_TRUE(actor.call.finished);
  EXPECT_EQ(actor.call.code, TROUPE_OK);
  // Its summary was lost, too, and is there for who asks, until another run begins.
  EXPECT_TRUE(actor.call.items.empty());
  actor.send(ended, "status");
  const auto status = json::parse(ended.reply).as_object();
  EXPECT_EQ(status.at("training"), false);
  EXPECT_EQ(status.at("summary").at("step"), 4);
  EXPECT_EQ(status.at("summary").at("stopped"), false);
  EXPECT_EQ(status.at("summary").at("dropped_items"), 4);
  actor.send(again, "train", R"({"from_step": 0})");
  actor.send(running, "status");
  EXPECT_EQ(running.reply, R"({"step":4,"steps":4,"training":true})");
}

TEST_F(TrainerTest, UnknownMethodsAndSecondRunsAreRefused) {
  Actor actor("a");
  ASSERT_TRUE(actor.create(config(4)));
  troupe_call unknown, second, status, wrong;
  actor.send(unknown, "generate");
  EXPECT_EQ(unknown.code, TROUPE_NOT_FOUND);
  actor.send(wrong, "train", R"({"members": 3})");
  EXPECT_EQ(wrong.code, TROUPE_INVALID);
  actor.send(actor.call, "train");
  actor.send(second, "train");
  EXPECT_EQ(second.code, TROUPE_CONFLICT);
  actor.run(2);
  actor.send(status, "status");
  EXPECT_EQ(status.reply, R"({"step":2,"steps":4,"training":true})");
  ASSERT_TRUE(actor.trainer->pause());
  EXPECT_FALSE(actor.trainer->step({}).value());
  EXPECT_EQ(actor.call.items.size(), 2u);
  ASSERT_TRUE(actor.trainer->resume());
  actor.run();
  EXPECT_TRUE(actor.call.finished);
}

}  // namespace
}  // namespace troupe::training
