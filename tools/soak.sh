#!/usr/bin/env bash
# Chaos over a real cluster: clients make and end actors, tasks, objects, groups and streams while actors, workers
# and the head are killed at random, round after round. After each round all must be back to what it was after the
# first, calm one: bytes of live objects by our own counters, descriptors, segments, processes and files. RSS is
# reported.
#
#   tools/soak.sh [--minutes N] [--seed N] [--workers N] [--keep]
#
# The seed is printed; the same one chooses the same victims and pauses, as far as the clock lets it. --keep leaves
# the state folder. Builds the release preset first.
set -uo pipefail
cd "$(dirname "$0")/.."

minutes=30 seed=$(($(date +%s) % 32768)) workers=3 keep=0
while [ $# -gt 0 ]; do
  case "$1" in
    --minutes) minutes=$2; shift ;;
    --seed) seed=$2; shift ;;
    --workers) workers=$2; shift ;;
    --keep) keep=1 ;;
    *) echo "usage: tools/soak.sh [--minutes N] [--seed N] [--workers N] [--keep]" >&2; exit 2 ;;
  esac
  shift
done

cmake --preset release > /dev/null || exit 1
nice cmake --build --preset release --target troupe_tool troupe_actor_tool soak > /dev/null || exit 1
bin=build/release/bin

folder=$(mktemp -d "${TMPDIR:-/tmp}/troupe-soak-XXXXXX") || exit 1
export TROUPE_STATE=$folder/state
driver=""
finish() {
  [ -z "$driver" ] || kill "$driver" 2> /dev/null
  "$bin/troupe" down > /dev/null 2>&1
  [ "$keep" = 1 ] && echo "state: $TROUPE_STATE" || rm -rf "$folder"
}
trap finish EXIT
trap 'exit 1' INT TERM

RANDOM=$seed
echo "seed $seed, $minutes minutes, $workers workers"

# --- What runs.

pid_of() { # DAEMON, by the record of what runs.
  tr '{' '\n' < "$TROUPE_STATE/cluster.json" | sed -n "s/.*\"name\":\"$1\",\"pid\":\([0-9]*\),.*/\1/p"
}
daemons() {
  echo head
  local i
  for ((i = 0; i < workers; ++i)); do echo "worker-$i"; done
}
# Processes of actors and tasks: the workers' children, but for what forks them.
actor_pids() {
  local daemon pid
  for daemon in $(daemons); do
    [ "$daemon" = head ] || for pid in $(pgrep -P "$(pid_of "$daemon")" 2> /dev/null); do
      grep -q fork-server- "/proc/$pid/cmdline" 2> /dev/null || echo "$pid"
    done
  done
}

# --- What it holds. A line "NAME VALUE" each; what is in `bounded` must come back to the base.

sum() { awk '{ total += $1 } END { print total + 0 }'; }

descriptors() { # PID KIND: socket, memfd or other, without the files of the store and the logs.
  local links
  links=$(find "/proc/$1/fd" -type l -printf '%l\n' 2> /dev/null | grep -v "^$TROUPE_STATE")
  case "$2" in
    socket) grep -c '^socket:' <<< "$links" ;;
    memfd) grep -c '^/memfd:' <<< "$links" ;;
    *) grep -vc -e '^socket:' -e '^/memfd:' <<< "$links" ;;
  esac
}

counters() {
  local daemon pid kind status nodes
  status=$("$bin/troupe" status -o yaml) || return 1
  nodes=$("$bin/troupe" list nodes -o yaml) || return 1
  for kind in actors leases placement_groups jobs_running; do
    echo "$kind $(sed -n "s/^$kind: //p" <<< "$status")"
  done
  echo "objects $("$bin/troupe" objects --limit 0 -o yaml | grep -c 'size_bytes:')"
  echo "object_bytes $("$bin/troupe" objects --limit 0 -o yaml | sed -n 's/.*size_bytes: //p' | sum)"
  echo "store_mib $(sed -n 's/.*store_used_mib: //p' <<< "$nodes" | sum)"
  echo "spilled_mib $(sed -n 's/.*store_spilled_mib: //p' <<< "$nodes" | sum)"
  echo "processes $(actor_pids | wc -l)"
  for daemon in $(daemons); do
    pid=$(pid_of "$daemon")
    for kind in socket memfd other; do echo "${daemon}_${kind}s $(descriptors "$pid" "$kind")"; done
    echo "${daemon}_segments $(grep -o '/memfd:[^ ]*.*' "/proc/$pid/maps" 2> /dev/null | sort -u | wc -l)"
  done
  echo "spill_files $(find "$TROUPE_STATE/spill" -type f 2> /dev/null | wc -l)"
  echo "sockets $(find "$TROUPE_STATE/sockets" -type s | wc -l)"
  echo "package_kib $(du -sk "$TROUPE_STATE/packages" 2> /dev/null | cut -f 1)"
  echo "metadata_mib $(du -sm "$TROUPE_STATE/metadata" | cut -f 1)"
}

# Above the base by more than this is a leak. What a daemon holds changes a little with what it did last.
slack() { # NAME
  case "$1" in
    head_*) echo 4 ;;
    # Connections over which nodes read objects from each other stay: four a direction.
    *_sockets | *_others) echo $((4 + 8 * (workers - 1))) ;;
    *_memfds | *_segments) echo 4 ;;
    package_kib) echo 4096 ;;
    metadata_mib) echo 64 ;; # Its log is cut at 16 MiB, and old tables go when they are merged.
    *) echo 0 ;;
  esac
}

# Prints what is above the base.
above_base() { # COUNTERS
  local name value least
  while read -r name value; do
    least=$(sed -n "s/^$name //p" "$folder/base")
    [ "${value:-0}" -le $((${least:-0} + $(slack "$name"))) ] || echo "$name: $value, was ${least:-0}"
  done < "$1"
}

# Idle processes stay for ten seconds, and heartbeats carry what stores hold.
settle() { # Waits until everything is back to the base.
  local end=$((SECONDS + 60))
  while :; do
    if counters > "$folder/now" && [ -z "$(above_base "$folder/now")" ]; then return 0; fi
    [ "$SECONDS" -lt "$end" ] || break
    sleep 1
  done
  above_base "$folder/now"
  if command -v ss > /dev/null; then # Who is at the other end.
    for daemon in $(above_base "$folder/now" | sed -n 's/_sockets:.*//p'); do
      ss -Htxnp | grep "pid=$(pid_of "$daemon")," | sed 's/^/  /'
    done
  fi
  return 1
}

rss() {
  local daemon
  for daemon in $(daemons); do
    printf ' %s %s' "$daemon" "$(sed -n 's/VmRSS:\s*\([0-9]*\) kB/\1/p' "/proc/$(pid_of "$daemon")/status")"
  done
}

all_alive() {
  local end=$((SECONDS + 60))
  while [ "$SECONDS" -lt "$end" ]; do
    [ "$("$bin/troupe" list nodes -o yaml 2> /dev/null | grep -c 'state: alive')" = "$workers" ] && return 0
    sleep 0.2
  done
  echo "not all workers are alive after 60 s"
  "$bin/troupe" list nodes
  return 1
}

# --- Chaos.

kills=0
kill_it() { # WHAT PID
  # The record may be of before: between a death and the keeper's restart the number may be another's.
  [[ "$(readlink "/proc/$2/exe")" = "$PWD/$bin"/* ]] || return 0
  grep -qsF "$TROUPE_STATE" "/proc/$2/cmdline" "/proc/$2/environ" || return 0
  kill -9 "$2" 2> /dev/null || return 0
  kills=$((kills + 1))
  echo "$(date +%T.%3N) $1 $2" >> "$folder/kills"
}
kill_one() { # What a driver survives: not worker-0, where it is attached.
  local draw=$((RANDOM % 100)) victim pids
  if [ "$draw" -lt 25 ]; then
    victim=head
  elif [ "$draw" -lt 50 ] && [ "$workers" -gt 1 ]; then
    victim=worker-$((1 + RANDOM % (workers - 1)))
  else
    mapfile -t pids < <(actor_pids)
    [ "${#pids[@]}" -gt 0 ] || return 0
    kill_it process "${pids[RANDOM % ${#pids[@]}]}"
    return 0
  fi
  kill_it "$victim" "$(pid_of "$victim")"
}

round() { # SECONDS calm|chaos
  "$bin/soak" "$1" "$((seed + rounds * 100))" "$2" > "$folder/driver.log" 2>&1 &
  driver=$!
  local end=$((SECONDS + $1))
  while [ "$2" = chaos ] && [ "$SECONDS" -lt "$end" ] && kill -0 "$driver" 2> /dev/null; do
    sleep "$((RANDOM % 2)).$((RANDOM % 10))"
    kill_one
  done
  wait "$driver"
  local status=$?
  driver=""
  sed 's/^/  /' "$folder/driver.log"
  [ "$status" = 0 ] || { echo "the driver failed ($status)"; return 1; }
  if [ "$2" = chaos ] && [ $((RANDOM % 3)) = 0 ]; then
    kill_it worker-0 "$(pid_of worker-0)"
    sleep 0.2
  fi
  all_alive
}

fail() {
  echo "FAILED in round $rounds: repeat with tools/soak.sh --minutes $minutes --workers $workers --seed $seed"
  keep=1
  exit 1
}

"$bin/troupe" up --workers "$workers" --cpus 2 --store-mib 64 --spill-mib 1024 --gateway-port -1 > /dev/null || exit 1
end=$((SECONDS + minutes * 60))
rounds=0
: > "$folder/base"
round 15 calm || fail
sleep 15 # Idle processes end.
counters > "$folder/base" || fail
echo "base, with RSS in KiB:$(rss)"
sed 's/^/  /' "$folder/base"
for name in actors leases placement_groups jobs_running objects object_bytes store_mib spilled_mib processes spill_files; do
  value=$(sed -n "s/^$name //p" "$folder/base")
  [ "$value" = 0 ] || { echo "$name: $value, must be 0 when nothing runs"; fail; }
done

while [ "$SECONDS" -lt "$end" ]; do
  rounds=$((rounds + 1))
  round 20 chaos || fail
  settle || fail
  echo "round $rounds: back to base; $kills kills so far; RSS in KiB:$(rss); logs $(du -sm "$TROUPE_STATE/logs" | cut -f 1) MiB"
done
"$bin/troupe" down > /dev/null || { echo "troupe down failed"; fail; }
echo "ok: $rounds rounds, $kills kills, seed $seed"
