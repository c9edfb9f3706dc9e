#!/usr/bin/env bash
# A 1 GiB object between two network namespaces joined by a veth, against a bare pair of OpenSSL
# on the same veth, in turn. Needs root, and leaves neither namespace nor process behind.
#   bench/objects/transfer.sh [BINARY] [MIB] [ROUNDS] [REPEATS] [RATE]
# RATE, as tc takes it ("1gbit"), slows the link down.
set -euo pipefail
binary=$(realpath "${1:-build/release/bench/bench_transfer}")
mib=${2:-1024} rounds=${3:-5} repeats=${4:-3} rate=${5:-}
id=$$
one=troupe-a-$id two=troupe-b-$id
folder=$(mktemp -d /tmp/troupe-transfer-XXXXXX)
started=()
finish() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  ip netns del "$one" 2>/dev/null || true
  ip netns del "$two" 2>/dev/null || true
  rm -rf "$folder"
}
trap finish EXIT
ip netns add "$one"
ip netns add "$two"
ip link add "va$id" netns "$one" type veth peer name "vb$id" netns "$two"
ip -n "$one" addr add 10.77.0.1/24 dev "va$id"
ip -n "$two" addr add 10.77.0.2/24 dev "vb$id"
for side in "$one va$id" "$two vb$id"; do
  read -r space device <<<"$side"
  ip -n "$space" link set lo up
  ip -n "$space" link set "$device" up
done
if [ -n "$rate" ]; then
  ip netns exec "$one" tc qdisc add dev "va$id" root tbf rate "$rate" burst 256k latency 50ms
fi
wait_for() {
  for _ in $(seq 1200); do [ -e "$1" ] && return; sleep 0.05; done
  echo "$1 never came" >&2
  exit 1
}
"$binary" floor
"$binary" identities "$folder" 10.77.0.1 10.77.0.2
for _ in $(seq "$repeats"); do
  ip netns exec "$one" "$binary" tls-source "$folder" 10.77.0.1 "$mib" "$rounds" &
  source=$!
  started=("$source")
  wait_for "$folder/tls"
  ip netns exec "$two" "$binary" tls-pull "$folder" 10.77.0.2 10.77.0.1 "$rounds"
  wait "$source"
  rm "$folder/tls"

  mkfifo "$folder/stop"
  ip netns exec "$one" "$binary" source "$folder" 10.77.0.1 "$mib" <"$folder/stop" &
  source=$!
  started=("$source")
  exec 9>"$folder/stop"
  wait_for "$folder/object"
  ip netns exec "$two" "$binary" pull "$folder" 10.77.0.2 "$rounds"
  exec 9>&-
  wait "$source"
  rm "$folder/object" "$folder/stop"
done
