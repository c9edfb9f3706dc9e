#!/usr/bin/env bash
# soak_test.sh SOAK_SH: which processes tools/soak.sh kills. Its function is taken out of it and run on stand-ins for
# the processes of a cluster.
set -euo pipefail
soak_sh=$(realpath "$1")
root=$(realpath "$(mktemp -d)")
pid=""
finish() {
  [ -z "$pid" ] || kill -9 "$pid" 2> /dev/null || true
  rm -rf "$root"
}
trap finish EXIT
cd "$root"
bin=build/release/bin
mkdir -p "$bin" elsewhere state other
cp "$(command -v tail)" "$bin/troupe"
cp "$(command -v tail)" elsewhere/troupe
touch state/log other/log

eval "$(sed -n '/^kill_it()/,/^}/p' "$soak_sh")"
# What the function knows of the run.
TROUPE_STATE=$root/state
folder=$root
kills=0

cases=0
failures=0
check() { # WHAT CONDITION...
  local what=$1
  shift
  cases=$((cases + 1))
  "$@" || { echo "$what: not $*" >&2; failures=$((failures + 1)); }
}
# expect STATUS WHAT PROGRAM STATE FILE: a process of PROGRAM whose environment names STATE, and its arguments FILE, is
# to end with 128 and the signal that came first.
expect() {
  local status=0
  env "TROUPE_STATE=$4" "$3" -f "$5" > /dev/null 2>&1 &
  pid=$!
  until [ "$(readlink "/proc/$pid/exe")" = "$root/$3" ]; do :; done
  kill_it process "$pid"
  kill "$pid" 2> /dev/null || true # Behind SIGKILL, if that is on its way.
  wait "$pid" 2> /dev/null || status=$?
  check "$2" test "$status" = "$1"
}

expect 137 "a daemon that was told where the state is" "$bin/troupe" "$root/other" "$root/state/log"
gone=$pid
expect 137 "a process that inherited where the state is" "$bin/troupe" "$root/state" "$root/other/log"
expect 143 "another cluster's process" "$bin/troupe" "$root/other" "$root/other/log"
expect 143 "another program that knows the state" elsewhere/troupe "$root/state" "$root/state/log"
pid=""
check "a process that is gone" kill_it process "$gone"
check "no process" kill_it head ""
check "the count of kills" test "$kills" = 2
check "the note of kills" test "$(wc -l < kills)" = 2
check "a way around the function" test "$(grep -c 'kill -9' "$soak_sh")" = 1

# The report that tools/test.sh counts cases from, as GoogleTest's programs write it.
if [ -n "${GTEST_OUTPUT:-}" ]; then
  printf '<testsuites tests="%d" failures="%d" errors="0">\n</testsuites>\n' "$cases" "$failures" \
    > "${GTEST_OUTPUT#xml:}tools_soak_test.xml"
fi
exit $((failures > 0))
