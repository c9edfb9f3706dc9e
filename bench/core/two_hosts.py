#!/usr/bin/env python3
"""The remote rows of bench_core between two network namespaces, joined by a veth: a head and a worker in one, a
worker in the other. Needs root. Leaves neither namespace nor process nor folder behind.

    bench/core/two_hosts.py [BUILD] [bench_core's options]
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

ADDRESSES = ("10.78.0.1", "10.78.0.2")
PATIENCE = 60


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def namespaces():
    names = [f"troupe-{side}-{os.getpid()}" for side in ("a", "b")]
    ends = [f"t{side}{os.getpid()}" for side in ("a", "b")]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for name, end, address in zip(names, ends, ADDRESSES):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def stop(processes):
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def move(text, address):
    """What `troupe up` said to a daemon of this machine, for one at `address`; the head is in the first namespace."""
    return text.replace("127.0.0.1:", ADDRESSES[0] + ":") if ":" in text else text.replace("127.0.0.1", address)


def main():
    words = sys.argv[1:]
    build = words.pop(0) if words and not words[0].startswith("-") else "build/release"
    troupe = os.path.realpath(os.path.join(build, "bin", "troupe"))
    bench = os.path.realpath(os.path.join(build, "bench", "bench_core"))
    folder = tempfile.mkdtemp(prefix="troupe-two-hosts-")
    state = os.path.join(folder, "state")
    started = []
    try:
        # Credentials, ports and options of the daemons are those that `troupe up` chose.
        up = [troupe, "up", "--state", state, "--workers", "2", "--no-keeper", "--gateway-port", "-1"]
        subprocess.run([*up, "--label", "worker-1:bench=far"], check=True, stdout=subprocess.DEVNULL)
        record_path = os.path.join(state, "cluster.json")
        with open(record_path, encoding="utf-8") as file:
            record = json.load(file)
        subprocess.run([troupe, "down", "--state", state], check=True, stdout=subprocess.DEVNULL)
        with namespaces() as names:
            record["host"] = ADDRESSES[0]
            record["heads"] = [move(head, ADDRESSES[0]) for head in record["heads"]]
            for daemon in record["daemons"]:
                far = daemon["name"] == "worker-1"
                arguments = [move(word, ADDRESSES[far]) for word in daemon["arguments"]]
                with open(os.path.join(folder, daemon["name"] + ".log"), "wb") as log:
                    command = ["ip", "netns", "exec", names[far], troupe, *arguments]
                    # bench_core knows the cluster's processes by this variable.
                    marked = {**os.environ, "TROUPE_STATE": state}
                    started.append(subprocess.Popen(command, stdout=log, stderr=log, env=marked))
                daemon.update(pid=started[-1].pid, arguments=arguments)
            with open(record_path, "w", encoding="utf-8") as file:
                json.dump(record, file)
            inside = ["ip", "netns", "exec", names[0]]
            status = [*inside, troupe, "status", "--state", state, "-o", "json"]
            end = time.monotonic() + PATIENCE
            while True:
                seen = subprocess.run(status, capture_output=True, text=True, check=False)
                nodes = json.loads(seen.stdout)["nodes"] if seen.returncode == 0 else []
                if [node["state"] for node in nodes] == ["alive", "alive"]:
                    break
                if time.monotonic() > end:
                    raise RuntimeError(f"the workers did not join: {seen.stdout}{seen.stderr}")
                time.sleep(0.1)
            try:
                return subprocess.run([*inside, bench, "--state", state, *words], check=False).returncode
            finally:
                stop(started)
                started.clear()
    finally:
        stop(started)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
