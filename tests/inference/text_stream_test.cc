#include "inference/text_stream.h"

#include <gtest/gtest.h>

#include "llm/bpe_trainer.h"

namespace troupe::inference {
namespace {

// One token a byte, so that every border falls between tokens.
const llm::Tokenizer& byte_tokenizer() {
  static const llm::Tokenizer made = llm::train_bpe("", {.vocab_size = 257}).value();
  return made;
}

struct Seen {
  std::string text;
  bool stopped;
};

// Feeds byte by byte; `visible` of each prefix must never have to be taken back.
Seen stream(const std::string& text, std::vector<std::string> stops) {
  TextStream stream(byte_tokenizer(), std::move(stops));
  std::string seen;
  for (const int32_t token : byte_tokenizer().encode(text)) {
    seen += stream.push(token);
    if (stream.stopped()) return {seen, true};
  }
  seen += stream.finish();
  return {seen, stream.stopped()};
}

TEST(TextStream, StopsOverTokenBorders) {
  const Seen seen = stream("one two three", {"wo th"});
  EXPECT_TRUE(seen.stopped);
  EXPECT_EQ(seen.text, "one t");
}

TEST(TextStream, HoldsBackOnlyWhatMayBecomeAStop) {
  TextStream stream(byte_tokenizer(), {"\nUser:"});
  std::string seen;
  for (const int32_t token : byte_tokenizer().encode("a\nUs")) seen += stream.push(token);
  EXPECT_EQ(seen, "a");
  for (const int32_t token : byte_tokenizer().encode("e!")) seen += stream.push(token);
  EXPECT_EQ(seen, "a\nUse!");
}

TEST(TextStream, GivesAnUnfinishedStopAtTheEnd) {
  const Seen seen = stream("so\nUser", {"\nUser:"});
  EXPECT_FALSE(seen.stopped);
  EXPECT_EQ(seen.text, "so\nUser");
}

TEST(TextStream, FindsAStopBehindAFalseBeginning) {
  EXPECT_EQ(stream("aaab", {"aab"}).text, "a");
  EXPECT_TRUE(stream("aaab", {"aab"}).stopped);
}

TEST(TextStream, TheStopThatEndsFirstCounts) {
  EXPECT_EQ(stream("abcd", {"abcd", "bc"}).text, "a");
  EXPECT_EQ(stream("abc", {"bc", "abc"}).text, "");
}

TEST(TextStream, NeverSplitsACharacter) {
  TextStream stream(byte_tokenizer(), {"x"});
  const auto tokens = byte_tokenizer().encode("é€");
  ASSERT_EQ(tokens.size(), 5u);
  const std::vector<std::string> expected{"", "é", "", "", "€"};
  for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(stream.push(tokens[i]), expected[i]);
}

TEST(TextStream, AnUnfinishedCharacterBecomesTheReplacement) {
  EXPECT_EQ(stream("a\xe2\x82", {"zz"}).text, "a\uFFFD");
}

}  // namespace
}  // namespace troupe::inference
