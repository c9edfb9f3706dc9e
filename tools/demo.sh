#!/usr/bin/env bash
# The main job, end to end: builds, starts a cluster on this machine, trains a small language model on
# two workers, serves it with two replicas, asks it over HTTP, kills a replica under load, and leaves
# nothing running. The model, its metrics and its loss curve stay in build/demo-model, or in `--out DIR`.
# `--keep` leaves the cluster up, `--steps N` changes the training.
set -euo pipefail
cd "$(dirname "$0")/.."

keep=0
steps=${TROUPE_DEMO_STEPS:-}
out=
while [ $# -gt 0 ]; do
  case "$1" in
    --keep) keep=1 ;;
    --steps) steps=$2; shift ;;
    --out) out=$2; shift ;;
    *) echo "usage: tools/demo.sh [--keep] [--steps N] [--out DIR]" >&2; exit 2 ;;
  esac
  shift
done

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

bash tools/install-deps.sh
say "Building"
cmake --preset release > build-demo.log 2>&1 || { cat build-demo.log; exit 1; }
rm -f build-demo.log
cmake --build --preset release --target demo

bin=$PWD/build/release/bin
work=$(mktemp -d "${TMPDIR:-/tmp}/troupe-demo.XXXXXX")
export TROUPE_STATE=$work/state
out=${out:-$PWD/build/demo-model}
model=kjv
up=0
clients=()

finish() {
  local status=$?
  trap - EXIT
  trap '' INT TERM # From here on to the end; what is started here inherits it.
  if [ "${#clients[@]}" -gt 0 ]; then
    kill "${clients[@]}" 2>/dev/null || true
    wait "${clients[@]}" 2>/dev/null || true
  fi
  if [ "$keep" = 1 ] && [ "$status" = 0 ]; then exit 0; fi
  if [ "$up" = 1 ]; then
    say "Shutting down"
    "$bin/troupe" down || true
    check_clean || status=1
  fi
  rm -rf "$work"
  [ "$status" != 0 ] || echo "The model, its metrics and the loss curve are in $out."
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Nothing of ours may be left: no process, no socket. Shared memory is anonymous and goes with them.
check_clean() {
  local left
  left=$(grep -lsz "^TROUPE_STATE=$TROUPE_STATE\$" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 |
    grep -vx -e "$$" -e "$BASHPID" || true)
  for pid in $left; do
    case "$(readlink "/proc/$pid/exe" 2>/dev/null)" in
      "$bin"/*) echo "left behind: process $pid ($(tr '\0' ' ' < "/proc/$pid/cmdline"))" >&2; return 1 ;;
    esac
  done
  if [ -n "$(ls -A "$TROUPE_STATE/sockets" 2>/dev/null)" ]; then
    echo "left behind: sockets in $TROUPE_STATE/sockets" >&2
    return 1
  fi
  echo "Nothing is left behind."
}

say "1. A cluster: one head, two workers, a gateway"
up=1
"$bin/troupe" up --workers 2 --gateway-port 0

say "2. Training on two workers (data parallel, English text of the King James Bible, public domain)"
bash plugins/training/fetch_text.sh "$work/text.txt"
"$bin/troupe" submit --name train -- "$bin/troupe-train" --text "$work/text.txt" --out "$out" \
  --overwrite --workers 2 ${steps:+--steps "$steps"}
echo "Loss curve: $out/loss.svg   metrics: $out/metrics.jsonl   checkpoint: $out/model.safetensors"

say "3. Serving it with two replicas"
"$bin/troupe" deploy "$model" --model "$out" --replicas 2

url=$("$bin/troupe" status -o yaml | sed -n 's/^gateway: *"\{0,1\}\([^"]*\)"\{0,1\}$/\1/p')
key=$(cat "$TROUPE_STATE/gateway.key")
ask() { # BODY: one request, the answer's body on standard output
  curl -sS --max-time 60 "$url/v1/completions" -H "Authorization: Bearer $key" \
    -H 'Content-Type: application/json' -d "$1"
}

say "4. Asking it over HTTP"
prompt="And God said"
echo "curl $url/v1/completions -H 'Authorization: Bearer ...' -d '{\"model\": \"$model\", \"prompt\": \"$prompt\", ...}'"
ask "{\"model\": \"$model\", \"prompt\": \"$prompt\", \"max_tokens\": 80, \"temperature\": 0.7, \"seed\": 7}"
echo
echo "The same, streamed:"
printf '%s' "$prompt"
ask "{\"model\": \"$model\", \"prompt\": \"$prompt\", \"max_tokens\": 80, \"temperature\": 0.7, \"seed\": 8, \"stream\": true}" |
  sed -un 's/.*"text":"\(\([^"\\]\|\\.\)*\)".*/\1/p' | while IFS= read -r piece; do printf '%b' "$piece"; done
echo

say "5. The cluster"
"$bin/troupe" status

say "6. A replica is killed with kill -9 while requests run"
requests=48
answers=$work/answers
: > "$answers"
client() { # Every 4th request from $1 on.
  for ((i = $1; i < requests; i += 4)); do
    curl -sS --max-time 120 -o /dev/null -w '%{http_code}\n' "$url/v1/completions" \
      -H "Authorization: Bearer $key" -H 'Content-Type: application/json' \
      -d "{\"model\": \"$model\", \"prompt\": \"In the beginning\", \"max_tokens\": 48, \"temperature\": 0.8, \"seed\": $i}" \
      >> "$answers" || echo failed >> "$answers"
  done
}
for c in 0 1 2 3; do client "$c" & clients+=($!); done
while [ "$(wc -l < "$answers")" -lt $((requests / 4)) ]; do read -rt 0.05 <> <(:) || true; done
victim=$("$bin/troupe" describe "$model" -o yaml | sed -n 's/^ *pid: *\([1-9][0-9]*\)$/\1/p' | head -1)
[ -n "$victim" ] || { echo "no replica is alive" >&2; exit 1; } # And kill 0 would be this very group.
echo "kill -9 $victim"
kill -9 "$victim"
wait "${clients[@]}"
clients=()
good=$(grep -cx 200 "$answers" || true)
echo "$good of $requests requests answered with 200"
[ "$good" = "$requests" ] || { sort "$answers" | uniq -c; echo "requests were lost" >&2; exit 1; }

say "7. The deployment's report"
"$bin/troupe" report "$model"

if [ "$keep" = 1 ]; then
  say "The cluster stays up"
  cat <<TEXT
export TROUPE_STATE=$TROUPE_STATE
$bin/troupe status
curl $url/v1/completions -H "Authorization: Bearer \$(cat $TROUPE_STATE/gateway.key)" \\
  -H 'Content-Type: application/json' -d '{"model": "$model", "prompt": "$prompt", "max_tokens": 60}'
$bin/troupe down        # when you are done
TEXT
fi
