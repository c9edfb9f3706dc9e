#!/usr/bin/env bash
# Installs what is missing, builds, runs all tests. --sanitizers adds the ASan+UBSan and TSan legs,
# --ci what continuous integration checks besides. The last line counts the test cases of every leg.
set -uo pipefail
cd "$(dirname "$0")/.."

sanitizers=0
ci=0
for argument in "$@"; do
  case "$argument" in
    --sanitizers) sanitizers=1 ;;
    --ci) ci=1; sanitizers=1 ;;
    *) echo "usage: tools/test.sh [--sanitizers] [--ci]" >&2; exit 2 ;;
  esac
done

bash tools/install-deps.sh || exit 1

passed=0 failed=0 skipped=0
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

leg() { # NAME COMMAND...: runs it, prints its time, counts a failure of the leg itself as a failed test.
  local name=$1 began=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  if "$@"; then
    printf '== %s: ok, %d s\n' "$name" $((SECONDS - began))
  else
    printf '== %s: FAILED, %d s\n' "$name" $((SECONDS - began))
    failed=$((failed + 1))
  fi
}

build() { # PRESET
  cmake --preset "$1" > "$results/configure.log" 2>&1 || { cat "$results/configure.log"; return 1; }
  cmake --build --preset "$1" -- -k 0 > "$results/build.log" 2>&1 ||
    { grep -E 'error|FAILED|undefined' "$results/build.log" | head -50; return 1; }
}

# Each test program writes its cases as XML; one that wrote none has crashed and counts as failed.
run_tests() { # PRESET [LABEL-REGEX]
  local xml="$results/$1"
  mkdir -p "$xml"
  local out="$results/ctest.log"
  GTEST_OUTPUT="xml:$xml/" GTEST_BRIEF=1 ctest --test-dir "build/$1" -j "$(nproc)" --output-on-failure \
    ${2:+-L "$2"} --no-tests=error > "$out" 2>&1
  local status=$?
  local listed
  listed=$(ctest --test-dir "build/$1" ${2:+-L "$2"} -N | sed -n 's/^ *Test *#[0-9]*: //p')
  local program
  for program in $listed; do
    local report="$xml/$program.xml"
    if [ ! -s "$report" ]; then
      echo "$program: no report, so it crashed or was stopped"
      failed=$((failed + 1))
      continue
    fi
    local total bad errors skips
    total=$(sed -n '0,/<testsuites/s/.*<testsuites tests="\([0-9]*\)".*/\1/p' "$report")
    bad=$(sed -n '0,/<testsuites/s/.*<testsuites[^>]* failures="\([0-9]*\)".*/\1/p' "$report")
    errors=$(sed -n '0,/<testsuites/s/.*<testsuites[^>]* errors="\([0-9]*\)".*/\1/p' "$report")
    skips=$(grep -c '<skipped' "$report")
    failed=$((failed + bad + errors))
    skipped=$((skipped + skips))
    passed=$((passed + total - bad - errors - skips))
    grep -h '<skipped' "$report" | sed -n "s/.*message=\"\([^\"]*\)\".*/$program skipped: \1/p" | sort -u
  done
  if [ "$status" != 0 ]; then
    grep -vE '^ *Start |Passed ' "$out" | tail -n 200
  fi
  grep -E '^Total Test time' "$out"
  return 0
}

check_format() {
  git ls-files '*.cc' '*.h' '*.c' | xargs clang-format-16 --dry-run --Werror
}

# On the files changed by the newest commits; everything would take longer than CI has.
check_tidy() {
  local base files
  base=$(git rev-parse --verify -q HEAD~1 || true)
  [ -n "$base" ] || { echo "no earlier commit: nothing to compare with"; return 0; }
  files=$(git diff --name-only --diff-filter=d "$base" -- 'runtime/*.cc' 'scheduler/*.cc' \
    'object_store/*.cc' 'sdk/*.cc' 'tools/*.cc' 'plugins/*.cc' | head -20)
  [ -n "$files" ] || { echo "no source changed"; return 0; }
  # shellcheck disable=SC2086
  timeout 600 clang-tidy-16 -p build/release --quiet $files 2> "$results/tidy.log"
  local status=$?
  [ "$status" = 124 ] && { echo "stopped after 10 minutes without a finding"; return 0; }
  return "$status"
}

leg "Release build" build release
leg "Tests" run_tests release
if [ "$ci" = 1 ]; then
  leg "Format" check_format
  leg "clang-tidy on changed files" check_tidy
fi
if [ "$sanitizers" = 1 ]; then
  export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
  leg "ASan and UBSan build" build asan
  TROUPE_SEEDS=50 leg "ASan and UBSan tests" run_tests asan
  leg "TSan build" build tsan
  TROUPE_SEEDS=20 leg "TSan tests" run_tests tsan unit
fi

printf '\n'
line="$passed passed, $failed failed"
[ "$skipped" -gt 0 ] && line+=", $skipped skipped"
[ $((passed + failed)) -gt 0 ] || { echo "no test was run"; failed=1; }
echo "$line"
[ "$failed" = 0 ]
