#include "llm/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "base/random.h"

namespace troupe::llm {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class Safetensors : public testing::Test {
 protected:
  Safetensors() {
    std::string name = (fs::temp_directory_path() / "troupe-safetensors-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    path_ = folder_ / "model.safetensors";
  }
  ~Safetensors() override { fs::remove_all(folder_); }

  // A file with this header and so many zero bytes of data.
  Result<SafetensorsFile> open_header(const std::string& header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::string content(8, '\0');
    std::memcpy(content.data(), &length, 8);
    return open_content(content + header + std::string(data_bytes, '\0'));
  }
  Result<SafetensorsFile> open_content(const std::string& content) {
    store(content);
    return SafetensorsFile::open(path_);
  }
  void store(const std::string& content) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << content;
  }
  std::string content() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  size_t files_in_folder() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), {}));
  }
  void expect_damaged(const std::string& header, size_t data_bytes, const std::string& why) {
    SCOPED_TRACE(header);
    const auto file = open_header(header, data_bytes);
    ASSERT_FALSE(file);
    EXPECT_EQ(file.error().code(), Code::data_loss) << file.error().message();
    EXPECT_THAT(file.error().message(), HasSubstr(why));
    EXPECT_THAT(file.error().message(), HasSubstr(path_.string()));
  }

  fs::path folder_;
  fs::path path_;
};

std::vector<uint8_t> counting(size_t size, uint8_t first) {
  std::vector<uint8_t> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(first + i);
  return bytes;
}

// The two-tensor file that the corruption tests start from.
Status write_small(const fs::path& path) {
  const auto a = counting(12, 1);
  const auto b = counting(6, 100);
  return write_safetensors(
      path, std::vector<TensorView>{{"b", Dtype::bf16, {3}, b}, {"a", Dtype::f32, {1, 3}, a}},
      {{"format", "pt"}});
}

TEST_F(Safetensors, WhatIsWrittenIsReadBack) {
  const std::vector<Dtype> all{Dtype::boolean, Dtype::u8,  Dtype::i8,   Dtype::i16, Dtype::i32,
                               Dtype::i64,     Dtype::f16, Dtype::bf16, Dtype::f32, Dtype::f64};
  std::vector<std::vector<uint8_t>> storage;
  std::vector<TensorView> views;
  for (const Dtype dtype : all) {
    const auto size = static_cast<size_t>(15 * dtype_size_bytes(dtype));
    storage.push_back(counting(size, static_cast<uint8_t>(size)));
    views.push_back({"w." + std::string(dtype_name(dtype)), dtype, {3, 5}, storage.back()});
  }
  views.push_back({"scalar \"quoted\" \xc3\xa9", Dtype::f32, {}, std::span(storage[8]).first(4)});
  views.push_back({"empty", Dtype::f32, {0, 7}, {}});
  const std::map<std::string, std::string> metadata{{"step", "12"}, {"note", "a\nb"}};
  ASSERT_TRUE(write_safetensors(path_, views, metadata));

  auto opened = SafetensorsFile::open(path_);
  ASSERT_TRUE(opened) << opened.error().message();
  const SafetensorsFile file = std::move(*opened);
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), views.size());
  for (const TensorView& want : views) {
    const auto got = file.find(want.name);
    ASSERT_TRUE(got) << want.name;
    EXPECT_EQ(got->dtype, want.dtype);
    EXPECT_EQ(got->shape, want.shape);
    EXPECT_TRUE(std::ranges::equal(got->bytes, want.bytes)) << want.name;
    const auto address = reinterpret_cast<uintptr_t>(got->bytes.data());
    EXPECT_EQ(address % static_cast<uintptr_t>(dtype_size_bytes(want.dtype)), 0U) << want.name;
  }
  EXPECT_EQ(file.find("absent").error().code(), Code::not_found);
}

TEST_F(Safetensors, BytesAreThoseOfTheFormat) {
  const auto bytes = counting(4, 1);
  ASSERT_TRUE(write_safetensors(path_, std::vector<TensorView>{{"x", Dtype::i16, {2}, bytes}}, {}));
  const std::string header = R"({"x":{"dtype":"I16","shape":[2],"data_offsets":[0,4]}})";
  const std::string want = std::string("\x38\0\0\0\0\0\0\0", 8) + header + "  \x01\x02\x03\x04";
  EXPECT_EQ(content(), want);
}

TEST_F(Safetensors, AFileWithoutTensorsIsFine) {
  ASSERT_TRUE(write_safetensors(path_, {}, {}));
  const auto file = SafetensorsFile::open(path_);
  ASSERT_TRUE(file);
  EXPECT_TRUE(file->tensors().empty());
}

TEST_F(Safetensors, EveryTruncationIsReported) {
  ASSERT_TRUE(write_small(path_));
  const std::string whole = content();
  ASSERT_TRUE(open_content(whole));
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto file = open_content(whole.substr(0, size));
    ASSERT_FALSE(file) << size;
    EXPECT_EQ(file.error().code(), Code::data_loss) << size;
  }
  const auto longer = open_content(whole + "x");
  ASSERT_FALSE(longer);
  EXPECT_THAT(longer.error().message(), HasSubstr("bytes too many"));
}

// Any outcome but a crash or a view outside the file: a flip inside a name cannot be seen.
TEST_F(Safetensors, FlippedHeaderBitsNeverCrash) {
  ASSERT_TRUE(write_small(path_));
  const std::string whole = content();
  const size_t header_end = whole.size() - 18;
  size_t refused = 0;
  for (size_t bit = 0; bit < header_end * 8; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const auto file = open_content(flipped);
    if (!file) {
      ++refused;
      continue;
    }
    unsigned sum = 0;
    for (const TensorView& tensor : file->tensors()) {
      for (const uint8_t byte : tensor.bytes) sum += byte;
    }
    EXPECT_EQ(sum, 12 * 13 / 2 + 6 * 100 + 15U);
  }
  EXPECT_GT(refused, header_end * 8 / 2);
}

TEST_F(Safetensors, RandomCorruptionNeverCrashes) {
  ASSERT_TRUE(write_small(path_));
  const std::string whole = content();
  SeededRandom random{7};
  for (int run = 0; run < 2000; ++run) {
    std::string broken = whole;
    for (uint64_t edits = 1 + random.below(4); edits > 0; --edits) {
      const size_t at = random.below(broken.size());
      const char byte = static_cast<char>(random.below(256));
      switch (random.below(3)) {
        case 0:
          broken[at] = byte;
          break;
        case 1:
          broken.insert(broken.begin() + static_cast<long>(at), byte);
          break;
        default:
          broken.erase(at, 1);
      }
    }
    const auto file = open_content(broken);
    if (file) continue;
    EXPECT_FALSE(file.error().message().empty());
  }
}

TEST_F(Safetensors, EachKindOfDamageHasItsReason) {
  expect_damaged("", 0, "does not start with '{'");
  expect_damaged(" {}", 0, "does not start with '{'");
  expect_damaged("[1]", 0, "does not start with '{'");
  expect_damaged("{", 0, "not JSON");
  expect_damaged("{}x", 0, "not JSON");
  expect_damaged("{\"\xff\":1}", 0, "not JSON");
  expect_damaged(std::string(200, '{'), 0, "not JSON");
  expect_damaged("{}", 3, "bytes too many");
  expect_damaged(R"({"a":1})", 0, "tensor 'a': ");
  expect_damaged(R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1, "no dtype");
  expect_damaged(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", 1, "no dtype");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1, "besides");
  expect_damaged(R"({"a":{"dtype":"U8","data_offsets":[0,1],"x":1}})", 1, "array of integers");
  expect_damaged(R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "array of integers");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "negative");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "not an integer");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1,
                 "begin and an end");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}})", 1, "begin and an end");
  expect_damaged(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "does not make 4");
  expect_damaged(R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
                 "does not make 0");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
                 "does not make 0");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,1]}})", 1,
                 "too large");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", 7, "it is truncated");
  expect_damaged(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[9223372036854775806,)"
                 R"(9223372036854775807]}})",
                 1, "follows a hole");
  const std::string a = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)";
  expect_damaged(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})", 7, "overlaps");
  expect_damaged(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 4, "overlaps");
  expect_damaged(a + R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})", 9, "a hole");
  expect_damaged(a + R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 8, "'a' twice");
  expect_damaged(a + R"("\u0061":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})", 8, "twice");
  expect_damaged(a + R"("__metadata__":[]})", 4, "__metadata__ is not");
  expect_damaged(a + R"("__metadata__":{"n":1}})", 4, "not a string");
  EXPECT_TRUE(open_header(a + R"("__metadata__":{}})", 4));
}

TEST_F(Safetensors, ALyingHeaderLengthIsRefused) {
  auto file = open_content(std::string(8, '\xff') + "{}");
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message(), HasSubstr("claims a header"));
  file = open_content(std::string("\x03\0\0\0\0\0\0\0", 8) + "{}");
  ASSERT_FALSE(file);
  EXPECT_THAT(file.error().message(), HasSubstr("truncated inside its header (2 of 3 bytes)"));
}

TEST_F(Safetensors, AnUnknownDtypeIsNamed) {
  const auto file = open_header(R"({"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", 1);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code(), Code::unimplemented);
  EXPECT_THAT(file.error().message(), HasSubstr("tensor 'a': dtype 'F8_E4M3'"));
}

TEST_F(Safetensors, OpenTellsMissingFilesAndFoldersApart) {
  EXPECT_EQ(SafetensorsFile::open(path_).error().code(), Code::not_found);
  EXPECT_EQ(SafetensorsFile::open(folder_).error().code(), Code::invalid);
}

TEST_F(Safetensors, TheWriterRefusesWhatTheReaderWould) {
  ASSERT_TRUE(write_small(path_));
  const std::string before = content();
  const auto bytes = counting(4, 0);
  const TensorView good{"a", Dtype::f32, {1}, bytes};
  const std::vector<std::vector<TensorView>> wrong{{good, good},
                                                   {{"a", Dtype::f32, {2}, bytes}},
                                                   {{"a", Dtype::f32, {-1}, bytes}},
                                                   {{"\xff", Dtype::f32, {1}, bytes}},
                                                   {{"__metadata__", Dtype::f32, {1}, bytes}}};
  for (const auto& tensors : wrong) {
    const auto status = write_safetensors(path_, tensors, {});
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code(), Code::invalid) << status.error().message();
  }
  EXPECT_EQ(write_safetensors(path_, {}, {{"k", "\xff"}}).error().code(), Code::invalid);
  EXPECT_EQ(write_safetensors(folder_ / "no" / "x", {}, {}).error().code(), Code::not_found);
  EXPECT_EQ(content(), before);
  EXPECT_EQ(files_in_folder(), 1U);
}

TEST_F(Safetensors, AFailedWriteKeepsTheOldFileAndLeavesNothing) {
  ASSERT_TRUE(write_small(path_));
  const std::string before = content();
  // A file-size limit stands for the full disk: the write fails half-way.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const rlimit small{64 * 1024, old_limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::vector<uint8_t> large(1 << 20);
  const auto status =
      write_safetensors(path_, std::vector<TensorView>{{"a", Dtype::u8, {1 << 20}, large}}, {});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::exhausted) << status.error().message();
  EXPECT_THAT(status.error().message(), HasSubstr("free disk space"));
  EXPECT_EQ(content(), before);
  EXPECT_EQ(files_in_folder(), 1U);
}

TEST_F(Safetensors, ReplacingAFileLeavesAnOpenOneIntact) {
  ASSERT_TRUE(write_small(path_));
  const auto old_file = SafetensorsFile::open(path_);
  ASSERT_TRUE(old_file);
  ASSERT_TRUE(write_safetensors(path_, {}, {}));
  EXPECT_EQ(old_file->find("b")->bytes[0], 100);
  EXPECT_TRUE(SafetensorsFile::open(path_)->tensors().empty());
}

}  // namespace
}  // namespace troupe::llm
