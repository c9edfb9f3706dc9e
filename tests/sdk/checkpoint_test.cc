// What save writes, load reads; whatever is wrong with it has a name.
#include "troupe/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

struct Both {
  void save(CheckpointWriter&) const {}
  void load(CheckpointReader&) {}
};
struct Changing {
  void save(CheckpointWriter&) {}
  void load(CheckpointReader&) {}
};
struct Half {
  void save(CheckpointWriter&) const {}
};
struct Other {  // Methods of the same names.
  void save(const std::string&) {}
  void load(int) {}
};
static_assert(Checkpointable<Both> && Checkpointable<Changing>);
static_assert(!Checkpointable<Half> && detail::is_half_checkpointable<Half>);
static_assert(!Checkpointable<Other> && !detail::is_half_checkpointable<Other>);

class SdkCheckpoint : public testing::Test {
 protected:
  SdkCheckpoint() {
    std::string pattern = "/tmp/troupe-state-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
  }
  ~SdkCheckpoint() override { fs::remove_all(folder); }

  template <class... Ts>
  void save(const Ts&... values) {
    CheckpointWriter out{folder};
    out.write(values...);
    out.finish();
  }
  // What it throws.
  static Error thrown(const std::function<void()>& work) {
    try {
      work();
    } catch (const Error& error) {
      return error;
    }
    return error(Code::ok, "nothing was thrown");
  }

  fs::path folder;
};

TEST_F(SdkCheckpoint, WhatIsWrittenIsRead) {
  const std::map<std::string, std::vector<double>> series{{"a", {1, 2.5}}, {"b", {}}};
  save(7, std::string("text"), series);
  std::ofstream{folder / "own"} << "a file of its own";
  CheckpointReader in{folder};
  int number = 0;
  std::string text;
  std::map<std::string, std::vector<double>> read;
  in.read(number, text);
  EXPECT_FALSE(in.at_end());
  in.read(read);
  EXPECT_TRUE(in.at_end());
  EXPECT_EQ(number, 7);
  EXPECT_EQ(text, "text");
  EXPECT_EQ(read, series);
  EXPECT_TRUE(fs::exists(in.folder() / "own"));
}

TEST_F(SdkCheckpoint, ReadingAnotherTypeOrMoreThanThereIsSaysWhich) {
  save(7, 8);
  CheckpointReader in{folder};
  int number = 0;
  std::string text;
  in.read(number);
  const Error other = thrown([&] { in.read(text); });
  EXPECT_EQ(other.code(), Code::data_loss);
  EXPECT_THAT(other.message(), HasSubstr("value 2"));
  CheckpointReader again{folder};
  again.read(number, number);
  const Error more = thrown([&] { again.read(number); });
  EXPECT_EQ(more.code(), Code::data_loss);
  EXPECT_THAT(more.message(), HasSubstr("load reads more than save wrote"));
}

TEST_F(SdkCheckpoint, OneThatIsCutShortAtAnyByteIsNeverReadAsWhole) {
  save(std::string("some text"), 7);
  const auto size = fs::file_size(folder / "values");
  for (uintmax_t left = 0; left < size; ++left) {
    fs::resize_file(folder / "values", left);
    CheckpointReader in{folder};
    std::string text;
    int number = 0;
    EXPECT_EQ(thrown([&] { in.read(text, number); }).code(), Code::data_loss) << left;
    save(std::string("some text"), 7);
  }
}

TEST_F(SdkCheckpoint, AFileThatIsNotThereIsAnError) {
  EXPECT_THAT(thrown([&] { CheckpointReader{folder}; }).message(), HasSubstr(folder.string()));
  EXPECT_THAT(thrown([&] { CheckpointWriter{folder / "missing"}; }).message(),
              HasSubstr("missing"));
}

TEST_F(SdkCheckpoint, AFullDiskIsExhausted) {
  fs::create_symlink("/dev/full", folder / "values");
  // At the end, or while it is written.
  EXPECT_EQ(thrown([&] { save(7); }).code(), Code::exhausted);
  EXPECT_EQ(thrown([&] { save(std::string(1 << 20, 'x')); }).code(), Code::exhausted);
}

TEST_F(SdkCheckpoint, ASoonOneIsForActorsOnly) {
  EXPECT_EQ(checkpoint_soon().error().code(), Code::invalid);
}

}  // namespace
}  // namespace troupe
