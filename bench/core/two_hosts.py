#!/usr/bin/env python3
"""The remote rows of bench_core between two network namespaces, joined by a veth: a head and a worker in one, a
worker in the other. Needs root. Leaves neither namespace nor process nor folder behind.

    bench/core/two_hosts.py [BUILD] [bench_core's options]
"""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
from hosts import Cluster, hosts  # noqa: E402


def main():
    words = sys.argv[1:]
    build = words.pop(0) if words and not words[0].startswith("-") else "build/release"
    troupe = os.path.realpath(os.path.join(build, "bin", "troupe"))
    bench = os.path.realpath(os.path.join(build, "bench", "bench_core"))
    options = ["--workers", "2", "--label", "worker-1:bench=far"]
    with hosts(2) as names, Cluster(troupe, names, lambda name: 0 if name == "worker-1" else 1, options) as cluster:
        return cluster.run(bench, "--state", cluster.state, *words)


if __name__ == "__main__":
    sys.exit(main())
