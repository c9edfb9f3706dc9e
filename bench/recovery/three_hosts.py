#!/usr/bin/env python3
"""Three heads in three network namespaces; etcd, two workers and the client in a fourth. Whichever head leads is killed,
or its link cut, while a call runs: bench_recovery's part `hosts`. Needs root. Leaves nothing behind.

    bench/recovery/three_hosts.py [BUILD] [options of troupe up, e.g. --head-lease 1]
"""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
from hosts import DEVICE, Cluster, hosts  # noqa: E402

HOST_OF = {"head": 0, "head-1": 1, "head-2": 2}


def main():
    words = sys.argv[1:]
    build = words.pop(0) if words and not words[0].startswith("-") else "build/release"
    troupe = os.path.realpath(os.path.join(build, "bin", "troupe"))
    bench = os.path.realpath(os.path.join(build, "bench", "bench_recovery"))
    options = ["--workers", "2", "--heads", "3", "--label", "worker-1:bench=far", *words]
    with hosts(4) as names, Cluster(troupe, names, lambda name: HOST_OF.get(name, 3), options) as cluster:
        cluster.keep()
        # How the benchmark cuts a head off: `ip -n NAMESPACE link set DEVICE down`.
        links = [f"{head}={names[host]}/{DEVICE}" for head, host in HOST_OF.items()]
        return cluster.run(bench, "hosts", cluster.state, *links)


if __name__ == "__main__":
    sys.exit(main())
