#!/usr/bin/env python3
"""Writes unicode_tables.inc: the ranges of letters (L*), numbers (N*) and white space.

Usage: make_unicode_tables.py > unicode_tables.inc

The version of Unicode decides how a few rare scripts are split into words, hence into tokens. We
keep Unicode 16, which the regular expressions of Hugging Face `tokenizers` 0.23 use (compared over
every code point). Python's own unicodedata lags behind: `pip install unicodedata2==16.0.0`.
"""

import unicodedata2 as unicodedata

VERSION = "16.0.0"
# The characters of White_Space that are controls; all the others are in Zs, Zl and Zp.
CONTROL_SPACES = {0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85}


def category(code_point):
    return unicodedata.category(chr(code_point))


CLASSES = {
    "letter_ranges": lambda c: category(c)[0] == "L",
    "number_ranges": lambda c: category(c)[0] == "N",
    "space_ranges": lambda c: c in CONTROL_SPACES or category(c) in ("Zs", "Zl", "Zp"),
}


def ranges(predicate):
    found = []
    for code_point in filter(predicate, range(0x110000)):
        if found and found[-1][1] == code_point - 1:
            found[-1][1] = code_point
        else:
            found.append([code_point, code_point])
    return found


def main():
    assert unicodedata.unidata_version == VERSION, "see the usage above"
    print(f"// Made by make_unicode_tables.py from Unicode {VERSION}; do not edit.")
    print("// clang-format off")
    for name, predicate in CLASSES.items():
        items = [f"{{{first:#x},{last:#x}}}" for first, last in ranges(predicate)]
        print(f"constexpr CodePointRange {name}[] = {{")
        for start in range(0, len(items), 6):
            print("  " + ", ".join(items[start : start + 6]) + ",")
        print("};")
    print("// clang-format on")


if __name__ == "__main__":
    main()
