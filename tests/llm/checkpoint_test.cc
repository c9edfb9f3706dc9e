#include "llm/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>
#include <functional>
#include <iterator>
#include <vector>

#include "llm/gpt2.h"
#include "llm/inference_model.h"
#include "llm/safetensors.h"

namespace troupe::llm {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr Gpt2Config small{
    .vocab_size = 31, .n_positions = 12, .n_embd = 16, .n_layer = 2, .n_head = 2};
const fs::path golden = fs::path(TROUPE_TEST_DATA) / "gpt2_golden";

class Checkpoint : public testing::Test {
 protected:
  Checkpoint() {
    std::string pattern = (fs::temp_directory_path() / "troupe_checkpoint_XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
  }
  ~Checkpoint() override { fs::remove_all(root_); }

  fs::path root_;
};

std::vector<float> parameters_of(const Gpt2Config& config, uint64_t seed) {
  std::vector<float> parameters(Gpt2Layout(config).total());
  SeededRandom random(seed);
  initialize_gpt2<float>(config, random, parameters);
  return parameters;
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

template <class T>
std::vector<T> values(const SafetensorsFile& file, std::string_view name) {
  const TensorView tensor = file.find(name).value();
  std::vector<T> out(tensor.bytes.size() / sizeof(T));
  std::memcpy(out.data(), tensor.bytes.data(), tensor.bytes.size());
  return out;
}

std::vector<int32_t> tokens_of(const SafetensorsFile& file, std::string_view name) {
  const auto wide = values<int64_t>(file, name);
  return {wide.begin(), wide.end()};
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return largest;
}

// A file with one tensor changed or left out (if `change` says false).
void rewrite_model(const fs::path& directory, std::string_view name,
                   const std::function<bool(TensorView&)>& change) {
  const fs::path path = directory / "model.safetensors";
  const auto file = SafetensorsFile::open(path).value();
  std::vector<TensorView> tensors;
  for (TensorView tensor : file.tensors()) {
    if (tensor.name != name || change(tensor)) tensors.push_back(std::move(tensor));
  }
  ASSERT_TRUE(write_safetensors(path, tensors, {}));
}

std::string load_failure(const fs::path& directory, Code code) {
  const auto loaded = load_gpt2(directory);
  if (loaded) return "it loaded";
  EXPECT_EQ(loaded.error().code(), code);
  return loaded.error().message();
}

TEST(GoldenGpt2, LogitsLossAndGradientEqualTransformers) {
  const auto checkpoint = load_gpt2(golden).value();
  EXPECT_EQ(
      checkpoint.config,
      (Gpt2Config{.vocab_size = 67, .n_positions = 48, .n_embd = 32, .n_layer = 2, .n_head = 4}));
  const auto expected = SafetensorsFile::open(golden / "expected.safetensors").value();
  const auto tokens = tokens_of(expected, "tokens");
  const auto targets = tokens_of(expected, "targets");
  auto model = Gpt2<float>::create(checkpoint.config).value();
  std::ranges::copy(checkpoint.parameters, model.parameters().begin());

  const TokenBatch batch{2, 24, tokens, targets};
  const auto logits = values<float>(expected, "logits");
  std::vector<float> ours(logits.size());
  ASSERT_TRUE(model.logits(batch, ours));
  EXPECT_LT(largest_difference(ours, logits), 1e-4);
  EXPECT_NEAR(model.forward_backward(batch).value(), values<float>(expected, "loss")[0], 1e-5);
  const auto gradient = [&](std::string_view name) {
    const Parameter& p = *model.layout().find(name);
    return model.gradients().subspan(p.offset, p.count);
  };
  EXPECT_LT(
      largest_difference(gradient("transformer.wte.weight"), values<float>(expected, "grad.wte")),
      1e-5);
  EXPECT_LT(largest_difference(gradient("transformer.h.0.attn.c_attn.weight"),
                               values<float>(expected, "grad.c_attn")),
            1e-5);
}

TEST(GoldenGpt2, GreedyContinuationEqualsTransformers) {
  const auto checkpoint = load_gpt2(golden).value();
  const auto expected = SafetensorsFile::open(golden / "expected.safetensors").value();
  auto model =
      InferenceModel::create(checkpoint.config, checkpoint.parameters, {.kv_blocks = 2}).value();
  KvSequence sequence;
  KvSequence* const one = &sequence;
  std::vector<float> logits(67);
  std::vector<int32_t> continuation;
  ASSERT_TRUE(model.prefill(sequence, tokens_of(expected, "prompt"), logits));
  while (continuation.size() < 20) {
    continuation.push_back(static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin()));
    ASSERT_TRUE(model.decode({&one, 1}, {&continuation.back(), 1}, logits));
  }
  EXPECT_EQ(continuation, tokens_of(expected, "greedy"));
}

TEST_F(Checkpoint, ComesBackBitForBit) {
  const auto parameters = parameters_of(small, 1);
  const fs::path directory = root_ / "run" / "model";
  ASSERT_TRUE(save_gpt2(directory, small, parameters,
                        {.eos_token_id = 30, .files = {{"tokenizer.json", "{}"}}}));
  const auto loaded = load_gpt2(directory).value();
  EXPECT_EQ(loaded.config, small);
  EXPECT_EQ(loaded.parameters, parameters);
  EXPECT_EQ(read(directory / "tokenizer.json"), "{}");
  EXPECT_THAT(read(directory / "config.json"), HasSubstr("\"GPT2LMHeadModel\""));
  EXPECT_THAT(read(directory / "generation_config.json"), HasSubstr("\"eos_token_id\": 30"));
  EXPECT_EQ(std::distance(fs::directory_iterator(root_ / "run"), {}), 1);  // Nothing left over.
}

TEST_F(Checkpoint, TrainingStateComesBackAndLeavesWithItsModel) {
  const auto parameters = parameters_of(small, 1);
  TrainingState state{{7, parameters_of(small, 2), parameters_of(small, 3)}, {{"seed", "11"}}};
  const fs::path directory = root_ / "model";
  ASSERT_TRUE(save_gpt2(directory, small, parameters, {.training = &state}));
  const auto loaded = load_training_state(directory).value();
  EXPECT_EQ(loaded.optimizer.step, 7u);
  EXPECT_EQ(loaded.optimizer.m, state.optimizer.m);
  EXPECT_EQ(loaded.optimizer.v, state.optimizer.v);
  EXPECT_EQ(loaded.progress, state.progress);
  AdamW optimizer(Gpt2Layout(small), {});
  EXPECT_TRUE(optimizer.restore(loaded.optimizer));

  // A model saved without it must not keep an older one's.
  ASSERT_TRUE(save_gpt2(directory, small, parameters));
  const auto gone = load_training_state(directory);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code(), Code::not_found);
  fs::copy_file(directory / "model.safetensors", directory / "optimizer.safetensors");
  const auto strange = load_training_state(directory);
  ASSERT_FALSE(strange);
  EXPECT_EQ(strange.error().code(), Code::invalid);
}

TEST_F(Checkpoint, SavingAgainReplacesTheModelAndKeepsOtherFiles) {
  const fs::path directory = root_ / "model";
  ASSERT_TRUE(save_gpt2(directory, small, parameters_of(small, 1)));
  write(directory / "README.md", "mine");
  fs::create_directory_symlink(directory, root_ / "latest");
  fs::create_directory(root_ / ".model.troupe-staging");  // Of a writer that crashed.
  const auto parameters = parameters_of(small, 2);
  ASSERT_TRUE(save_gpt2((root_ / "latest").string() + "/", small, parameters));
  EXPECT_EQ(load_gpt2(directory).value().parameters, parameters);
  EXPECT_EQ(read(directory / "README.md"), "mine");
  EXPECT_TRUE(fs::is_symlink(root_ / "latest"));
  EXPECT_FALSE(fs::exists(root_ / ".model.troupe-staging"));
}

TEST_F(Checkpoint, LeavesFoldersOfOthersBesideItAlone) {
  const std::vector<const char*> names{"model.tmp", "model.old"};
  for (const char* name : names) {
    fs::create_directories(root_ / name / "pictures");
    write(root_ / name / "notes", "mine");
  }
  ASSERT_TRUE(save_gpt2(root_ / "model", small, parameters_of(small, 1)));
  ASSERT_TRUE(save_gpt2(root_ / "model", small, parameters_of(small, 2)));
  for (const char* name : names) {
    EXPECT_EQ(read(root_ / name / "notes"), "mine") << name;
    EXPECT_TRUE(fs::exists(root_ / name / "pictures")) << name;
  }
  // Nor does our own name cover a folder that no writer makes.
  fs::create_directories(root_ / ".model.troupe-staging" / "pictures");
  const auto saved = save_gpt2(root_ / "model", small, parameters_of(small, 3));
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code(), Code::conflict);
  EXPECT_TRUE(fs::exists(root_ / ".model.troupe-staging" / "pictures"));
  EXPECT_EQ(load_gpt2(root_ / "model").value().parameters, parameters_of(small, 2));
}

TEST_F(Checkpoint, AFullDiskLeavesTheOldOneWhole) {
  const fs::path directory = root_ / "model";
  const auto before = parameters_of(small, 1);
  ASSERT_TRUE(save_gpt2(directory, small, before));
  // Files of this process may not grow beyond half the model: the kernel's answer to the write is
  // like a full disk's.
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit tight{before.size() * 2, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const auto saved = save_gpt2(directory, small, parameters_of(small, 2));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code(), Code::exhausted);
  EXPECT_THAT(saved.error().message(), HasSubstr("model.safetensors"));
  EXPECT_EQ(load_gpt2(directory).value().parameters, before);
  EXPECT_EQ(std::distance(fs::directory_iterator(root_), {}), 1);
}

TEST_F(Checkpoint, DoesNotReplaceWhatIsNoCheckpoint) {
  fs::create_directories(root_ / "home" / "pictures");
  write(root_ / "file", "text");
  for (const char* name : {"home", "file"}) {
    const auto saved = save_gpt2(root_ / name, small, parameters_of(small, 1));
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code(), Code::conflict);
  }
  EXPECT_TRUE(fs::exists(root_ / "home" / "pictures"));
  for (const char* name : {"", "..", "../evil", "a/b", "config.json", "model.safetensors"}) {
    const auto saved =
        save_gpt2(root_ / "new", small, parameters_of(small, 1), {.files = {{name, "x"}}});
    ASSERT_FALSE(saved) << name;
    EXPECT_EQ(saved.error().code(), Code::invalid);
  }
  EXPECT_FALSE(save_gpt2(root_ / "new", small, std::vector<float>(5)));
  EXPECT_FALSE(fs::exists(root_ / "new"));
}

TEST_F(Checkpoint, ReadsNamesWithoutPrefixMasksAndHalfPrecision) {
  const auto parameters = parameters_of(small, 1);
  ASSERT_TRUE(save_gpt2(root_ / "model", small, parameters));
  const auto source = SafetensorsFile::open(root_ / "model" / "model.safetensors").value();
  std::vector<std::vector<uint16_t>> halves;
  std::vector<TensorView> tensors;
  const std::vector<uint8_t> mask(12 * 12);
  tensors.push_back({"h.0.attn.bias", Dtype::u8, {1, 1, 12, 12}, mask});
  for (TensorView tensor : source.tensors()) {
    std::vector<uint16_t> half;
    for (size_t i = 2; i < tensor.bytes.size(); i += 4) {
      half.push_back(static_cast<uint16_t>(tensor.bytes[i] | tensor.bytes[i + 1] << 8));
    }
    halves.push_back(std::move(half));
    tensor.name = tensor.name.substr(std::string_view("transformer.").size());
    tensor.dtype = Dtype::bf16;
    tensor.bytes = {reinterpret_cast<const uint8_t*>(halves.back().data()),
                    halves.back().size() * 2};
    tensors.push_back(std::move(tensor));
  }
  ASSERT_TRUE(write_safetensors(root_ / "model" / "model.safetensors", tensors, {}));
  const auto loaded = load_gpt2(root_ / "model").value();
  for (size_t i = 0; i < parameters.size(); ++i) {
    ASSERT_NEAR(loaded.parameters[i], parameters[i], std::abs(parameters[i]) / 128);
  }
}

TEST_F(Checkpoint, ReadsEveryKindOfF16) {
  ASSERT_TRUE(save_gpt2(root_ / "model", small, parameters_of(small, 1)));
  const std::vector<uint16_t> bits{0x0000, 0x8000, 0x3c00, 0xc000, 0x0001, 0x03ff, 0x0400, 0x7bff,
                                   0x7c00, 0xfc00, 0x3555, 0x2e66, 0x1400, 0x9400, 0x4248, 0x5640};
  rewrite_model(root_ / "model", "transformer.ln_f.bias", [&](TensorView& tensor) {
    tensor.dtype = Dtype::f16;
    tensor.bytes = {reinterpret_cast<const uint8_t*>(bits.data()), bits.size() * 2};
    return true;
  });
  const auto loaded = load_gpt2(root_ / "model").value();
  const float* out = loaded.parameters.data() + Gpt2Layout(small).ln_f_bias();
  constexpr float infinity = std::numeric_limits<float>::infinity();
  EXPECT_THAT(std::span(out, 16),
              testing::ElementsAre(0.0f, -0.0f, 1.0f, -2.0f, 0x1p-24f, 1023 * 0x1p-24f, 0x1p-14f,
                                   65504.0f, infinity, -infinity, 0.333251953125f, 0.0999755859375f,
                                   0x1p-10f, -0x1p-10f, 3.140625f, 100.0f));
}

TEST_F(Checkpoint, NamesTheTensorThatDoesNotFitItsConfig) {
  const fs::path directory = root_ / "model";
  const auto fresh = [&] { ASSERT_TRUE(save_gpt2(directory, small, parameters_of(small, 1))); };
  const auto replace = [&](std::string_view key, std::string_view value) {
    std::string text = read(directory / "config.json");
    const size_t at = text.find("\"" + std::string(key) + "\": ") + key.size() + 4;
    text.replace(at, text.find('\n', at) - at, std::string(value) + ",");
    write(directory / "config.json", text);
  };
  fresh();
  replace("vocab_size", "32");
  EXPECT_THAT(load_failure(directory, Code::invalid),
              HasSubstr("tensor transformer.wte.weight: config.json needs the shape [32, 16], "
                        "but the file has [31, 16]"));
  fresh();
  replace("n_layer", "3");
  EXPECT_THAT(load_failure(directory, Code::invalid),
              HasSubstr("tensor transformer.h.2.ln_1.weight of shape [16] is missing"));
  replace("n_layer", "1");
  EXPECT_THAT(load_failure(directory, Code::invalid), HasSubstr("transformer.h.1."));
  fresh();
  rewrite_model(directory, "transformer.h.1.mlp.c_fc.weight", [](TensorView& tensor) {
    std::swap(tensor.shape[0], tensor.shape[1]);
    return true;
  });
  EXPECT_THAT(load_failure(directory, Code::invalid),
              HasSubstr("h.1.mlp.c_fc.weight: config.json needs the shape [16, 64], but the file "
                        "has [64, 16]"));
  fresh();
  rewrite_model(directory, "transformer.wpe.weight", [](TensorView&) { return false; });
  EXPECT_THAT(load_failure(directory, Code::invalid), HasSubstr("transformer.wpe.weight"));
  fresh();
  rewrite_model(directory, "transformer.ln_f.bias", [](TensorView& tensor) {
    tensor.dtype = Dtype::i32;
    return true;
  });
  EXPECT_THAT(load_failure(directory, Code::invalid), HasSubstr("I32"));
}

TEST_F(Checkpoint, RefusesConfigsThatItDoesNotCompute) {
  const fs::path directory = root_ / "model";
  ASSERT_TRUE(save_gpt2(directory, small, parameters_of(small, 1)));
  const std::string good = read(directory / "config.json");
  const auto failure = [&](std::string_view from, std::string_view to) {
    std::string text = good;
    EXPECT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
    write(directory / "config.json", text);
    return load_failure(directory, Code::invalid);
  };
  EXPECT_THAT(failure("\"gpt2\"", "\"llama\""), HasSubstr("model_type"));
  EXPECT_THAT(failure("gelu_new", "relu"), HasSubstr("activation_function"));
  EXPECT_THAT(failure("\"n_inner\": null", "\"n_inner\": 65"), HasSubstr("n_inner"));
  EXPECT_THAT(failure("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false"),
              HasSubstr("tie_word_embeddings"));
  EXPECT_THAT(failure("\"n_head\": 2", "\"n_head\": 3"), HasSubstr("n_head"));
  EXPECT_THAT(failure("\"n_head\": 2", "\"n_head\": \"2\""), HasSubstr("n_head"));
  EXPECT_THAT(failure("\"vocab_size\": 31,", ""), HasSubstr("vocab_size"));
  EXPECT_THAT(failure("{", "["), HasSubstr("not JSON"));
  fs::remove(directory / "config.json");
  EXPECT_THAT(load_failure(directory, Code::not_found), HasSubstr("config.json"));
}

}  // namespace
}  // namespace troupe::llm
