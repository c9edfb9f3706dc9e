#!/usr/bin/env bash
# bench_test.sh BENCH_SH: what tools/bench.sh makes of a program's output. The script is copied into a
# tree of its own, in which the build does nothing and the program is a shell script.
set -euo pipefail
bench_sh=$(realpath "$1")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{tools,bench/area,build/release/bench,stand-ins}
cp "$bench_sh" "$root/tools/bench.sh"
touch "$root/bench/area/CMakeLists.txt"
echo 'exit 0' > "$root/tools/install-deps.sh"
printf '#!/bin/sh\nexit 0\n' > "$root/stand-ins/cmake"
printf '#!/bin/sh\nprintf "area:\\n  input: phony\\n    bench/program\\n  outputs:\\n"\n' > "$root/stand-ins/ninja"
chmod +x "$root"/stand-ins/*
export PATH=$root/stand-ins:$PATH

cases=1 # The list's form; each expect() is one more.
failures=0
# expect STATUS WHAT PROGRAM: runs the area, whose program is the shell text PROGRAM.
expect() {
  local status=0
  cases=$((cases + 1))
  printf '#!/bin/sh\n%s\n' "$3" > "$root/build/release/bench/program"
  chmod +x "$root/build/release/bench/program"
  rm -f "$root/rows.json"
  bash "$root/tools/bench.sh" area --json "$root/rows.json" > "$root/log" 2>&1 || status=$?
  if [ "$status" != "$1" ] || { [ "$status" != 0 ] && [ -e "$root/rows.json" ]; }; then
    echo "$2: status $status, not $1" >&2
    cat "$root/log" >&2
    failures=$((failures + 1))
  fi
}

a='{"name":"area/a","value":1.5e+03,"unit":"us"}'
b='{"name": "area/b", "value": -2, "unit": "GB/s", "threads": 2}'
expect 0 "rows among other lines" "echo talk; echo '$a'; echo '$b'"
[ "$(cat "$root/rows.json")" = "$(printf '[\n%s,\n%s\n]' "$a" "$b")" ] || {
  echo "another list than the rows:" >&2
  cat "$root/rows.json" >&2
  failures=$((failures + 1))
}
expect 1 "no row" "echo 'area_a_us 25.0'"
expect 1 "a row without a name" "echo '$a'; echo '{\"value\":1,\"unit\":\"us\"}'"
expect 1 "a row without a value" "echo '{\"name\":\"a\",\"unit\":\"us\"}'; echo '$a'"
expect 1 "a row without a unit" "echo '{\"requests\":8,\"name\":\"a\",\"value\":1}'"
expect 1 "a value that is no number" "echo '{\"name\":\"a\",\"value\":nan,\"unit\":\"us\"}'"
expect 1 "a row that was cut off" "echo '{\"name\":\"a\",\"value\":1,\"unit\":\"us\"'"
expect 1 "a program that fails after its rows" "echo '$a'; exit 3"
# The report that tools/test.sh counts cases from, as GoogleTest's programs write it.
if [ -n "${GTEST_OUTPUT:-}" ]; then
  printf '<testsuites tests="%d" failures="%d" errors="0">\n</testsuites>\n' "$cases" "$failures" \
    > "${GTEST_OUTPUT#xml:}tools_bench_test.xml"
fi
exit $((failures > 0))
