"""Every port that a deployment listens on: who may, what it asks, what it answers without.

docs/security.md has this table for people (test_ports_are_told.py), and deployments that run are held against it
(tests/engines): what listens and is not in it is a mistake of ours, or news of SGLang, Ray or NIXL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from disagg.cluster.actors import PORT_RANGE
from disagg.sglang.arguments import PORT_BLOCK, Ports

OFFSETS = Ports.from_first(0)
OURS_ALONE = "loopback"
NODES = "loopback; on a cluster the node's address"
PEERS = "loopback; with `security.secret` and a shared registry on a cluster the node's address"
CONTROLS = "loopback; with a shared registry on a cluster the node's address"
RAYS = "loopback; on a cluster all addresses"
NOTHING = "nothing"
SECRET, A_NONCE = "the deployment's secret", "32 random bytes"


@dataclass(frozen=True)
class Listener:
    who: str  # kind of process
    what: str
    port: str
    on: str  # addresses
    may: str
    asks: str
    without: str


LISTENERS = (
    Listener("frontend", "HTTP", "`frontend.port`", "`frontend.host`", "clients", "a key, if there are any", "401"),
    Listener("frontend", "its peers", "any free", PEERS, "other frontends", SECRET, A_NONCE),
    Listener("disagg serve", "registry", "any free", OURS_ALONE, "its frontends", SECRET, A_NONCE),
    Listener("disagg serve", "control", "any free", CONTROLS, "its frontends", SECRET, A_NONCE),
    Listener("disagg serve", "Ray's driver", "any free", RAYS, "Ray", "Ray's token", "an error"),
    Listener("engine host", "request plane", "block + 10", NODES, "frontends", SECRET, A_NONCE),
    Listener("engine host", "SGLang's bootstrap", "block + 7", NODES, "decode engines", NOTHING, "everything"),
    Listener("scheduler", "torch's store", "block + 0 to 6, 9, 13", NODES, "its engine's ranks", NOTHING, "everything"),
    Listener("scheduler", "SGLang's queues", "any free", NODES, "engines' ranks", NOTHING, "everything"),
    Listener("scheduler", "NIXL (UCX), gloo, NCCL", "any free", NODES, "engines' ranks", NOTHING, "everything"),
    Listener("Ray", "its processes", "any free; deploy.md", RAYS, "Ray's nodes", "Ray's token", "an error"),
    Listener("zygote", "a Unix socket", "in a folder of mode 0700", "none", "the same user", NOTHING, "a fork"),
    Listener("Ray", "Unix sockets", "in a folder of mode 0700", "none", "the same user", NOTHING, "everything"),
    Listener("engine", "SGLang's queues", "in a folder of mode 0700", "none", "the same user", NOTHING, "everything"),
)
OF_ENGINES = ("engine host", "scheduler")


@dataclass(frozen=True)
class Open:
    """One socket that somebody may connect to."""

    who: str
    port: str  # as in the table
    address: str
    number: int = 0
    path: str = ""


def told(found: Open) -> bool:
    """Whether the table knows it."""
    return any(found.who == each.who and found.port == each.port.split(";")[0].strip("`") for each in LISTENERS)


def kind_of(process: psutil.Process) -> str:
    name, words = process.name(), process.cmdline()
    said = " ".join(words)
    if name.startswith("sglang::"):
        return "scheduler" if "scheduler" in name else "detokenizer"
    if "disagg.frontend.main" in words:
        return "frontend"
    if "disagg.process.zygote" in words or "disagg.process.host" in words or "disagg.process.standby_host" in words:
        return "engine host"
    if ("disagg.cli.main" in words or "disagg_start" in words) and "serve" in words:
        return "disagg serve"
    if name in ("gcs_server", "raylet") or said.startswith("ray::") or re.search(r"/ray/[\w/]+\.py\b", said):
        return "Ray"
    return f"unknown: {said[:100]}"


def open_in(processes: Iterable[psutil.Process], frontend_port: int) -> set[Open]:
    found = set()
    of_unix = _listening_paths()
    for process in processes:
        try:
            who, sockets = kind_of(process), process.net_connections("inet")
            inodes = {os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
        except (psutil.Error, OSError):  # it has ended
            continue
        for each in sockets:
            if each.status == psutil.CONN_LISTEN or (each.type.name == "SOCK_DGRAM" and not each.raddr):
                address = each.laddr.ip.removeprefix("::ffff:")
                found.add(Open(who, _port(who, each.laddr.port, frontend_port), address, each.laddr.port))
        for inode in inodes & of_unix.keys():
            found.add(_of_path(who, of_unix[inode]))
    return found


def _port(who: str, number: int, frontend_port: int) -> str:
    if who == "frontend" and number == frontend_port:
        return "frontend.port"
    if who in OF_ENGINES and number in PORT_RANGE:
        offset = (number - PORT_RANGE.start) % PORT_BLOCK
        if who == "engine host":
            return f"block + {offset}"
        if offset in (*range(7), OFFSETS.nccl, PORT_BLOCK - 1):
            return "block + 0 to 6, 9, 13"
    return "any free"


def _of_path(who: str, path: str) -> Open:
    """What lies in a folder of mode 0700 is its user's; what has an abstract name, or lies elsewhere, is not."""
    closed = not path.startswith("@") and any(
        above.stat().st_mode & 0o077 == 0 for above in Path(path).parents if above.exists()
    )
    if who == "engine host" and "/zygote-" in path:
        who = "zygote"
    elif who in (*OF_ENGINES, "detokenizer"):
        who = "engine"
    else:
        who = "Ray"
    return Open(who, "in a folder of mode 0700" if closed else path, "none", path=path)


def _listening_paths() -> dict[str, str]:
    """By what an open file of theirs is called in /proc."""
    accepts = 0x10000
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {f"socket:[{line[6]}]": (line[7] if len(line) > 7 else "@") for line in lines if int(line[3], 16) & accepts}
