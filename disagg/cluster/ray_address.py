"""Finds the Ray cluster that is meant, and checks that it answers: Ray itself would wait for minutes.

Way:   `ray.address` of the YAML, RAY_ADDRESS, what runs on this machine -> [meant] -> ray_cluster
Fails: StartError that names who said the address (the variable and its value, or the YAML's path), and what would do
"""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from disagg.errors import StartError

PRIVATE_PREFIX = "disagg-ray-"  # of the folder of a deployment's private cluster: how one is known to be private
VARIABLE = "RAY_ADDRESS"
ANSWER_S = 5.0  # to connect, and to say that it speaks HTTP/2
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)  # and empty SETTINGS
_SETTINGS = 0x04
_HOST_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")


class Meant(NamedTuple):
    """`address`: host:port of a cluster's GCS; empty: a private one. `said_by`: for people."""

    address: str
    said_by: str


class Here(NamedTuple):
    """A Ray that runs on this machine."""

    address: str
    uid: int
    is_private: bool  # of some deployment


def meant(address: str, environment: Mapping[str, str]) -> Meant:
    """`address`: auto, local or HOST:PORT."""
    if address == "local":
        return Meant("", "ray.address: local")
    if address != "auto":
        return Meant(address, f"ray.address: {address}")
    said = environment.get(VARIABLE, "").strip()
    if said and said not in ("auto", "local"):
        return Meant(_checked(said), f"{VARIABLE}={said}")
    if said == "local":
        return Meant("", f"{VARIABLE}=local")
    return _joined(runs_here())


def _checked(said: str) -> str:
    """A value of RAY_ADDRESS."""
    would_do = f"unset {VARIABLE}, or set it to HOST:PORT of `ray start --head` (its port is 6379 unless said)"
    if said.startswith("ray://"):
        what = "Ray Client is not supported"
        would_do = f"unset {VARIABLE} and start this on a node of the cluster, or with `ray job submit`"
    elif said.startswith(("http://", "https://")):
        what = "that is a dashboard's address, which takes jobs (`ray job submit`) and no drivers"
    elif not (port := _HOST_PORT.fullmatch(said)) or not 0 < int(port[1]) < 65536:
        what = "it is no HOST:PORT"
    else:
        return said
    raise StartError(f"{VARIABLE}={said}", what, would_do)


def _joined(here: Iterable[Here]) -> Meant:
    """What `auto` means where no variable says it: our user's own cluster, if there is just one."""
    ours = sorted({ray.address for ray in here if not ray.is_private and ray.uid == os.getuid()})
    if len(ours) > 1:
        what = f"{len(ours)} Ray clusters run on this machine: {', '.join(ours)}"
        raise StartError(
            "ray.address: auto", what, "say which (--set ray.address=HOST:PORT), or local for a private one"
        )
    return (
        Meant(ours[0], f"ray.address: auto, which is the cluster that runs here at {ours[0]}")
        if ours
        else Meant("", "")
    )


def others_here() -> list[str]:
    """Clusters of other users, to be named in a message. `auto` never joins them."""
    found = {ray for ray in runs_here() if ray.uid != os.getuid() and not ray.is_private}
    return [f"{ray.address} of {_user(ray.uid)}" for ray in sorted(found)]


def runs_here() -> list[Here]:
    """Each raylet says in its command where its cluster's GCS is, and where its files are. One in a network of its own,
    a container's, is not here: its address means another machine, or nothing."""
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        command = process.info["cmdline"] or []
        if not command or Path(command[0]).name != "raylet" or not _is_in_our_network(process.pid):
            continue
        said = dict(argument.split("=", 1) for argument in command if argument.startswith("--") and "=" in argument)
        address, folder = said.get("--gcs-address", ""), Path(said.get("--temp_dir", "/"))
        if address and process.info["uids"]:
            is_private = any(part.startswith(PRIVATE_PREFIX) for part in folder.parts)
            found.append(Here(address, process.info["uids"].real, is_private))
    return found


def refuse_a_silent_one(at: Meant, address: str) -> None:
    """`address`: where Ray will go for it, which is another one where a loopback address was said."""
    host, _, port = address.rpartition(":")
    would_do = f"check that the cluster runs and that {address} is reachable from here"
    if at.said_by.startswith(VARIABLE):
        would_do += f", or unset {VARIABLE}"
    elif "auto" in at.said_by:
        would_do = "end what is left of it (`ray stop`), or say ray.address: local"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), ANSWER_S) as probe:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            probe.sendall(_HTTP2_HELLO)
            answer = probe.recv(9)
    except TimeoutError:
        raise StartError(at.said_by, f"nothing answers at {address} within {ANSWER_S:g} s", would_do) from None
    except OSError as error:
        why = error.strerror or str(error)
        raise StartError(at.said_by, f"no Ray cluster answers at {address}: {why}", would_do) from None
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise StartError(at.said_by, f"what listens at {address} is no Ray cluster's GCS", would_do)


def _is_in_our_network(pid: int) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
    except OSError:
        return True  # another user's: whose it is is told


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
