#!/usr/bin/env bash
# Installs what is missing, builds, runs all tests. --lint adds clang-format and, on the files changed,
# clang-tidy; --sanitizers the ASan+UBSan and TSan legs. The last line counts the test cases of all legs.
set -uo pipefail
cd "$(dirname "$0")/.."

sanitizers=0
lint=0
for argument in "$@"; do
  case "$argument" in
    --sanitizers) sanitizers=1 ;;
    --lint) lint=1 ;;
    *) echo "usage: tools/test.sh [--lint] [--sanitizers]" >&2; exit 2 ;;
  esac
done

passed=0 failed=0 skipped=0
failures=""  # A line each, for the end: what a log's reader wants first.
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# leg NAME COMMAND...: runs it and prints its time. A leg that fails as a whole counts as one failure.
leg() {
  local name=$1 began=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  if "$@"; then
    printf '== %s: ok, %d s\n' "$name" $((SECONDS - began))
  else
    printf '== %s: FAILED, %d s\n' "$name" $((SECONDS - began))
    failed=$((failed + 1))
    failures+="$name"$'\n'
  fi
}

build() { # PRESET
  cmake --preset "$1" > "$results/configure.log" 2>&1 || { cat "$results/configure.log"; return 1; }
  # Goes on after an error, so that the other tests still run.
  cmake --build --preset "$1" -- -k 0 > "$results/build.log" 2>&1 && return 0
  grep -E 'error|FAILED|undefined' "$results/build.log" | head -50
  return 1
}

attribute() { # NAME REPORT: the number in the report's <testsuites> line; empty if there is none.
  sed -n "0,/<testsuites/s/.*<testsuites.* $1=\"\([0-9]*\)\".*/\1/p" "$2"
}

# The cases of a report that failed, each with the beginning of what it says.
failed_cases() { # REPORT
  sed -n -e '/<testcase /{s/.* name="\([^"]*\)".* classname="\([^"]*\)".*/\2.\1/;h}' \
    -e '/<failure message="/{s/.*message="\([^"]*\).*/\1/;s/&#x0A;/ /g;G;s/\(.*\)\n\(.*\)/\2: \1/;p}' "$1" |
    cut -c 1-500
}

# Counts one program's cases from its report. A program that left none has crashed; one that left a
# good one and yet failed was stopped afterwards, e.g. by a sanitizer's last check.
count() { # PROGRAM REPORT FAILED(0 or 1)
  local total bad errors skips name
  name=$(basename "$(dirname "$2")")/$1  # With its preset.
  total=$(attribute tests "$2" 2> /dev/null)
  if [ -z "$total" ] || ! grep -q '</testsuites>' "$2"; then
    echo "$1: no report of its cases: it was not built, crashed, or ran out of time"
    failed=$((failed + 1))
    failures+="$name: no report of its cases"$'\n'
    return 1
  fi
  bad=$(attribute failures "$2")
  errors=$(attribute errors "$2")
  skips=$(grep -c '<skipped' "$2")
  bad=$((bad + errors))
  failed=$((failed + bad))
  skipped=$((skipped + skips))
  passed=$((passed + total - bad - skips))
  [ "$bad" = 0 ] || failures+=$(failed_cases "$2" | sed "s|^|$name: |")$'\n'
  sed -n "s/.*<skipped message=\"\([^\"]*\)\".*/$1 skipped: \1/p" "$2" | sed "s/&#x0A;/ /" | sort -u
  if [ "$3" = 1 ] && [ "$bad" = 0 ]; then
    echo "$1: all its cases passed, but it failed at its end"
    failed=$((failed + 1))
    failures+="$name: it failed at its end"$'\n'
    return 1
  fi
  [ "$bad" = 0 ]
}

# GoogleTest's output without the cases that passed: of one that ran out of time, the case it was in.
unfinished_cases() {
  awk '/^\[ RUN  / { began = $0; next }
       /^\[       OK/ { began = ""; next }
       began != "" { print began; began = "" }
       { print }'
}

# Runs the tests and counts their cases. Says no more than that some failed: they are counted.
run_tests() { # PRESET
  local folder="build/$1" reports="$results/$1" out="$results/$1.log"
  mkdir -p "$reports"
  GTEST_OUTPUT="xml:$reports/" ctest --test-dir "$folder" -j "$(nproc)" --output-on-failure > "$out" 2>&1
  local programs program bad=0
  programs=$(ctest --test-dir "$folder" -N | sed -n 's/^ *Test *#[0-9]*: //p')
  if [ -z "$programs" ]; then
    echo "no test program in $folder"
    return 1
  fi
  for program in $programs; do
    local program_failed=0
    grep -qE "Test +#[0-9]+: $program [.]+ *Passed" "$out" || program_failed=1
    count "$program" "$reports/$program.xml" "$program_failed" || bad=1
  done
  [ "$bad" = 0 ] || grep -vE '^ *Start |[.] +Passed |^\[(-+|=+)\]' "$out" | unfinished_cases | tail -n 300
  grep -E '^Total Test time' "$out"
  return 0
}

check_format() {
  git ls-files '*.cc' '*.h' '*.c' '*.cu' | xargs -r clang-format-16 --dry-run --Werror
}

# clang-tidy on what changed, 10 minutes at most: on everything it would take longer than CI has.
check_tidy() {
  local base files
  if [ ! -f build/release/compile_commands.json ]; then
    echo "skipped: the build wrote no compile_commands.json"
    return 0
  fi
  # Since the branch left the main one; on the main one, since the commit before.
  base=$(git merge-base HEAD origin/HEAD 2> /dev/null || git merge-base HEAD origin/main 2> /dev/null)
  [ -n "$base" ] && [ "$base" != "$(git rev-parse HEAD)" ] || base=$(git rev-parse -q --verify HEAD~1)
  [ -n "$base" ] || { echo "skipped: no earlier commit is known"; return 0; }
  files=$(git diff --name-only --diff-filter=d "$base" HEAD -- 'runtime/*.cc' 'scheduler/*.cc' \
    'object_store/*.cc' 'sdk/*.cc' 'tools/*.cc' 'plugins/*.cc')
  # clang does not compile the headers of Cap'n Proto 0.9 as C++20.
  [ -z "$files" ] || files=$(grep -LE 'capnp' $files)
  [ -n "$files" ] || { echo "no source changed since $base"; return 0; }
  # Past 1 its exit status means that clang-tidy itself broke down, which says nothing of our code.
  printf '%s\n' "$files" | timeout 600 xargs -P "$(nproc)" -n 1 sh -c '
    clang-tidy-16 -p build/release --quiet "$0" 2> /dev/null
    [ $? -le 1 ] || echo "clang-tidy broke down on $0"' > "$results/tidy.log"
  local status=$?
  grep -E -A 5 '(error|warning):|broke down' "$results/tidy.log"
  [ "$status" != 124 ] ||
    echo "stopped after 10 minutes: not all of $(wc -l <<< "$files") files were looked at"
  ! grep -q 'error:' "$results/tidy.log"
}

leg "Packages" bash tools/install-deps.sh
leg "Release build" build release
leg "Tests" run_tests release
leg "Instruction gate" build/release/bench/bench_gate
if [ "$lint" = 1 ]; then
  leg "Format" check_format
  leg "clang-tidy on changed files" check_tidy
fi
if [ "$sanitizers" = 1 ]; then
  export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
  leg "ASan and UBSan build" build asan
  TROUPE_SEEDS=50 leg "ASan and UBSan tests" run_tests asan
  leg "TSan build" build tsan
  TROUPE_SEEDS=50 leg "TSan tests" run_tests tsan
fi

printf '\n'
if [ $((passed + failed)) = 0 ]; then
  echo "no test was run"
  failed=1
fi
[ -z "$failures" ] || printf 'Failed:\n%s\n' "$failures"
line="$passed passed, $failed failed"
[ "$skipped" = 0 ] || line+=", $skipped skipped"
echo "$line"
[ "$failed" = 0 ]
