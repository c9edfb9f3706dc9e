#!/usr/bin/env bash
# What is too long for each change: 1,000 simulated cluster hours, 100 hours of three heads, all planted bugs (ten
# minutes at most each), a head killed 1,000 times and the one of three that leads 200 times, ten minutes of each fuzz
# target (tools/fuzz.sh), and half an hour of chaos over a real cluster (tools/soak.sh). Installs what is missing and
# builds the presets release and fuzz first. An argument N begins the hours at seed N, so that each night may see other
# ones; the default is drawn from the date.
set -uo pipefail
cd "$(dirname "$0")/.."

bash tools/install-deps.sh --fuzz || exit 1
first=${1:-$(( ($(date +%s) / 86400 % 10000) * 100000 + 1 ))}
cmake --preset release > /dev/null || exit 1
nice cmake --build --preset release || exit 1

failed=0
# Two processes, for a cluster runs in one thread.
build/release/tests/cluster_sim --seed "$first" --hours 500 --every-fault 2> /dev/null &
half=$!
build/release/tests/cluster_sim --seed $((first + 50000)) --hours 500 --every-fault 2> /dev/null || failed=1
wait "$half" || failed=1
TROUPE_SEEDS=6000 build/release/tests/candidate_faults_test 2> /dev/null || failed=1
build/release/tests/cluster_sim_planted --bugs all --turn 0 --seconds 600 || failed=1
TROUPE_KILLS=1000 build/release/tests/system_recovery_test --gtest_filter='*HeadIsKilled' || failed=1
TROUPE_KILLS=200 build/release/tests/system_heads_test --gtest_filter='*Killed*' || failed=1
tools/fuzz.sh || failed=1
tools/soak.sh --minutes 30 --seed $((first % 32768)) || failed=1
exit "$failed"
