#!/usr/bin/env python3
"""Makes the golden data of tokenizer_test and bpe_trainer_test with Hugging Face `tokenizers`.

Usage: make_golden_tokenizer.py FOLDER   (needs `pip install tokenizers` and Debian's bible-kjv)

  train.txt       the text: the first books of the King James Bible (public domain), and made-up
                  sentences in many scripts
  tokenizer.json  1,000 tokens trained on it
  encodings.bin   10,000 random strings with their ids, then 2,000 random id sequences with the text
                  they decode to. Per entry: u16 bytes, UTF-8, u16 ids, u16 each; little-endian.
"""

import pathlib
import random
import struct
import subprocess
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

KJV_BYTES = 180_000
STRINGS = 10_000
ID_SEQUENCES = 2_000

WORDS = """
naïve café façade über straße Größe señor mañana coração não ça œuvre łódź žlutý kůň İstanbul ığdır
Привет мир это слово и ещё раз снова Ελληνικά λόγος και πάλι καλημέρα שלום עולם مرحبا بالعالم
السلام हिन्दी में नमस्ते दुनिया বাংলা ভাষা தமிழ் மொழி ไทย ภาษา สวัสดี 한국어 안녕하세요 세계
日本語 こんにちは 世界 カタカナ 中文 你好 世界 漢字 ქართული გამარჯობა հայերեն ትግርኛ ខ្មែរ မြန်မာ
😀 😂 🎉 👩‍👩‍👧‍👦 🇫🇷 👍🏽 ❤️ ∑ ∫ √ ≤ € £ ½ Ⅷ ² ٣ ९ 𝔘 𝟜 𐍈
I'm you're he's we've they'll I'd don't it's O'Neil 'tis rock'n'roll 1984 3.14159 100,000 2nd
foo_bar(x+1); #include <vector> https://example.org/a?b=c&d=e user@example.org C++20 !!! ... -- ***
""".split()

# First and last code points to draw from, by weight.
BLOCKS = [
    (0x20, 0x7E, 30), (0x61, 0x7A, 20), (0x00, 0x1F, 3), (0x7F, 0xFF, 6), (0x100, 0x24F, 4),
    (0x300, 0x36F, 2), (0x370, 0x3FF, 3), (0x400, 0x4FF, 5), (0x590, 0x5FF, 3), (0x600, 0x6FF, 3),
    (0x900, 0x97F, 3), (0xE00, 0xE7F, 3), (0x1100, 0x11FF, 1), (0x1E00, 0x1EFF, 1),
    (0x2000, 0x206F, 4), (0x2070, 0x209F, 1), (0x20A0, 0x20CF, 1), (0x2150, 0x218F, 1),
    (0x2200, 0x22FF, 1), (0x3000, 0x303F, 2), (0x3040, 0x30FF, 3), (0x4E00, 0x9FFF, 6),
    (0xAC00, 0xD7A3, 3), (0xE000, 0xE0FF, 1), (0xFE00, 0xFFFF, 2), (0x10000, 0x1FFFF, 4),
    (0x1F300, 0x1FAFF, 5), (0x20000, 0x2A6DF, 1), (0xE0000, 0x10FFFF, 1),
]
SPACES = [" "] * 8 + ["\n"] * 3 + list("\t\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b")
ENDINGS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "'", "''s", " 's", "'x"]


def training_text(rng):
    kjv = subprocess.run(["bible", "-f", "ge1:1-ex40:38"], capture_output=True, text=True,
                         check=True, stdin=subprocess.DEVNULL).stdout[:KJV_BYTES]
    lines = []
    for _ in range(600):
        lines.append(" ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 12))))
    return kjv + "\n" + "\n".join(lines) + "\n"


def random_char(rng):
    first, last, _ = rng.choices(BLOCKS, [weight for *_, weight in BLOCKS])[0]
    code_point = rng.randint(first, last)
    return "?" if 0xD800 <= code_point < 0xE000 else chr(code_point)


def random_piece(rng, words):
    kind = rng.random()
    if kind < 0.35:
        return rng.choice(words)
    if kind < 0.50:
        return rng.choice(WORDS)
    if kind < 0.70:
        return "".join(rng.choice(SPACES) for _ in range(rng.choice([1, 1, 1, 2, 3, 5])))
    if kind < 0.80:
        return rng.choice(ENDINGS)
    return "".join(random_char(rng) for _ in range(rng.randint(1, 8)))


def random_string(rng, words):
    if rng.random() < 0.005:  # Long words take another path.
        return rng.choice(["a", "ab", "the", " ", "日", "!?"]) * rng.randint(40, 120)
    space = rng.choice(["", " "])
    return space.join(random_piece(rng, words) for _ in range(rng.randint(0, 9)))


def entry(text, ids):
    data = text.encode()
    return (struct.pack("<H", len(data)) + data + struct.pack("<H", len(ids)) +
            struct.pack(f"<{len(ids)}H", *ids))


def main():
    folder = pathlib.Path(sys.argv[1])
    rng = random.Random(1611)
    text = training_text(rng)
    (folder / "train.txt").write_bytes(text.encode())

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=["<|endoftext|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)

    words = text.split()
    with open(folder / "encodings.bin", "wb") as out:
        for _ in range(STRINGS):
            string = random_string(rng, words)
            ids = tokenizer.encode(string).ids
            assert tokenizer.decode(ids) == string
            out.write(entry(string, ids))
        for _ in range(ID_SEQUENCES):
            # Mostly byte tokens: invalid UTF-8 of every kind. Some special, some unknown.
            ids = [rng.choice([rng.randint(0, 256), rng.randint(95, 256), rng.randint(0, 1005)])
                   for _ in range(rng.randint(0, 12))]
            out.write(entry(tokenizer.decode(ids), ids))


if __name__ == "__main__":
    main()
