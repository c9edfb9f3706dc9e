"""The rows of bench/core against Ray, in the same windows: one JSON object a line.

With --driver PROGRAM it runs that program, with the options left over, against the Ray that it
started, in place of its own rows. It ends the Ray that it started.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import time
import uuid

import numpy as np

MARK = "RAY_ROWS_MARK=" + uuid.uuid4().hex
os.environ.update([MARK.split("="), ("RAY_USAGE_STATS_ENABLED", "0"),
                   ("RAY_worker_niceness", "0")])  # As ours; else other work goes before its workers.

import ray  # noqa: E402  After the mark, which its processes inherit.

N = max(1, os.cpu_count() // 2)
WINDOWS = 4
DRIVER_SECONDS_MAX = 300


seen = {}  # What each process had used when it was last seen: Ray's do not count ended children.


def cpu_seconds():
    """Of all processes with the mark, and of this one."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if MARK.encode() not in file.read().split(b"\0"):
                    continue
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended, or is another's.
        if int(pid) != os.getpid():
            seen[pid] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    return used.ru_utime + used.ru_stime + sum(seen.values())


class Harness:
    def __init__(self, options):
        self.seconds, self.only, self.skip = options.seconds, options.only, options.skip
        self.failed = 0

    def row(self, name, body):
        if any(part in name for part in self.skip):
            return
        if self.only and not any(part in name for part in self.only):
            return
        time.sleep(0.7)
        try:
            body(name)
        except Exception as error:  # A row that fails costs no other.
            self.failed += 1
            print(f"{name} failed: {error}", file=sys.stderr)

    def windows(self, work, after=None, one_call=False):
        """The rate of `work`, its deviation, the times of single calls, cpu seconds of a run."""
        times = []

        def run(count):
            start = before = time.perf_counter()
            cleared = 0
            for _ in range(count):
                work()
                if one_call:
                    now = time.perf_counter()
                    times.append(now - before)
                    before = now
                if after:
                    start_after = time.perf_counter()
                    after()
                    cleared += time.perf_counter() - start_after
            return time.perf_counter() - start - cleared

        warm_up, spent = 0, 0
        while spent < self.seconds / 2:
            spent += run(1)
            warm_up += 1
        times.clear()
        step, rates, total, cpu = warm_up // 10 + 1, [], 0, cpu_seconds()
        for _ in range(WINDOWS):
            spent = count = 0
            while spent < self.seconds:
                spent += run(step)
                count += step
            rates.append(count / spent)
            total += count
        return np.mean(rates), np.std(rates), times, (cpu_seconds() - cpu) / total

    def measure(self, name, work, multiplier=1, unit="calls/s", calls=None, after=None,
                one_call=False):
        rate, spread, times, cpu = self.windows(work, after, one_call)
        extra = {"spread": spread * multiplier}
        if one_call:
            extra |= {f"p{part}_us": np.percentile(times, part) * 1e6 for part in (50, 99)}
        extra["cpu_s_per_million"] = cpu / (calls or multiplier) * 1e6
        self.print(name, rate * multiplier, unit, **extra)

    @staticmethod
    def print(name, value, unit, **extra):
        numbers = {key: float(f"{number:.4g}") for key, number in extra.items()}
        row = {"name": name, "value": float(f"{value:.4g}"), "unit": unit, **numbers}
        print(json.dumps(row, separators=(",", ":")), flush=True)


@ray.remote
def small_value():
    return b"ok"


def run_tasks(count):
    ray.get([small_value.remote() for _ in range(count)])
    return b"ok"


def call_in_turn(servers, count):
    ray.get([servers[i % len(servers)].small_value.remote() for i in range(count)])
    return b"ok"


@ray.remote
def call_servers(servers, count):
    return call_in_turn(servers, count)


@ray.remote
def put_small_ones(count):
    for _ in range(count):
        ray.put(0)
    return b"ok"


@ray.remote
def put_large_ones(count):
    for _ in range(count):
        ray.put(np.zeros(10 * 1024 * 1024, dtype=np.int64))
    return b"ok"


@ray.remote
def make_refs():
    return [ray.put(1) for _ in range(10_000)]


@ray.remote
def sum_all(*arguments):
    return sum(sum(argument) for argument in arguments)


@ray.remote
def run_while_exists(path):
    while os.path.exists(path):
        time.sleep(0.002)


@ray.remote(num_cpus=0)
class Server:
    def small_value(self):
        return b"ok"

    def small_value_arg(self, _):
        return b"ok"

    def run_tasks(self, count):
        return run_tasks(count)


@ray.remote(num_cpus=0)
class AsyncServer:
    async def small_value(self):
        return b"ok"

    async def small_value_arg(self, _):
        return b"ok"


@ray.remote(num_cpus=0)
class Caller:
    def __init__(self, servers):
        self.servers = servers

    def call(self, count):
        ray.get([s.small_value.remote() for s in self.servers for _ in range(count)])
        return b"ok"

    def call_with_ref(self, count):
        argument = ray.put(0)
        ray.get([s.small_value_arg.remote(argument) for s in self.servers for _ in range(count)])
        return b"ok"


def alive(actors):
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    return actors


def task_rows(harness):
    def several_clients(name):
        clients = alive([Server.remote() for _ in range(4)])
        harness.measure(name, lambda: ray.get([c.run_tasks.remote(10_000) for c in clients]),
                        40_000)

    def wait_one_by_one():
        pending = [small_value.remote() for _ in range(1000)]
        first = True
        while pending:
            _, pending = ray.wait(pending, fetch_local=first)
            first = False

    harness.row("single_client_tasks_sync", lambda name: harness.measure(
        name, lambda: ray.get(small_value.remote()), one_call=True))
    harness.row("single_client_tasks_async", lambda name: harness.measure(
        name, lambda: run_tasks(1000), 1000))
    harness.row("single_client_tasks_and_get_batch", lambda name: harness.measure(
        name, lambda: run_tasks(1000), unit="batches/s", calls=1000))
    harness.row("multi_client_tasks_async", several_clients)
    harness.row("single_client_wait_1k_refs", lambda name: harness.measure(
        name, wait_one_by_one, unit="rounds/s", calls=1000))


def server_rows(harness, kind, prefix):
    """The shapes that plain and coroutine actors share; `prefix` stands before "actor_calls"."""
    def sync(name):
        [server] = alive([kind.remote()])
        harness.measure(name, lambda: ray.get(server.small_value.remote()), one_call=True)

    def in_turn(name):
        servers = alive([kind.remote()])
        harness.measure(name, lambda: call_in_turn(servers, 1000), 1000)

    def one_to_n(name):
        [caller] = alive([Caller.remote(alive([kind.remote() for _ in range(N)]))])
        harness.measure(name, lambda: ray.get(caller.call.remote(5000)), 5000 * N)

    def n_to_n(name):
        servers = alive([kind.remote() for _ in range(N)])
        harness.measure(
            name, lambda: ray.get([call_servers.remote(servers, 5000) for _ in range(4)]), 20_000)

    harness.row(f"1_1_{prefix}actor_calls_sync", sync)
    harness.row(f"1_1_{prefix}actor_calls_async", in_turn)
    harness.row(f"1_n_{prefix}actor_calls_async", one_to_n)
    harness.row(f"n_n_{prefix}actor_calls_async", n_to_n)


def actor_rows(harness):
    def concurrent(name):
        servers = alive([Server.options(max_concurrency=16).remote()])
        harness.measure(name, lambda: call_in_turn(servers, 1000), 1000)

    def with_ref(name):
        servers = alive([Server.remote() for _ in range(N)])
        callers = alive([Caller.remote([server]) for server in servers])
        harness.measure(name, lambda: ray.get([c.call_with_ref.remote(1000) for c in callers]),
                        1000 * N)

    def coroutines_with_args(name):
        [server] = alive([AsyncServer.remote()])
        harness.measure(
            name, lambda: ray.get([server.small_value_arg.remote(i) for i in range(1000)]), 1000)

    def created(name):
        made = []

        def clear():
            for actor in made:
                ray.kill(actor)
            made.clear()

        harness.measure(name, lambda: made.extend(alive([Server.remote() for _ in range(16)])), 16,
                        "actors/s", after=clear)

    server_rows(harness, Server, "")
    harness.row("1_1_actor_calls_concurrent", concurrent)
    harness.row("n_n_actor_calls_with_arg_async", with_ref)
    server_rows(harness, AsyncServer, "async_")
    harness.row("1_1_async_actor_calls_with_args_async", coroutines_with_args)
    harness.row("actors_created_own_process", created)


def object_rows(harness):
    def get_small(name):
        ref = ray.put(0)
        harness.measure(name, lambda: ray.get(ref), one_call=True)

    def put_huge(name):
        array = np.zeros(100 * 1024 * 1024, dtype=np.int64)
        harness.measure(name, lambda: ray.put(array), 0.8, "GB/s", calls=1)

    def put_over_memcpy(name):
        array = np.ones(10 * 1024 * 1024, dtype=np.int64)
        copy = array + 1  # Touched: the copy is warm.
        ratios = []
        for _ in range(WINDOWS + 1):
            rates = []
            for work in (lambda: ray.put(array), lambda: np.copyto(copy, array)):
                spent = count = 0
                while spent < harness.seconds / 2:
                    start = time.perf_counter()
                    work()
                    spent += time.perf_counter() - start
                    count += 1
                rates.append(count / spent)
            ratios.append(rates[0] / rates[1])
        harness.print(name, np.mean(ratios[1:]), "ratio", spread=np.std(ratios[1:]))

    def get_large(name):
        ref = ray.put(np.ones(10 * 1024 * 1024, dtype=np.int64))
        _, _, times, _ = harness.windows(lambda: ray.get(ref), one_call=True)
        harness.print(name, np.percentile(times, 50) * 1e6, "us",
                      p99_us=np.percentile(times, 99) * 1e6)

    def get_refs(name):
        ref = make_refs.remote()
        harness.measure(name, lambda: ray.get(ref), unit="gets/s", one_call=True)

    def groups():
        made = [ray.util.placement_group([{"custom": 0.001}]) for _ in range(100)]
        for group in made:
            group.wait(timeout_seconds=30)
        for group in made:
            ray.util.remove_placement_group(group)

    harness.row("single_client_get_calls", get_small)
    harness.row("single_client_put_calls", lambda name: harness.measure(
        name, lambda: ray.put(0), one_call=True))
    harness.row("multi_client_put_calls", lambda name: harness.measure(
        name, lambda: ray.get([put_small_ones.remote(100) for _ in range(10)]), 1000))
    harness.row("single_client_put_gigabytes", put_huge)
    harness.row("multi_client_put_gigabytes", lambda name: harness.measure(
        name, lambda: ray.get([put_large_ones.remote(10) for _ in range(10)]), 8, "GB/s",
        calls=100))
    harness.row("put_large_over_memcpy", put_over_memcpy)
    harness.row("get_large_object_us", get_large)
    harness.row("single_client_get_object_containing_10k_refs", get_refs)
    harness.row("placement_group_create_remove", lambda name: harness.measure(
        name, groups, 100, "groups/s"))


def scale_rows(harness):
    def timed(work):
        start = time.perf_counter()
        result = work()
        return time.perf_counter() - start, result

    def many_arguments(name):
        values = [[1] * 10_000 for _ in range(10_000)]
        took, total = timed(lambda: ray.get(sum_all.remote(*values)))
        assert total == 100_000_000
        harness.print(name, took, "s")

    def get_many(name):
        values = np.arange(10_000)
        put_s, refs = timed(lambda: [ray.put(values) for _ in range(10_000)])
        get_s, _ = timed(lambda: ray.get(refs))
        harness.print(name, get_s, "s", put_s=put_s)

    def drain_a_million(name):
        path = f"/tmp/{MARK}"
        with open(path, "w", encoding="ascii"):
            pass
        for _ in range(os.cpu_count()):
            run_while_exists.remote(path)
        try:
            submit_s, refs = timed(lambda: [small_value.remote() for _ in range(1_000_000)])
        finally:
            os.unlink(path)
        drain_s, _ = timed(lambda: ray.get(refs))
        harness.print(name, submit_s + drain_s, "s", submit_s=submit_s, drain_s=drain_s)

    harness.row("args_10k_s", many_arguments)
    harness.row("get_10k_objects_s", get_many)
    harness.row("queued_million_drain_s", drain_a_million)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--skip", action="append", default=[])
    parser.add_argument("--driver")
    options = parser.parse_args()
    context = ray.init(num_cpus=os.cpu_count(), resources={"custom": 100},
                       include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        if options.driver:
            words = ["--seconds", str(options.seconds)]
            words += [word for part in options.only for word in ("--only", part)]
            words += [word for part in options.skip for word in ("--skip", part)]
            return subprocess.run(  # Ray's C++ driver was seen to wait for ever.
                [options.driver, *words], check=False, timeout=DRIVER_SECONDS_MAX,
                env={**os.environ, "RAY_ADDRESS": context.address_info["gcs_address"]}).returncode
        harness = Harness(options)
        for rows in (task_rows, actor_rows, object_rows, scale_rows):
            rows(harness)
        return 1 if harness.failed else 0
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
