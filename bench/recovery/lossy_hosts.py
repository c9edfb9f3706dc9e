#!/usr/bin/env python3
"""Whether a node is taken for dead that is only slow: two hosts, of whose packets a part is lost both ways, while as many
processes as there are cores do nothing but work. Driver after driver runs a task on the far node. Needs root and nft.

    bench/recovery/lossy_hosts.py [--minutes 30] [--loss 20] [BUILD]
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), ".."))
from hosts import Cluster, hosts  # noqa: E402


def work():
    while True:
        pass


def lose(name, percent):
    rules = f"""table ip loss {{
        chain input {{
            type filter hook input priority 0
            iifname != "lo" numgen random mod 100 < {percent} counter drop
        }}
    }}"""
    subprocess.run(["ip", "netns", "exec", name, "nft", "-f", "-"], input=rules, text=True, check=True)


def packets_lost(name):
    out = subprocess.run(["ip", "netns", "exec", name, "nft", "-j", "list", "ruleset"],
                         capture_output=True, text=True, check=True).stdout
    return sum(part["counter"]["packets"] for item in json.loads(out)["nftables"] if "rule" in item
               for part in item["rule"]["expr"] if "counter" in part)


def events(cluster, word):
    with open(os.path.join(cluster.state, "logs", "head.log"), encoding="utf-8", errors="replace") as log:
        found = [line for line in log if f" {word} " in line]
    sys.stderr.writelines(found)
    return len(found)


def row(name, value, unit):
    print(json.dumps({"name": name, "value": value, "unit": unit}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("build", nargs="?", default="build/release")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--loss", type=int, default=20)
    options = parser.parse_args()
    troupe = os.path.realpath(os.path.join(options.build, "bin", "troupe"))
    bench = os.path.realpath(os.path.join(options.build, "bench", "bench_recovery"))
    up = ["--workers", "2", "--label", "worker-1:bench=far"]
    with hosts(2) as names, Cluster(troupe, names, lambda name: 0 if name == "worker-1" else 1, up) as cluster:
        for name in names:
            lose(name, options.loss)
        busy = [multiprocessing.Process(target=work, daemon=True) for _ in range(os.cpu_count())]
        for process in busy:
            process.start()
        end = time.monotonic() + options.minutes * 60
        good = 0
        failed = 0
        while time.monotonic() < end:
            if cluster.run(bench, "far", cluster.state) == 0:
                good += 1
            else:
                failed += 1
        for process in busy:
            process.terminate()
        row("lossy_minutes", options.minutes, "minutes")
        row("lossy_packets_lost", sum(packets_lost(name) for name in names), "packets")
        row("lossy_tasks_done", good, "tasks")
        row("lossy_tasks_failed", failed, "tasks")
        row("lossy_nodes_unheard", events(cluster, "node_unheard"), "times")
        deaths = events(cluster, "node_lost")
        row("lossy_nodes_lost", deaths, "times")
    return 1 if deaths or failed or not good else 0


if __name__ == "__main__":
    sys.exit(main())
