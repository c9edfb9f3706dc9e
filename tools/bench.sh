#!/usr/bin/env bash
# tools/bench.sh AREA [--json FILE]: builds and runs the benchmarks of bench/AREA. Each prints rows
# {"name", "value", "unit", ...}, one a line; the list of them goes to FILE, else to standard output.
set -euo pipefail
cd "$(dirname "$0")/.."

usage="usage: tools/bench.sh AREA [--json FILE]"
area=${1:?$usage}
shift
json=
while [ $# -gt 0 ]; do
  case "$1" in
    --json) json=${2:?$usage}; shift ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift
done
if [ ! -f "bench/$area/CMakeLists.txt" ]; then
  echo "no benchmarks in bench/$area; there are: $(cd bench && ls -d */ | tr -d '/' | tr '\n' ' ')" >&2
  exit 2
fi
bash tools/install-deps.sh >&2
cmake --preset release > /dev/null
cmake --build --preset release --target "bench/$area/all" >&2

# The folder's target lists its programs.
programs=$(ninja -C build/release -t query "bench/$area/all" | awk '/outputs:/ {exit} $1 ~ /^bench\/[^\/]+$/ {print $1}')
[ -n "$programs" ] || { echo "bench/$area builds no program" >&2; exit 1; }
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
take_rows() { # The rows among what a program prints. Fails if there is none, or one lacks a key.
  awk '!/^\{/ { next }
    { ++count }
    !/"name": *"[^"]+"/ || !/"value": *-?[0-9]/ || !/"unit": *"[^"]+"/ || !/\}$/ {
      print "not a row of name, value (a number) and unit: " $0 > "/dev/stderr"
      bad = 1
    }
    { print }
    END { exit bad || count == 0 }'
}
for program in $programs; do
  echo "== $program" >&2
  "build/release/$program" | tee -a /dev/stderr | take_rows >> "$rows" ||
    { echo "$program failed or printed no proper row" >&2; exit 1; }
done
list() {
  printf '[\n'
  sed '$!s/$/,/' "$rows"
  printf ']\n'
}
if [ -n "$json" ]; then list > "$json"; else list; fi
