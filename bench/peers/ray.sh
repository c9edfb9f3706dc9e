#!/usr/bin/env bash
# bench/peers/ray.sh [--rounds N] [--json FILE] [--seconds S] [--only SUBSTRING]... [--skip SUBSTRING]...
# Runs bench/core and the same rows against Ray, Python and C++, in turn on this machine, and prints
# the table of ratios. The last three options are those of bench/core. They take turns every few rows,
# so that all meet the same machine. Needs Python 3 with venv.
set -euo pipefail
cd "$(dirname "$0")/../.."

usage="usage: bench/peers/ray.sh [--rounds N] [--json FILE] [--seconds S] [--only SUBSTRING]... [--skip SUBSTRING]..."
ray_version=${RAY_VERSION:-2.60.0}
rounds=2
json=build/peers/ratios.json
options=()
# Parts of names, which together are all rows.
groups=("_tasks_" "wait_1k containing_10k" "actor_calls" "actors_created processes_started placement"
  "get_calls put" "get_large 10k_s 10k_objects million idle")
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || { echo "$usage" >&2; exit 2; }
  case "$1" in
    --rounds) rounds=$2 ;;
    --json) json=$2 ;;
    --only) only="${only:-} $2" ;;
    --seconds | --skip) options+=("$1" "$2") ;;
    *) echo "$usage" >&2; exit 2 ;;
  esac
  shift 2
done
[ -z "${only:-}" ] || groups=("$only")
export RAY_USAGE_STATS_ENABLED=0

install_ray() {
  [ -x build/peers/ray/bin/python ] || python3 -m venv build/peers/ray
  build/peers/ray/bin/pip install --quiet "ray[default,cpp]==$ray_version" numpy
}

# The C++ driver, and the library that Ray's workers load; both share our harness. Ray's library
# has the old ABI of std::string.
build_ray_cpp() {
  local ray output flags
  ray=$(build/peers/ray/bin/python -c 'import os, ray; print(os.path.dirname(ray.__file__))')/cpp
  for output in ray_rows libray_rows.so; do
    flags=()
    [ "$output" = ray_rows ] || flags=(-shared -fPIC)
    g++ -std=c++20 -O2 -w -D_GLIBCXX_USE_CXX11_ABI=0 -DFMT_HEADER_ONLY "${flags[@]}" \
      -isystem "$ray/include" bench/peers/ray_rows.cc bench/core/harness.cc bench/core/processes.cc \
      -o "build/peers/$output" -L"$ray/lib" -lray_api -Wl,-rpath,"$ray/lib" || return 1
  done
}

# Rows that fail are missing in the table; the others count.
run() { # NAME COMMAND...
  local name=$1 part only=()
  shift
  for part in $group; do only+=(--only "$part"); done
  echo "== round $round: $name, rows of $group" >&2
  "$@" "${options[@]}" "${only[@]}" | grep --line-buffered "^{" | tee -a /dev/stderr >> "$results/$name-$round.jsonl" ||
    echo "$name: some rows failed" >&2
}

bash tools/install-deps.sh >&2
cmake --preset release > /dev/null
cmake --build --preset release --target bench_core >&2
install_ray >&2
cpp=1
build_ray_cpp >&2 || { cpp=0; echo "Ray's C++ driver does not build" >&2; }
export RAY_ROWS_LIBRARY=$PWD/build/peers/libray_rows.so

results=build/peers/rounds
rm -rf "$results"
mkdir -p "$results"
for round in $(seq "$rounds"); do
  for group in "${groups[@]}"; do
    run troupe build/release/bench/bench_core
    run ray build/peers/ray/bin/python bench/peers/ray_rows.py
    [ $cpp = 0 ] ||
      run ray_cpp build/peers/ray/bin/python bench/peers/ray_rows.py --driver build/peers/ray_rows
  done
done
python3 bench/peers/ratio_table.py "$results" "$json"
