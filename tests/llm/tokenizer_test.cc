#include "llm/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <thread>

#include "base/random.h"
#include "llm/merge_table.h"
#include "llm/pre_tokenizer.h"
#include "llm/tokenizer_json.h"
#include "llm/unicode.h"

namespace troupe::llm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
namespace fs = std::filesystem;

const fs::path data_folder = TROUPE_TEST_DATA;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

Tokenizer golden_tokenizer() {
  auto tokenizer = Tokenizer::load(data_folder / "tokenizer.json");
  TROUPE_ASSERT(tokenizer, "golden tokenizer");
  return *tokenizer;
}

struct GoldenEntry {
  std::string text;
  std::vector<int32_t> ids;
};

constexpr size_t golden_encodings = 10'000;
constexpr size_t golden_decodings = 2'000;

std::vector<GoldenEntry> golden_entries() {
  const std::string file = read_file(data_folder / "encodings.bin");
  size_t at = 0;
  const auto u16 = [&] {
    uint16_t value = 0;
    std::memcpy(&value, &file.at(at + 1) - 1, 2);
    at += 2;
    return value;
  };
  std::vector<GoldenEntry> entries;
  while (at < file.size()) {
    GoldenEntry entry;
    const size_t size = u16();
    entry.text = file.substr(at, size);
    at += size;
    for (size_t left = u16(); left > 0; --left) entry.ids.push_back(u16());
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  while (!text.empty()) {
    const size_t size = first_word_bytes(text);
    words.emplace_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return words;
}

std::string random_bytes(Random& random, size_t size_max) {
  std::string bytes(random.below(size_max + 1), '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.below(256));
  return bytes;
}

std::string stream_decode(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const int32_t id : ids) {
    std::string piece = decoder.push(id);
    std::string rest = piece, valid;
    move_complete_chars(rest, valid);
    EXPECT_EQ(valid, piece) << "a piece is not UTF-8";
    text += piece;
  }
  return text + decoder.finish();
}

TEST(Tokenizer, EncodesAndDecodesLikeTheReference) {
  const Tokenizer tokenizer = golden_tokenizer();
  const auto entries = golden_entries();
  ASSERT_EQ(entries.size(), golden_encodings + golden_decodings);
  for (size_t i = 0; i < golden_encodings; ++i) {
    ASSERT_EQ(tokenizer.encode(entries[i].text), entries[i].ids) << i << ": " << entries[i].text;
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    ASSERT_EQ(tokenizer.decode(entries[i].ids), entries[i].text) << i;
    ASSERT_EQ(stream_decode(tokenizer, entries[i].ids), entries[i].text) << i;
  }
}

TEST(Tokenizer, AnyBytesRoundTrip) {
  const Tokenizer tokenizer = golden_tokenizer();
  SeededRandom random{3};
  for (int run = 0; run < 3000; ++run) {
    const std::string bytes = random_bytes(random, 40);
    const auto ids = tokenizer.encode(bytes);
    ASSERT_EQ(tokenizer.decode_bytes(ids), bytes);
    ASSERT_EQ(stream_decode(tokenizer, ids), tokenizer.decode(ids));
  }
  EXPECT_TRUE(tokenizer.encode("").empty());
  EXPECT_EQ(tokenizer.decode({}), "");
}

TEST(Tokenizer, SpecialTokensInTextAreTextUnlessAskedFor) {
  const Tokenizer tokenizer = golden_tokenizer();
  const int32_t eos = *tokenizer.eos_id();
  const std::string text = "the<|endoftext|> the";
  const auto plain = tokenizer.encode(text);
  EXPECT_EQ(std::ranges::count(plain, eos), 0);
  EXPECT_EQ(tokenizer.decode(plain), text);

  const auto parsed = tokenizer.encode(text, {.parse_special = true});
  std::vector<int32_t> expected = tokenizer.encode("the");
  expected.push_back(eos);
  expected.push_back(*tokenizer.token_to_id("Ġthe"));
  EXPECT_EQ(parsed, expected);
  EXPECT_EQ(tokenizer.decode(parsed), "the the");
  EXPECT_EQ(tokenizer.decode(parsed, {.skip_special = false}), text);
  EXPECT_EQ(tokenizer.decode_bytes(parsed), text);
}

TEST(Tokenizer, OrdinaryAddedTokensAreAlwaysFoundTheLongestFirst) {
  BpeVocabulary vocabulary = golden_tokenizer().vocabulary();
  const auto id = static_cast<int32_t>(vocabulary.tokens.size());
  vocabulary.tokens.insert(vocabulary.tokens.end(), {"<t>", "<t><u>", "two  spaces"});
  vocabulary.added.push_back({"<t>", id, false});
  vocabulary.added.push_back({"<t><u>", id + 1, false});
  vocabulary.added.push_back({"two  spaces", id + 2, false});
  const auto tokenizer = Tokenizer::make(std::move(vocabulary));
  ASSERT_TRUE(tokenizer);
  EXPECT_THAT(tokenizer->encode("<t><u><t><t><u>two  spaces"),
              ElementsAre(id + 1, id, id + 1, id + 2));
  EXPECT_EQ(tokenizer->decode(std::vector{id, id + 2}), "<t>two  spaces");
}

TEST(Tokenizer, LooksTokensUp) {
  const Tokenizer tokenizer = golden_tokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 1000);
  EXPECT_EQ(tokenizer.eos_id(), 0);
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(1));
  EXPECT_EQ(tokenizer.id_to_token(0), "<|endoftext|>");
  EXPECT_EQ(tokenizer.token_to_id("Ġ"), *tokenizer.token_to_id(tokenizer.id_to_token(221)));
  EXPECT_EQ(tokenizer.token_to_id("no such token"), std::nullopt);
  for (const int32_t id : {-1, 1000, INT32_MIN, INT32_MAX}) {
    EXPECT_EQ(tokenizer.id_to_token(id), "");
    EXPECT_EQ(tokenizer.token_bytes(id), "");
    EXPECT_FALSE(tokenizer.is_special(id));
    EXPECT_EQ(tokenizer.decode(std::vector{id}), "");
  }
}

TEST(Tokenizer, ThreadsShareOne) {
  const Tokenizer tokenizer = golden_tokenizer();
  const std::string text = read_file(data_folder / "train.txt").substr(0, 20'000);
  const auto expected = tokenizer.encode(text);
  std::vector<std::thread> threads;
  std::array<bool, 4> same{};
  for (bool& mine : same) {
    threads.emplace_back([&, copy = tokenizer] {
      mine = copy.encode(text) == expected && copy.decode(expected) == text;
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_THAT(same, testing::Each(true));
}

TEST(StreamDecoder, WaitsForWholeCharactersAndReplacesBrokenOnes) {
  const Tokenizer tokenizer = golden_tokenizer();
  const auto token = [&](uint8_t byte) {
    const char text = static_cast<char>(byte);
    return *tokenizer.token_to_id(spell_bytes({&text, 1}));
  };
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(token(0xe2)), "");
  EXPECT_EQ(decoder.push(token(0x82)), "");
  EXPECT_EQ(decoder.push(token(0xac)), "€");
  EXPECT_EQ(decoder.push(token(0xe2)), "");
  EXPECT_EQ(decoder.push(token('x')), "\xef\xbf\xbdx");
  EXPECT_EQ(decoder.push(token(0x80)), "\xef\xbf\xbd");
  EXPECT_EQ(decoder.push(token(0xf0)), "");
  EXPECT_EQ(decoder.push(token(0x9f)), "");
  EXPECT_EQ(decoder.finish(), "\xef\xbf\xbd");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(PreTokenizer, SplitsLikeTheRegularExpression) {
  EXPECT_THAT(words_of("Hello world's  end"), ElementsAre("Hello", " world", "'s", " ", " end"));
  EXPECT_THAT(words_of("we'll'LL '' 's"), ElementsAre("we", "'ll", "'", "LL", " ''", " '", "s"));
  EXPECT_THAT(words_of(" a\n\n b \n"), ElementsAre(" a", "\n\n", " b", " \n"));
  EXPECT_THAT(words_of("x12 34!?"), ElementsAre("x", "12", " 34", "!?"));
  EXPECT_THAT(words_of("\u00a0a\u3000\u3000b"),
              ElementsAre("\u00a0", "a", "\u3000", "\u3000", "b"));
  EXPECT_THAT(words_of("\tno"), ElementsAre("\t", "no"));
  EXPECT_THAT(words_of("日本2Ⅷ ß"), ElementsAre("日本", "2Ⅷ", " ß"));
  EXPECT_THAT(words_of("a\xff\xfe!b"), ElementsAre("a", "\xff\xfe!", "b"));
}

TEST(PreTokenizer, SpellsEveryByteAsItsOwnCharacter) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all.push_back(static_cast<char>(byte));
  EXPECT_EQ(bytes_of_spelling(spell_bytes(all)), all);
  EXPECT_EQ(spell_bytes(" the\n"), "ĠtheĊ");
  EXPECT_EQ(bytes_of_spelling("a b"), std::nullopt);
  EXPECT_EQ(bytes_of_spelling("日"), std::nullopt);
  EXPECT_EQ(bytes_of_spelling("\xff"), std::nullopt);
}

TEST(Unicode, ClassifiesTheEdgesOfRanges) {
  const std::map<char32_t, CharClass> samples{
      {'A', CharClass::letter},    {'@', CharClass::other},      {'0', CharClass::number},
      {' ', CharClass::space},     {0x1c, CharClass::other},     {0x85, CharClass::space},
      {0xa0, CharClass::space},    {0xaa, CharClass::letter},    {0xb2, CharClass::number},
      {0x300, CharClass::other},   {0x200b, CharClass::other},   {0x2028, CharClass::space},
      {0x2160, CharClass::number}, {0x3000, CharClass::space},   {0x4e00, CharClass::letter},
      {0x9fff, CharClass::letter}, {0xfeff, CharClass::other},   {0x1d7d8, CharClass::number},
      {0x1f600, CharClass::other}, {0x323af, CharClass::letter}, {0x323b0, CharClass::other},
      {0x10ffff, CharClass::other}};
  for (const auto& [code_point, expected] : samples) {
    EXPECT_EQ(char_class(code_point), expected) << std::hex << static_cast<uint32_t>(code_point);
  }
}

TEST(Unicode, Utf8RoundTripsAndRefusesWhatIsNot) {
  for (char32_t c = 0; c <= 0x10ffff; c += c < 0x3000 ? 1 : 61) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    append_utf8(text, c);
    const Utf8Char got = first_char(text + "x");
    ASSERT_EQ(got.state, Utf8Char::State::valid);
    ASSERT_EQ(got.code_point, c);
    ASSERT_EQ(got.size_bytes, text.size());
    if (text.size() > 1) {
      text.pop_back();
      ASSERT_EQ(first_char(text).state, Utf8Char::State::incomplete);
    }
  }
  for (const char* bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
                          "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80", "\xff"}) {
    EXPECT_EQ(first_char(bad).state, Utf8Char::State::invalid) << bad;
    EXPECT_EQ(first_char(bad).size_bytes, 1) << bad;
  }
  EXPECT_EQ(first_char("\xe2\x82x").size_bytes, 2);
}

// The definition of BPE, word for word.
std::vector<int32_t> merge_by_definition(const MergeTable& merges, std::vector<int32_t> ids) {
  while (true) {
    Merge best;
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const Merge merge = merges.find(ids[i], ids[i + 1]);
      if (merge.rank < best.rank) {
        best = merge;
        at = i;
      }
    }
    if (best.rank == Merge::no_rank) return ids;
    ids[at] = best.id;
    ids.erase(ids.begin() + static_cast<long>(at) + 1);
  }
}

TEST(MergeWord, ShortAndLongWordsFollowTheDefinition) {
  SeededRandom random{11};
  for (int run = 0; run < 300; ++run) {
    MergeTable merges(40);
    for (int32_t rank = 0; rank < 40; ++rank) {
      const auto token = [&] {
        return static_cast<int32_t>(random.below(4 + static_cast<uint64_t>(rank)));
      };
      merges.set(token(), token(), {rank, 4 + rank});
    }
    std::vector<int32_t> word(random.below(2) == 0 ? random.below(65) : 65 + random.below(300));
    for (int32_t& id : word) id = static_cast<int32_t>(random.below(4));
    const auto expected = merge_by_definition(merges, word);
    merge_word(merges, word);
    ASSERT_EQ(word, expected);
  }
}

class TokenizerFile : public testing::Test {
 protected:
  TokenizerFile() {
    std::string name = (fs::temp_directory_path() / "troupe-tokenizer-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    text_ = read_file(data_folder / "tokenizer.json");
  }
  ~TokenizerFile() override { fs::remove_all(folder_); }

  Result<Tokenizer> load(const std::string& text) {
    std::ofstream(folder_ / "t.json", std::ios::binary) << text;
    return Tokenizer::load(folder_ / "t.json");
  }
  std::string replaced(const std::string& from, const std::string& to) const {
    std::string text = text_;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  }
  void expect_error(const std::string& text, Code code, const std::string& message) {
    const auto tokenizer = load(text);
    ASSERT_FALSE(tokenizer) << message;
    EXPECT_EQ(tokenizer.error().code(), code) << tokenizer.error().message();
    EXPECT_THAT(tokenizer.error().message(), HasSubstr(message));
    EXPECT_THAT(tokenizer.error().message(), HasSubstr("t.json"));
  }

  fs::path folder_;
  std::string text_;
};

TEST_F(TokenizerFile, SavedAndLoadedItIsTheSame) {
  const Tokenizer first = golden_tokenizer();
  ASSERT_TRUE(first.save(folder_ / "saved.json"));
  const auto second = Tokenizer::load(folder_ / "saved.json");
  ASSERT_TRUE(second) << second.error().message();
  EXPECT_EQ(second->vocabulary().tokens, first.vocabulary().tokens);
  EXPECT_EQ(second->vocabulary().merges, first.vocabulary().merges);
  EXPECT_EQ(second->eos_id(), first.eos_id());
}

TEST_F(TokenizerFile, MergesMayBeStringsOrPairs) {
  const std::string pair = R"(["Ġ","t"])";
  const auto as_strings = load(replaced(pair, R"("Ġ t")"));
  ASSERT_TRUE(as_strings) << as_strings.error().message();
  EXPECT_EQ(as_strings->vocabulary().merges, golden_tokenizer().vocabulary().merges);
  for (const char* bad : {R"("Ġt")", R"("Ġ  t")", R"(["Ġ"])", R"(["Ġ","t","h"])", "7", R"("")"}) {
    expect_error(replaced(pair, bad), Code::invalid, "is not two tokens");
  }
}

TEST_F(TokenizerFile, WhatWouldChangeIdsIsRefused) {
  const auto unimplemented = Code::unimplemented;
  expect_error(replaced(R"("normalizer":null)", R"("normalizer":{"type":"NFC"})"), unimplemented,
               "a normalizer");
  expect_error(replaced(R"("add_prefix_space":false)", R"("add_prefix_space":true)"), unimplemented,
               "add_prefix_space");
  expect_error(replaced(R"("use_regex":true)", R"("use_regex":false)"), unimplemented, "use_regex");
  expect_error(
      replaced(R"("pre_tokenizer":{"type":"ByteLevel")", R"("pre_tokenizer":{"type":"Metaspace")"),
      unimplemented, "the pre_tokenizer 'Metaspace'");
  expect_error(replaced(R"("decoder":{"type":"ByteLevel")", R"("decoder":{"type":"WordPiece")"),
               unimplemented, "the decoder 'WordPiece'");
  expect_error(
      replaced(R"("post_processor":null)", R"("post_processor":{"type":"TemplateProcessing"})"),
      unimplemented, "the post_processor 'TemplateProcessing'");
  expect_error(replaced(R"("type":"BPE")", R"("type":"Unigram")"), unimplemented,
               "the model 'Unigram'");
  expect_error(replaced(R"("dropout":null)", R"("dropout":0.1)"), unimplemented, "dropout");
  expect_error(replaced(R"("ignore_merges":false)", R"("ignore_merges":true)"), unimplemented,
               "ignore_merges");
  expect_error(replaced(R"("end_of_word_suffix":null)", R"("end_of_word_suffix":"</w>")"),
               unimplemented, "end_of_word_suffix");
  expect_error(replaced(R"("lstrip":false)", R"("lstrip":true)"), unimplemented, "lstrip");
  EXPECT_TRUE(
      load(replaced(R"("post_processor":null)", R"("post_processor":{"type":"ByteLevel"})")));
  EXPECT_TRUE(load(replaced(R"("dropout":null)", R"("dropout":0.0)")));
  EXPECT_TRUE(load(replaced(R"("type":"BPE",)", "")));
}

TEST_F(TokenizerFile, DamageIsReported) {
  const auto invalid = Code::invalid;
  expect_error("", invalid, "not JSON");
  expect_error("[]", invalid, "not a JSON object");
  expect_error("{}", invalid, "no object 'pre_tokenizer'");
  expect_error(replaced(R"("vocab":{)", R"("vocab_":{)"), invalid, "no object 'vocab'");
  expect_error(replaced(R"("merges":[)", R"("merges_":[)"), invalid, "no array 'merges'");
  expect_error(replaced(R"("a":65)", R"("a":-1)"), invalid, "an id is not an integer");
  expect_error(replaced(R"("a":65)", R"("a":99999999)"), invalid, "an id is not an integer");
  expect_error(replaced(R"("a":65)", R"("a":66)"), invalid, "have one id, 66");
  expect_error(replaced(R"("~":94)", R"("~~":94)"), invalid, "byte 0x7e has no token");
  expect_error(replaced(R"("Ġt":)", R"("Ġt_":)"), invalid, "is not two tokens");
  expect_error(
      replaced(R"({"id":0,"content":"<|endoftext|>")", R"({"id":1,"content":"<|endoftext|>")"),
      invalid, "have one id, 1");
  EXPECT_EQ(Tokenizer::load(folder_ / "absent.json").error().code(), Code::not_found);
}

TEST_F(TokenizerFile, AFewIdsMayBeUnused) {
  const auto tokenizer = load(replaced(R"("a":65)", R"("a":3000)"));
  ASSERT_TRUE(tokenizer) << tokenizer.error().message();
  EXPECT_EQ(tokenizer->vocab_size(), 3001);
  EXPECT_EQ(tokenizer->id_to_token(2999), "");
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("a cat")), "a cat");
}

TEST_F(TokenizerFile, ASmallFileCannotAskForLargeTables) {
  // 1,000 tokens and their holes; 16,777,215 made two tables of as many strings, over 1 GiB.
  const std::string message = "an id is not an integer from 0 to 5096";
  expect_error(replaced(R"("a":65)", R"("a":16777215)"), Code::invalid, message);
  expect_error(replaced(R"("id":0,"content":"<|endoftext|>")", R"("id":5097,"content":"<x>")"),
               Code::invalid, message);
}

TEST_F(TokenizerFile, AHugeFileIsNotRead) {
  std::ofstream(folder_ / "t.json").close();
  fs::resize_file(folder_ / "t.json", (16u << 20) + 1);  // A hole: it takes no disk.
  const auto tokenizer = Tokenizer::load(folder_ / "t.json");
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().code(), Code::invalid);
  EXPECT_THAT(tokenizer.error().message(), HasSubstr("bytes are too many"));
}

TEST_F(TokenizerFile, TruncationNeverCrashes) {
  for (size_t size = 0; size < text_.size(); size += 97) {
    EXPECT_FALSE(parse_tokenizer_json(std::string_view(text_).substr(0, size)));
  }
}

TEST_F(TokenizerFile, RandomDamageNeverCrashes) {
  SeededRandom random{17};
  for (int run = 0; run < 500; ++run) {
    std::string broken = text_;
    for (uint64_t edits = 1 + random.below(3); edits > 0; --edits) {
      const size_t at = random.below(broken.size());
      switch (random.below(3)) {
        case 0:
          broken[at] = static_cast<char>(random.below(256));
          break;
        case 1:
          broken.erase(at, random.below(20));
          break;
        default:
          broken.insert(at, broken.substr(random.below(broken.size()), random.below(20)));
      }
    }
    auto vocabulary = parse_tokenizer_json(broken);
    if (!vocabulary) continue;
    const auto tokenizer = Tokenizer::make(std::move(*vocabulary));
    if (!tokenizer) continue;
    EXPECT_EQ(tokenizer->decode_bytes(tokenizer->encode(broken)), broken);
  }
}

TEST(TokenizerMake, RefusesMergesWithoutAResult) {
  BpeVocabulary vocabulary = golden_tokenizer().vocabulary();
  vocabulary.merges.emplace_back(33, 94);
  EXPECT_THAT(Tokenizer::make(vocabulary).error().message(), HasSubstr("which is no token"));
  vocabulary.merges.back() = {-1, 5000};
  EXPECT_THAT(Tokenizer::make(vocabulary).error().message(), HasSubstr("has no tokens"));
  vocabulary.merges.pop_back();
  vocabulary.added.push_back({"<x>", 5000, true});
  EXPECT_THAT(Tokenizer::make(vocabulary).error().message(), HasSubstr("is not token 5000"));
}

}  // namespace
}  // namespace troupe::llm
