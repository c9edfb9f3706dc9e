#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>

#include "llm/tokenizer.h"
#include "training/batches.h"
#include "training/driver/dataset.h"
#include "training/driver/display.h"
#include "training/driver/loss_chart.h"
#include "training/driver/run_summary.h"
#include "training/token_file.h"
#include "training/trainer_config.h"

namespace troupe::training {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class DataTest : public ::testing::Test {
 protected:
  DataTest() {
    std::string pattern = (fs::temp_directory_path() / "troupe_training_XXXXXX").string();
    directory_ = ::mkdtemp(pattern.data());
  }
  ~DataTest() override { fs::remove_all(directory_); }
  void write(const std::string& name, std::string_view text) {
    std::ofstream(directory_ / name, std::ios::binary) << text;
  }
  fs::path directory_;
};

TEST_F(DataTest, TokenFilesRoundTripInBothWidths) {
  for (const int32_t vocab_size : {1000, 65536, 70000}) {
    const std::vector<int32_t> tokens{0, 1, 999, vocab_size - 1};
    ASSERT_TRUE(write_token_file(directory_ / "t", tokens, vocab_size));
    const auto file = TokenFile::open(directory_ / "t").value();
    std::vector<int32_t> found(4);
    ASSERT_TRUE(file.read(0, found));
    EXPECT_EQ(found, tokens);
    EXPECT_EQ(file.vocab_size(), vocab_size);
    EXPECT_EQ(fs::file_size(directory_ / "t"), 32u + 4u * (vocab_size > 65536 ? 4 : 2));
  }
  const std::vector<int32_t> outside{5};
  EXPECT_EQ(write_token_file(directory_ / "t", outside, 5).error().code(), Code::invalid);
}

TEST_F(DataTest, DamagedTokenFilesAreRefused) {
  const std::vector<int32_t> tokens(100, 3);
  ASSERT_TRUE(write_token_file(directory_ / "t", tokens, 10));
  fs::resize_file(directory_ / "t", 131);
  EXPECT_EQ(TokenFile::open(directory_ / "t").error().code(), Code::data_loss);
  write("text", "This is a text that is long enough for a header.");
  EXPECT_EQ(TokenFile::open(directory_ / "text").error().code(), Code::invalid);
  EXPECT_EQ(TokenFile::open(directory_ / "none").error().code(), Code::not_found);
}

TEST_F(DataTest, AnEpochShowsEachWindowOnce) {
  std::vector<int32_t> tokens(500);
  std::iota(tokens.begin(), tokens.end(), 0);
  ASSERT_TRUE(write_token_file(directory_ / "t", tokens, 500));
  const auto file = TokenFile::open(directory_ / "t").value();
  auto sampler = BatchSampler::make(file, {.batch = 7, .sequence_length = 10}, 3).value();
  ASSERT_EQ(sampler.windows(), 49u);  // Seven steps.
  std::vector<uint64_t> orders[2];
  for (uint64_t epoch = 0; epoch < 2; ++epoch) {
    std::set<uint64_t> starts;
    for (uint64_t step = 0; step < 7; ++step) {
      for (int64_t row = 0; row < 7; ++row) {
        orders[epoch].push_back(sampler.start(epoch * 7 + step, row));
        starts.insert(orders[epoch].back());
      }
    }
    EXPECT_EQ(starts.size(), 49u);
    EXPECT_LE(*starts.rbegin() + 10, 499u);
  }
  EXPECT_NE(orders[0], orders[1]);
  // Another sampler that begins in the middle sees the same.
  auto late = BatchSampler::make(file, {.batch = 7, .sequence_length = 10}, 3).value();
  EXPECT_EQ(late.start(9, 4), orders[1][18]);

  SequenceBuffer rows;
  ASSERT_TRUE(late.fill(9, 4, 6, rows));
  const auto batch = rows.batch();
  EXPECT_EQ(batch.batch, 2);
  EXPECT_EQ(batch.length, 10);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(batch.targets[i], batch.tokens[i] + 1);
  EXPECT_EQ(static_cast<uint64_t>(batch.tokens[0]), orders[1][18]);
}

TEST_F(DataTest, TooLittleDataIsRefused) {
  ASSERT_TRUE(write_token_file(directory_ / "t", std::vector<int32_t>(19, 0), 5));
  const auto file = TokenFile::open(directory_ / "t").value();
  EXPECT_EQ(BatchSampler::make(file, {.batch = 1, .sequence_length = 10}, 1).error().code(),
            Code::invalid);
}

TEST_F(DataTest, ADatasetHoldsOutTheEndOfEachText) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "And it came to pass, line " + std::to_string(i) + ".\n";
  write("a.txt", text);
  write("b.txt", "Selah.\n" + text);
  std::set<std::string> told;
  const DatasetOptions options{
      .texts = {directory_ / "a.txt", directory_ / "b.txt"},
      .directory = directory_,
      .vocab_size = 300,
      .validation_share = 0.1,
      .progress = [&](std::string_view doing, double) { told.emplace(doing); }};
  const Dataset made = make_dataset(options).value();
  const auto tokenizer = llm::Tokenizer::load(made.tokenizer).value();
  EXPECT_EQ(made.vocab_size, tokenizer.vocab_size());
  std::string all[2];
  for (const int part : {0, 1}) {
    const auto file = TokenFile::open(part == 0 ? made.train : made.validation).value();
    std::vector<int32_t> ids(file.size());
    ASSERT_TRUE(file.read(0, ids));
    all[part] = tokenizer.decode(ids);
  }
  EXPECT_EQ(all[0].size() + all[1].size(), made.text_bytes);
  EXPECT_THAT(all[1], HasSubstr("line 399.\nAnd it came"));
  EXPECT_NEAR(static_cast<double>(all[1].size()) / static_cast<double>(made.text_bytes), 0.1, 0.01);
  EXPECT_TRUE(told.contains("tokens"));

  auto missing = options;
  missing.texts = {directory_ / "none.txt"};
  EXPECT_EQ(make_dataset(missing).error().code(), Code::not_found);
}

TEST_F(DataTest, ATextWithoutALineEndInItsLastPartIsCutWithinTheLine) {
  std::string line;
  for (int i = 0; i < 400; ++i) line += "and it came to pass " + std::to_string(i) + ", ";
  // Of the three only the second has a line end where the cut is looked for: its very last byte.
  write("a.txt", "Selah.\n" + line);
  write("b.txt", "Selah.\n" + line + "\n");
  write("c.txt", line);
  for (const char* name : {"a.txt", "b.txt", "c.txt"}) {
    const Dataset made = make_dataset({.texts = {directory_ / name},
                                       .directory = directory_,
                                       .vocab_size = 300,
                                       .validation_share = 0.05})
                             .value();
    EXPECT_GT(made.validation_tokens, 100u) << name;
    EXPECT_GT(made.train_tokens, made.validation_tokens * 10) << name;
  }
}

TEST_F(DataTest, ARecordForgetsWhatARestartRunsAnew) {
  auto record = RunRecord::open(directory_, 0).value();
  for (int step = 1; step <= 5; ++step) {
    const std::string line = R"({"step":)" + std::to_string(step) + R"(,"loss":2.5,"val_loss":3})";
    ASSERT_TRUE(record.add(StepReport::from_json(line).value(), line));
  }
  ASSERT_TRUE(record.rewind(3));
  std::ifstream file(directory_ / "metrics.jsonl");
  std::string line, last;
  int lines = 0;
  while (std::getline(file, line)) ++lines, last = line;
  EXPECT_EQ(lines, 3);
  EXPECT_EQ(last, R"({"step":3,"loss":2.5,"val_loss":3})");
  EXPECT_EQ(record.last_validation_loss(), 3.0);
  EXPECT_FALSE(StepReport::from_json("{}"));
}

TEST(RunSummaryTest, OnlyARunThatWasTrainedToItsEndIsASuccess) {
  const auto whole =
      RunSummary::from_json(R"({"step":9,"stopped":false,"loss":2.5,"val_loss":3,"elapsed_s":7})");
  EXPECT_EQ(whole.value().step, 9u);
  EXPECT_EQ(whole.value().validation_loss, 3.0);
  EXPECT_TRUE(outcome_of(whole.value(), 9, false));
  const RunSummary stopped = RunSummary::from_json(R"({"step":4,"stopped":true})").value();
  EXPECT_TRUE(outcome_of(stopped, 9, true));  // By this program's own Ctrl-C: it exits with 130.
  const Status by_others = outcome_of(stopped, 9, false);
  ASSERT_FALSE(by_others);
  EXPECT_EQ(by_others.error().code(), Code::cancelled);
  EXPECT_THAT(by_others.error().message(), HasSubstr("step 4 of 9"));
  EXPECT_EQ(RunSummary::from_json("").error().code(), Code::internal);
}

TEST(RunSummaryTest, IsFoundInTheStatusOfATrainer) {
  const auto found = summary_in_status(R"({"step":4,"summary":{"step":4,"stopped":true}})");
  EXPECT_TRUE(RunSummary::from_json(found.value()).value().stopped);
  for (const char* none : {"", "[]", R"({"step":4,"steps":4,"training":false})"}) {
    EXPECT_EQ(summary_in_status(none).error().code(), Code::internal) << none;
  }
}

TEST(LossChart, DrawsWhatIsFiniteAndEscapesItsTitle) {
  const LossPoint train[] = {{1, 7}, {2, 6}, {3, std::nan("")}, {4, 5}};
  const LossPoint validation[] = {{4, 5.5}};
  const std::string svg = loss_chart_svg(train, validation, "a < b");
  EXPECT_THAT(svg, HasSubstr("a &lt; b"));
  EXPECT_THAT(svg, HasSubstr("<circle"));
  EXPECT_THAT(svg, ::testing::Not(HasSubstr("nan")));
  EXPECT_THAT(loss_chart_svg({}, {}, ""), HasSubstr("</svg>"));
}

TEST(TrainerConfigTest, GoesThroughJsonAndNamesWhatIsWrong) {
  TrainerConfig config;
  config.train_data = "t";
  config.model = {.vocab_size = 9, .n_positions = 8, .n_embd = 4, .n_layer = 1, .n_head = 1};
  config.batch = 2;
  config.sequence_length = 8;
  config.steps = 1;
  const auto again = TrainerConfig::from_json(config.to_json()).value();
  EXPECT_EQ(again.to_json(), config.to_json());
  const auto message = [](std::string_view text) {
    return TrainerConfig::from_json(text).error().message();
  };
  EXPECT_THAT(message("["), HasSubstr("not a JSON object"));
  EXPECT_THAT(message(R"({"stepps": 3})"), HasSubstr("no field \"stepps\""));
  EXPECT_THAT(message(R"({"steps": "3"})"), HasSubstr("\"steps\" must be a whole number"));
  EXPECT_THAT(message(R"({"precision": "f64"})"), HasSubstr("auto, f32 or bf16"));
  config.sequence_length = 9;
  EXPECT_THAT(message(config.to_json()), HasSubstr("sequence_length"));
}

}  // namespace
}  // namespace troupe::training
