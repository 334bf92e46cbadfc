"""Several nodes on this machine: each a network namespace and a mount namespace, with its own address, its own /dev/shm
and its own folder for Ray. What runs in them are the real things; taking a node's link down is a network partition.

Needs root (or the capabilities of one who may make namespaces), and iproute2's `ip`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SUBNET = "10.77.0"
NOBODY = "02:00:00:00:00:01"  # an Ethernet address that is none's
# What a node has to itself, then a process that keeps its namespaces.
HOLD = """
mount -t tmpfs -o mode=1777,size=4g tmpfs /dev/shm
mkdir -p /tmp/ray && mount --bind {folder} /tmp/ray
echo held && exec sleep infinity
"""


class Node:
    """`number` from 1. `address` is what the other nodes know it by."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.number = name, number
        self.address = f"{SUBNET}.{number}"
        self._link = f"{name}v"
        folder.mkdir()
        hold = ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-ec", HOLD.format(folder=folder)]
        self._holder = subprocess.Popen(hold, stdout=subprocess.PIPE, start_new_session=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"held\n", "no mount namespace: is this root?"

    def command(self, *words: str) -> list[str]:
        """The same, run in the node."""
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--mount", "--", *words]

    def run(self, *words: str, environment: Mapping[str, str] = {}, limit_s: float = 60) -> str:
        done = subprocess.run(
            self.command(*words),
            env=os.environ | dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            text=True,
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def start(self, *words: str, log: Path, environment: Mapping[str, str] = {}) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(*words),
                env=os.environ | dict(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def namespace(self) -> str:
        return f"/proc/{self._holder.pid}/ns/net"

    def pids(self) -> list[int]:
        """Of everything that runs in the node, but what keeps it."""
        network = os.readlink(self.namespace)
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/ns/net") == network and int(entry) != self._holder.pid:
                    found.append(int(entry))
        return found

    def listening(self) -> set[tuple[str, int, str]]:
        """Address, port and command line of all that takes connections over TCP."""
        found = set()
        for line in self.run("ss", "-H", "-l", "-t", "-n", "-p").splitlines():
            address, _, port = line.split()[3].rpartition(":")
            for pid in re.findall(r"pid=(\d+)", line):
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
                    found.add((address.strip("[]"), int(port), command))
        return found

    def cut(self) -> None:
        """A network partition: nothing leaves the node, and nothing comes in."""
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        _ip("link", "set", self._link, "up")

    def lose(self, other: Node) -> None:
        """A partition between these two: what one sends the other is lost on the way, and nobody is told."""
        for one, far in (self, other), (other, self):
            _ip("-n", one.name, "neigh", "replace", far.address, "lladdr", NOBODY, "nud", "permanent", "dev", "node0")

    def find(self, other: Node) -> None:
        for one, far in (self, other), (other, self):
            _ip("-n", one.name, "neigh", "del", far.address, "dev", "node0")

    def close(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._holder.stdout is not None
        self._holder.stdout.close()
        self._holder.kill()
        self._holder.wait()


@contextlib.contextmanager
def nodes(count: int) -> Iterator[list[Node]]:
    """On a bridge of their own; nothing of it is left, whatever happens."""
    tag = f"dg{secrets.token_hex(2)}"
    made: list[Node] = []
    with tempfile.TemporaryDirectory(prefix="disagg-nodes-", ignore_cleanup_errors=True) as folder:
        try:
            _ip("link", "add", tag, "type", "bridge")
            _ip("link", "set", tag, "up")
            for number in range(1, count + 1):
                name = f"{tag}n{number}"
                _ip("netns", "add", name)
                _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "node0", "netns", name)
                _ip("link", "set", f"{name}v", "master", tag, "up")
                _ip("-n", name, "addr", "add", f"{SUBNET}.{number}/24", "dev", "node0")
                _ip("-n", name, "link", "set", "node0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
                made.append(Node(name, number, Path(folder) / name))
            yield made
        finally:
            for node in made:
                node.close()
            for number in range(1, count + 1):
                _ip("netns", "del", f"{tag}n{number}", may_fail=True)
            _ip("link", "del", tag, may_fail=True)


def ray_start(nodes: Sequence[Node], cpus: float, gpus: float = 0, more: Mapping[str, str] = {}) -> dict[str, str]:
    """A Ray cluster over the nodes, the first one its head; returns the environment of whoever is to use it. `more`:
    for all that runs in it."""
    environment = {
        **more,
        "RAY_ADDRESS": f"{nodes[0].address}:6379",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
    }
    for node in nodes:
        ray_join(node, nodes[0], environment, cpus, gpus)
    return environment


def ray_join(node: Node, head: Node, environment: Mapping[str, str], cpus: float, gpus: float = 0) -> None:
    where = ["--head", "--port=6379"] if node is head else [f"--address={head.address}:6379"]
    node.run(
        str(Path(sys.executable).with_name("ray")),
        "start",
        *where,
        f"--node-ip-address={node.address}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
        environment={**environment, "RAY_ADDRESS": ""},
        limit_s=120,
    )


def _ip(*words: str, may_fail: bool = False) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert may_fail or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"
