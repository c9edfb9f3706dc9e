#!/bin/sh
# Writes the King James Version of the Bible to OUT as plain text: one verse a line, an empty line
# between chapters. Its text is in the public domain (1611; see the package's copyright file).
# Needs the Debian packages bible-kjv and bible-kjv-text.
set -eu

if [ $# -ne 1 ]; then
  echo "usage: $0 OUT" >&2
  exit 2
fi
if ! command -v bible >/dev/null || [ ! -r /usr/lib/bible.data ]; then
  echo "$0: the text is not installed: apt-get install bible-kjv bible-kjv-text" >&2
  exit 1
fi
part="$1.part"
trap 'rm -f "$part"' EXIT
# Each line is "Ge1:1 In the beginning ...": the reference goes, a new chapter gets an empty line.
bible -f 'Gen1:1-Rev22:21' </dev/null | awk '
  {
    chapter = $1
    sub(/:.*/, "", chapter)
    if (NR > 1 && chapter != last) print ""
    last = chapter
    sub(/^[^ ]+ /, "")
    print
  }' >"$part"
verses=$(grep -c . "$part" || true)
if [ "$verses" -ne 31102 ]; then
  echo "$0: bible gave $verses verses, not 31102" >&2
  exit 1
fi
mv "$part" "$1"
echo "King James Version, public domain: $verses verses in $1" >&2
