"""Servers that stay up from one call to the next: deployments of ours, and bare SGLang servers.

Way:   a stage -> [only, until_ready] -> `disagg serve` or `sglang.launch_server`, each in a session of its own
Owns:  STATE/run/NAME.json for each: its pid, its URLs, since when. A server that a stage does not name is ended first,
       for one card does not hold all
Fails: NotReady, with the end of the server's log
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.gpu.places import LOGS, PROJECT, STATE, Profile, profile
from benchmarks.gpu.shape import ONE_LAYER_VARIABLE
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.sglang.command_line import command_line

RUN = STATE / "run"
STOP_S = 25.0
LOOK_S = 0.25
TAIL_BYTES = 3000


class NotReady(Exception):
    pass


@dataclass(frozen=True)
class Wanted:
    """What a stage needs. `ready`: the path that answers 200 once it serves."""

    name: str
    words: tuple[str, ...]
    port: int
    ready: str
    environment: dict[str, str]
    bootstrap_port: int = 0


@dataclass(frozen=True)
class Server:
    """One that was started."""

    name: str
    url: str
    ready: str
    pid: int
    born_s: float  # with its pid: which process is meant
    started_s: float  # time.time()
    bootstrap_port: int = 0

    @property
    def is_alive(self) -> bool:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            return bool(process.create_time() == self.born_s and process.status() != psutil.STATUS_ZOMBIE)
        return False


def _port() -> int:
    """Below the range from which the kernel takes a client's ports: a server needs it only a minute later."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def ours(
    name: str,
    config: str,
    model: str,
    sets: Sequence[str] = (),
    *,
    of_shape: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Wanted:
    """A deployment; on a Ray of its own, or two of them would share one. `of_shape`: its engines have the
    shape's arguments, and one layer's weights."""
    port, it = _port(), profile()
    roles = ("aggregated",) if "aggregated" in config else ("prefill", "decode")
    arguments = it.engine | (it.shape_engine if of_shape else {})
    words = [sys.executable, "-m", "disagg.cli.main", "serve", config]
    sets = [
        f"model.path={model}",
        "model.name=bench",
        f"frontend.port={port}",
        "ray.address=local",
        *it.sets,
        *(f"{role}.engine.{key}={json.dumps(value)}" for role in roles for key, value in arguments.items()),
        *sets,
    ]
    if of_shape:
        sets = [*sets, *(f'{role}.env.{ONE_LAYER_VARIABLE}="1"' for role in roles)]
    words += [word for each in sets for word in ("--set", each)]
    return Wanted(it.prefix + name, tuple(words), port, "/ready", it.ours_environment | dict(environment or {}))


def bare(name: str, it: Profile, model: str, mode: str = "") -> Wanted:
    """An SGLang server as it comes, with the engine arguments of the shape. `mode`: prefill, decode or neither.

    Of two cards a prefill has the first and a decode the second, each seeing only its own, as Ray's actors do; or each
    has all of them.
    """
    port, bootstrap = _port(), _port()
    arguments: dict[str, Any] = (
        it.engine
        | it.shape_engine
        | {
            "model_path": model,
            "served_model_name": "bench",
            "device": it.device,
            "host": "127.0.0.1",
            "port": port,
            "nccl_port": _port(),
            "grammar_backend": "none",
        }
    )
    if mode:
        arguments = ROLES[Role(mode)].arguments(arguments, device=it.device, bootstrap_port=bootstrap)
    words = [sys.executable, *command_line(arguments, metadata.version("sglang"))[1:]]
    environment = bare_environment(name, it) | {ONE_LAYER_VARIABLE: "1"}
    if it.cards > 1 and not it.shares_cards:
        environment["CUDA_VISIBLE_DEVICES"] = "1" if mode == "decode" else "0"
    return Wanted(it.prefix + name, tuple(words), port, "/health", environment, bootstrap if mode == "prefill" else 0)


def bare_environment(name: str, it: Profile) -> dict[str, str]:
    """Of a bare SGLang. Without a GPU it needs our bridges, which act only in engines of ours."""
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | it.environment
    if it.device != "cpu":
        return environment
    from disagg.cpu_profile.paths import standin_environment
    from disagg.host_spec import LIFE_VARIABLE

    scratch = STATE / "scratch" / name
    scratch.mkdir(parents=True, exist_ok=True)
    plugins = {"SGLANG_PLUGINS": "disagg_cpu,disagg_gpu_bench", LIFE_VARIABLE: f"{name}#1", "TMPDIR": str(scratch)}
    return standin_environment({"PYTHONPATH": os.environ.get("PYTHONPATH", "")}) | environment | plugins


def only(wanted: Iterable[Wanted]) -> list[Server]:
    """Ends all others, starts those that do not run; returns without waiting for them, in the order asked for."""
    wanted = list(wanted)
    names = [one.name for one in wanted]
    stop(server for server in running() if server.name not in names)
    alive = {server.name: server for server in running()}
    return [alive.get(one.name) or _start(one) for one in wanted]


def running() -> list[Server]:
    found = [Server(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(RUN.glob("*.json"))]
    return [server for server in found if server.is_alive]


def _start(wanted: Wanted) -> Server:
    for folder in (RUN, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{wanted.name}.log").open("ab") as log:
        process = subprocess.Popen(
            wanted.words,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | wanted.environment,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(
        name=wanted.name,
        url=f"http://127.0.0.1:{wanted.port}",
        ready=wanted.ready,
        pid=process.pid,
        born_s=psutil.Process(process.pid).create_time(),
        started_s=time.time(),
        bootstrap_port=wanted.bootstrap_port,
    )
    (RUN / f"{wanted.name}.json").write_text(json.dumps(asdict(server)), encoding="utf-8")
    return server


def stop(servers: Iterable[Server]) -> None:
    """All at once; their trees are killed where a SIGTERM does not do."""
    trees = {server.name: _tree(server.pid) for server in servers if server.is_alive}
    for tree in trees.values():
        with suppress(psutil.NoSuchProcess):
            tree[0].send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([one for tree in trees.values() for one in tree], timeout=STOP_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_S)
    for name in trees:
        (RUN / f"{name}.json").unlink(missing_ok=True)


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def until_ready(servers: Iterable[Server], limit_s: float) -> dict[str, float]:
    """Seconds from each one's start until it answered, as seen here."""
    waiting = {server.name: server for server in servers}
    took_s: dict[str, float] = {}
    end_s = time.monotonic() + limit_s
    while waiting:
        for server in list(waiting.values()):
            if not server.is_alive:
                raise NotReady(f"{server.name} has ended:\n{log_tail(server.name)}")
            with suppress(httpx.HTTPError):
                if httpx.get(server.url + server.ready, timeout=5.0, trust_env=False).status_code == 200:
                    took_s[server.name] = time.time() - server.started_s
                    del waiting[server.name]
        if time.monotonic() > end_s:
            tails = "\n".join(f"--- {name}\n{log_tail(name)}" for name in waiting)
            raise NotReady(f"not ready within {limit_s:g} s: {', '.join(waiting)}\n{tails}")
        time.sleep(LOOK_S)
    return took_s


def log_tail(name: str) -> str:
    try:
        return (LOGS / f"{name}.log").read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""


def status(server: Server) -> dict[str, dict[str, Any]]:
    """The engines of a deployment of ours, by id."""
    answer = httpx.get(f"{server.url}/disagg/status", timeout=15.0, trust_env=False).json()
    return {engine["id"]: engine for engine in answer["engines"]}


def incarnations(*servers: Server) -> dict[str, int]:
    """Of every engine, by its server's name and its id: what died meanwhile has another one."""
    return {
        f"{server.name} {name}": engine["incarnation"] for server in servers for name, engine in status(server).items()
    }


def engine_logs() -> Path:
    """Of all deployments, one folder each."""
    return Path(os.environ.get("DISAGG_CACHE") or "~/.cache/disagg").expanduser() / "logs"


if __name__ == "__main__":  # run.sh stop
    stop(running())
