#!/usr/bin/env bash
# Runs the fuzz targets of tests/fuzz under libFuzzer, two at a time. Installs clang-16 and its runtime first, if they
# are missing.
set -uo pipefail
cd "$(dirname "$0")/.."

usage="usage: tools/fuzz.sh [--seconds N] [TARGET...]    (default: 600 s each, all)"
seconds=600
targets=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seconds) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "$usage" >&2; exit 2; }; seconds=$2; shift ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *) [ -f "tests/fuzz/$1_fuzz.cc" ] || { echo "no target $1 in tests/fuzz" >&2; exit 2; }; targets+=("$1") ;;
  esac
  shift
done
[ ${#targets[@]} -gt 0 ] || for source in tests/fuzz/*_fuzz.cc; do
  name=$(basename "$source")
  targets+=("${name%_fuzz.cc}")
done

bash tools/install-deps.sh --fuzz || exit 1
cmake --preset fuzz > /dev/null || exit 1
nice cmake --build --preset fuzz || exit 1
build/fuzz/fuzz/fuzz_seeds build/fuzz/corpus || exit 1

# An input that crashed it stays as build/fuzz/TARGET-crash-*.
run_target() { # SECONDS TARGET
  mkdir -p "build/fuzz/corpus/$2"
  if "build/fuzz/fuzz/fuzz_$2" -max_total_time="$1" -rss_limit_mb=2048 -artifact_prefix="build/fuzz/$2-" \
    -print_final_stats=1 "build/fuzz/corpus/$2" > "build/fuzz/$2.log" 2>&1; then
    echo "$2: $(sed -n 's/^stat::number_of_executed_units: *//p' "build/fuzz/$2.log") executions, no fault"
  else
    echo "$2: FAILED, see build/fuzz/$2.log"
    return 1
  fi
}
export -f run_target
printf '%s\n' "${targets[@]}" | xargs -P 2 -n 1 bash -c 'run_target "$0" "$1"' "$seconds"
