#!/usr/bin/env bash
# tools/bench.sh AREA [--json FILE]: builds and runs the benchmarks of bench/AREA; rows of
# {"name", "value", "unit", ...} go to FILE, else to standard output.
set -euo pipefail
cd "$(dirname "$0")/.."

area=${1:?usage: tools/bench.sh AREA [--json FILE]}
shift
json=
while [ $# -gt 0 ]; do
  case "$1" in
    --json) json=$2; shift ;;
    *) echo "usage: tools/bench.sh AREA [--json FILE]" >&2; exit 2 ;;
  esac
  shift
done
if [ ! -d "bench/$area" ]; then
  echo "no benchmarks in bench/$area; there are: $(cd bench && ls -d */ | tr -d '/' | tr '\n' ' ')" >&2
  exit 2
fi
bash tools/install-deps.sh
cmake --preset release > /dev/null
cmake --build --preset release --target "bench_$area" > /dev/null
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
build/release/bench/"bench_$area" --json "$rows" >&2
if [ -n "$json" ]; then cp "$rows" "$json"; else cat "$rows"; fi
