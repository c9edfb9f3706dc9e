#include "llm/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>

#include "base/bytes.h"
#include "llm/atomic_file.h"
#include "llm/gpt2_json.h"
#include "llm/replace_directory.h"
#include "llm/safetensors.h"

namespace troupe::llm {
namespace {

namespace fs = std::filesystem;

constexpr const char* config_file = "config.json";
constexpr const char* generation_file = "generation_config.json";
constexpr const char* model_file = "model.safetensors";
constexpr const char* optimizer_file = "optimizer.safetensors";
constexpr std::string_view prefix = "transformer.";
// The trainer's words, among the metadata that readers of other makes see.
constexpr std::string_view progress_prefix = "progress.";
constexpr uintmax_t config_bytes_max = 16u << 20;

Result<std::string> read_text(const fs::path& path) {
  std::error_code failed;
  const uintmax_t size = fs::file_size(path, failed);
  if (failed) return file_error(path, "read", failed.value());
  if (size > config_bytes_max) {
    return error(Code::invalid, fmt::format("{}: {} bytes are too many", path.string(), size));
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (!file) return file_error(path, "read", EIO);
  return text;
}

Status write_text(const fs::path& path, std::string_view text) {
  TROUPE_TRY(AtomicFile file, AtomicFile::create(path));
  TROUPE_CHECK(file.append(as_bytes(text)));
  return file.commit();
}

float float_from_f16(uint16_t bits) {
  const float sign = (bits & 0x8000) != 0 ? -1.0f : 1.0f;
  const uint32_t exponent = (bits >> 10) & 31;
  const uint32_t fraction = bits & 0x3ff;
  if (exponent == 0) return sign * static_cast<float>(fraction) * 0x1p-24f;
  const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return sign * std::bit_cast<float>(wide << 23 | fraction << 13);
}

// Bytes need not be aligned in files of other makers.
template <class Bits, class Convert>
void convert_each(std::span<const uint8_t> bytes, float* out, const Convert& convert) {
  for (size_t i = 0; i < bytes.size() / sizeof(Bits); ++i) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i * sizeof(Bits), sizeof(Bits));
    out[i] = convert(bits);
  }
}

Status check_tensor(const TensorView& tensor, std::span<const int64_t> shape) {
  if (!std::ranges::equal(tensor.shape, shape)) {
    return error(Code::invalid,
                 fmt::format("tensor {}: config.json needs the shape {}, but the file has {}",
                             tensor.name, shape, tensor.shape));
  }
  if (tensor.dtype != Dtype::f32 && tensor.dtype != Dtype::f16 && tensor.dtype != Dtype::bf16) {
    return error(Code::invalid, fmt::format("tensor {}: {} is no type of weights (F32, F16, BF16)",
                                            tensor.name, dtype_name(tensor.dtype)));
  }
  return ok();
}

// A checked tensor's values.
void read_tensor(const TensorView& tensor, float* out) {
  if (tensor.dtype == Dtype::f32) {
    std::memcpy(out, tensor.bytes.data(), tensor.bytes.size());
  } else if (tensor.dtype == Dtype::f16) {
    convert_each<uint16_t>(tensor.bytes, out, float_from_f16);
  } else {
    convert_each<uint16_t>(tensor.bytes, out, [](uint16_t bits) {
      return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
    });
  }
}

// Old files keep attention's causal mask as a tensor.
bool is_mask(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
}

// GPT2LMHeadModel prefixes its names, GPT2Model does not.
const Parameter* find_parameter(const Gpt2Layout& layout, std::string_view name) {
  if (const Parameter* parameter = layout.find(name)) return parameter;
  return layout.find(std::string(prefix) + std::string(name));
}

using Matches = std::map<const Parameter*, const TensorView*>;

// The tensor of every parameter, all checked: only then is it worth allocating what the config
// asks for.
Result<Matches> match(const SafetensorsFile& file, const Gpt2Layout& layout) {
  Matches matches;
  for (const TensorView& tensor : file.tensors()) {
    if (is_mask(tensor.name)) continue;
    if (tensor.name == "lm_head.weight") continue;  // Tied: the same as wte.
    const Parameter* parameter = find_parameter(layout, tensor.name);
    if (parameter == nullptr) {
      return error(Code::invalid,
                   fmt::format("tensor {} of shape {}: config.json describes no such tensor",
                               tensor.name, tensor.shape));
    }
    TROUPE_CHECK(check_tensor(tensor, parameter->shape));
    if (!matches.emplace(parameter, &tensor).second) {
      return error(Code::invalid,
                   fmt::format("tensor {} is there with and without its prefix", parameter->name));
    }
  }
  for (const Parameter& parameter : layout.parameters()) {
    if (matches.contains(&parameter)) continue;
    return error(Code::invalid,
                 fmt::format("tensor {} of shape {} is missing", parameter.name, parameter.shape));
  }
  return matches;
}

TensorView view_of(std::string name, std::span<const float> values, std::vector<int64_t> shape) {
  return {std::move(name),
          Dtype::f32,
          std::move(shape),
          {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()}};
}

Status write_model(const fs::path& path, const Gpt2Layout& layout,
                   std::span<const float> parameters) {
  std::vector<TensorView> tensors;
  for (const Parameter& p : layout.parameters()) {
    tensors.push_back(view_of(p.name, parameters.subspan(p.offset, p.count), p.shape));
  }
  return write_safetensors(path, tensors, {{"format", "pt"}});
}

Status write_training(const fs::path& path, const TrainingState& state) {
  const AdamWState& adamw = state.optimizer;
  std::map<std::string, std::string> metadata{{"step", std::to_string(adamw.step)}};
  for (const auto& [key, value] : state.progress) {
    metadata[std::string(progress_prefix) + key] = value;
  }
  const TensorView tensors[] = {view_of("m", adamw.m, {static_cast<int64_t>(adamw.m.size())}),
                                view_of("v", adamw.v, {static_cast<int64_t>(adamw.v.size())})};
  return write_safetensors(path, tensors, metadata);
}

// A name in the directory itself, and none of those that this code writes.
Status check_file_name(const std::string& name) {
  const std::set<std::string_view> taken{config_file, generation_file, model_file, optimizer_file};
  if (!name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
      !taken.contains(name)) {
    return ok();
  }
  return error(Code::invalid, fmt::format("\"{}\" cannot be a checkpoint's extra file", name));
}

}  // namespace

Result<Gpt2Config> load_gpt2_config(const fs::path& directory) {
  TROUPE_TRY(const std::string text, read_text(directory / config_file));
  auto config = gpt2_config_from_json(text);
  if (!config) return std::move(config).error().context(directory.string());
  return config;
}

Result<Gpt2Checkpoint> load_gpt2(const fs::path& directory) {
  Gpt2Checkpoint checkpoint;
  TROUPE_TRY(checkpoint.config, load_gpt2_config(directory));
  TROUPE_TRY(const SafetensorsFile file, SafetensorsFile::open(directory / model_file));
  const Gpt2Layout layout(checkpoint.config);
  auto matches = match(file, layout);
  if (!matches) return std::move(matches).error().context((directory / model_file).string());
  checkpoint.parameters.resize(layout.total());
  for (const auto& [parameter, tensor] : *matches) {
    read_tensor(*tensor, checkpoint.parameters.data() + parameter->offset);
  }
  return checkpoint;
}

Result<TrainingState> load_training_state(const fs::path& directory) {
  const fs::path path = directory / optimizer_file;
  TROUPE_TRY(const SafetensorsFile file, SafetensorsFile::open(path));
  TrainingState state;
  const auto read = [&](const char* name, std::vector<float>& out) -> Status {
    TROUPE_TRY(const TensorView tensor, file.find(name));
    if (tensor.shape.size() != 1) return error(Code::invalid, "not a flat tensor");
    TROUPE_CHECK(check_tensor(tensor, tensor.shape));
    out.resize(static_cast<size_t>(tensor.shape[0]));
    read_tensor(tensor, out.data());
    return ok();
  };
  for (const auto& [name, out] : {std::pair{"m", &state.optimizer.m}, {"v", &state.optimizer.v}}) {
    if (const Status done = read(name, *out); !done) {
      return error(Code::invalid, fmt::format("{}: not a training state: {}: {}", path.string(),
                                              name, done.error().message()));
    }
  }
  for (const auto& [key, value] : file.metadata()) {
    if (key.starts_with(progress_prefix)) {
      state.progress[key.substr(progress_prefix.size())] = value;
    }
  }
  const auto step = file.metadata().find("step");
  const std::string digits = step != file.metadata().end() ? step->second : "";
  const auto parsed =
      std::from_chars(digits.data(), digits.data() + digits.size(), state.optimizer.step);
  if (parsed.ec != std::errc{} || parsed.ptr != digits.data() + digits.size()) {
    return error(Code::invalid,
                 fmt::format("{}: not a training state: step is \"{}\"", path.string(), digits));
  }
  return state;
}

Status save_gpt2(const fs::path& directory, const Gpt2Config& config,
                 std::span<const float> parameters, const Gpt2SaveExtras& extras) {
  TROUPE_CHECK(config.validate());
  const Gpt2Layout layout(config);
  if (parameters.size() != layout.total()) {
    return error(Code::invalid,
                 fmt::format("{} parameters for a model of {}", parameters.size(), layout.total()));
  }
  for (const auto& [name, content] : extras.files) TROUPE_CHECK(check_file_name(name));

  TROUPE_TRY(DirectoryReplacement replacement, DirectoryReplacement::create(directory));
  const fs::path& staging = replacement.staging();
  TROUPE_CHECK(write_text(staging / config_file, gpt2_config_to_json(config, extras.eos_token_id)));
  TROUPE_CHECK(
      write_text(staging / generation_file, generation_config_to_json(extras.eos_token_id)));
  for (const auto& [name, content] : extras.files) {
    TROUPE_CHECK(write_text(staging / name, content));
  }
  TROUPE_CHECK(write_model(staging / model_file, layout, parameters));
  if (extras.training != nullptr) {
    TROUPE_CHECK(write_training(staging / optimizer_file, *extras.training));
  }
  // The old optimizer's state would not belong to this model.
  return replacement.commit({optimizer_file});
}

}  // namespace troupe::llm
