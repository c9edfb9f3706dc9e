"""A cluster whose daemons live in network namespaces, as on hosts of their own: for benchmarks; needs root.

`troupe up` chooses credentials, ports and options on this machine and is taken down again; then each daemon is started
anew at the address of its host. Who it belongs to may restart what is killed (keep).
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time

PATIENCE = 60
DEVICE = "eth0"  # In each host.


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def address(host):
    return f"10.78.0.{host + 1}"


@contextlib.contextmanager
def hosts(count):
    """Names of so many namespaces that reach each other; two of them by one veth, more through a bridge."""
    names = [f"troupe-{host}-{os.getpid()}" for host in range(count)]
    switch = f"troupe-switch-{os.getpid()}"
    made = []
    try:
        for name in names if count == 2 else [*names, switch]:
            ip("netns", "add", name)
            made.append(name)
        if count == 2:
            ip("link", "add", DEVICE, "netns", names[0], "type", "veth", "peer", "name", DEVICE, "netns", names[1])
        else:
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            for host, name in enumerate(names):
                port = f"port{host}"
                ip("link", "add", DEVICE, "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
                ip("-n", switch, "link", "set", port, "master", "bridge", "up")
        for host, name in enumerate(names):
            ip("-n", name, "addr", "add", f"{address(host)}/24", "dev", DEVICE)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", DEVICE, "up")
        yield names
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False)


class Cluster:
    """`place` gives a daemon's host by its name. The client is on the last host, where workers must be, too."""

    def __init__(self, troupe, names, place, options):
        self.troupe = troupe
        self.names = names
        self.place = place
        self.folder = tempfile.mkdtemp(prefix="troupe-hosts-")
        self.state = os.path.join(self.folder, "state")
        self.daemons = {}
        self.closing = threading.Event()
        self.keeper = None
        self.options = options
        self.path = os.path.join(self.state, "cluster.json")
        self.record = {}

    def __enter__(self):
        try:
            self._choose()
            self._move()
            for daemon in self.record["daemons"]:
                self._start(daemon)
            self._save()
            self._wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_):
        self.closing.set()
        if self.keeper:
            self.keeper.join()
        for process in self.daemons.values():
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def keep(self):
        """From now on starts again what dies."""
        self.keeper = threading.Thread(target=self._keep)
        self.keeper.start()

    def run(self, *command):
        """On the client's host."""
        return subprocess.run(["ip", "netns", "exec", self.names[-1], *command], check=False).returncode

    def _choose(self):
        up = [self.troupe, "up", "--state", self.state, "--no-keeper", "--gateway-port", "-1", *self.options]
        try:
            subprocess.run(up, check=True, stdout=subprocess.DEVNULL)
            with open(self.path, encoding="utf-8") as file:
                self.record = json.load(file)
        finally:
            subprocess.run([self.troupe, "down", "--state", self.state], check=False, stdout=subprocess.DEVNULL)
        for name in os.listdir(os.path.join(self.state, "logs")):
            os.remove(os.path.join(self.state, "logs", name))

    def _move(self):
        # HOST:PORT is that of the daemon which listens there; a bare address is the daemon's own.
        listens = {}
        for daemon in self.record["daemons"]:
            words = daemon["arguments"]
            for flag, value in zip(words, words[1:]):
                if flag in ("--port", "--peer-port"):
                    listens["127.0.0.1:" + value] = f"{address(self.place(daemon['name']))}:{value}"
        for daemon in self.record["daemons"]:
            own = address(self.place(daemon["name"]))
            daemon["arguments"] = [own if word == "127.0.0.1" else listens.get(word, word)
                                   for word in daemon["arguments"]]
        self.record["heads"] = [listens[head] for head in self.record["heads"]]
        self.record["host"] = address(len(self.names) - 1)

    def _start(self, daemon):
        command = ["ip", "netns", "exec", self.names[self.place(daemon["name"])], self.troupe, *daemon["arguments"]]
        # The benchmarks know the cluster's processes by the variable.
        marked = {**os.environ, "TROUPE_STATE": self.state}
        with open(os.path.join(self.state, "logs", daemon["name"] + ".log"), "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=marked)
        self.daemons[daemon["name"]] = process
        daemon["pid"] = process.pid

    def _save(self):
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.record, file)
        os.replace(self.path + ".new", self.path)

    def _keep(self):
        while not self.closing.wait(0.05):
            died = [daemon for daemon in self.record["daemons"] if self.daemons[daemon["name"]].poll() is not None]
            for daemon in died:
                self._start(daemon)
            if died:
                self._save()

    def _wait_ready(self):
        workers = sum(daemon["kind"] == "worker" for daemon in self.record["daemons"])
        status = ["ip", "netns", "exec", self.names[-1], self.troupe, "status", "--state", self.state, "-o", "json"]
        end = time.monotonic() + PATIENCE
        while True:
            seen = subprocess.run(status, capture_output=True, text=True, check=False)
            nodes = json.loads(seen.stdout)["nodes"] if seen.returncode == 0 else []
            if [node["state"] for node in nodes] == ["alive"] * workers:
                return
            if time.monotonic() > end:
                raise RuntimeError(f"the workers did not join: {seen.stdout}{seen.stderr}")
            time.sleep(0.1)
