"""The Ray actors: one NodeAgent a node, one EngineActor an engine node. They start, watch, end; no token passes here.

Way:   controller =Ray calls=> [NodeAgent, EngineActor] -> zygote, reaper -> host
Owns:  the agent its zygote, its node's port numbers and log folder; the engine actor the pipe of one reaper
Fails: an actor that dies, however it dies, closes its pipe: its reaper then leaves nothing of the engine behind
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from disagg import surroundings
from disagg.cluster.ports import held_name, why_not_bound
from disagg.errors import StartError
from disagg.folders import log_folder, own_folder, run_folder
from disagg.host_spec import (
    DEPLOYMENT_VARIABLE,
    SECRET_VARIABLE,
    HostSpec,
    StandbySpec,
    decode_spec,
    encode_spec,
)
from disagg.logfile import last_lines
from disagg.process.news import VANISHED, Exit, LaneSeen, LogTrouble, Ready, Started, decode_news
from disagg.process.standby import NoStandby, Standby, spawn_with_pipe
from disagg.sglang.arguments import PORT_BLOCK
from disagg.sglang.plugins.loopback import ONE_ADDRESS_VARIABLE

log = logging.getLogger(__name__)

PORT_RANGE = range(20000, 32000)  # below the kernel's ephemeral ports: nothing is given out twice behind our back
PIPE_LINE_MAX_BYTES = 1 << 20


class NodeAgent:
    """One a node. Where engines can be forked, its zygote forks them."""

    def __init__(self, deployment: str, secret: str, environment: dict[str, str], python_path: list[str]) -> None:
        os.umask(0o077)  # also for all processes started here: a cluster's own umask may let all users read
        self._deployment = deployment
        self._folder = own_folder(run_folder(deployment))
        path = [*python_path, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = (
            surroundings.of_our_processes(os.environ)
            | environment
            | {
                DEPLOYMENT_VARIABLE: deployment,
                SECRET_VARIABLE: secret,
                "PYTHONPATH": os.pathsep.join(path),
            }
        )
        self._zygote: subprocess.Popen[bytes] | None = None
        # Two nodes may share a file system. Eight characters: see run_folder.
        self._node = _node_id()[:8]
        self._zygote_socket = self._folder / f"zygote-{self._node}.sock"
        self._blocks = PortBlocks()

    async def warm_up(self) -> str:
        """Starts the zygote, unless it runs, and returns the path of its socket; raises StartError with its last
        lines."""
        if self._zygote is not None and self._zygote.poll() is None:
            return str(self._zygote_socket)
        log = log_folder(self._deployment) / f"zygote-{self._node}.log"
        with _log_output(log) as output:
            self._zygote = subprocess.Popen(  # noqa: ASYNC220 - returns at once
                [sys.executable, "-P", "-m", "disagg.process.zygote", str(self._zygote_socket)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                # What it forks has its environment in /proc for ever, and SGLang's processes need no secret.
                env={name: value for name, value in self._environment.items() if name != SECRET_VARIABLE},
                start_new_session=True,
            )
        assert self._zygote.stdout is not None
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(f"{self._environment[SECRET_VARIABLE]}\n".encode())
        self._zygote.stdin.flush()
        while line := await asyncio.to_thread(self._zygote.stdout.readline):
            if line == b"ready\n":
                return str(self._zygote_socket)
        tail = "\n".join(last_lines(log, 20)) or f"(what it said is not in {log}: its disk may be full)"
        raise StartError("engine preload", f"SGLang could not be imported:\n{tail}", "see `disagg setup`")

    def environment(self) -> dict[str, str]:
        return self._environment

    def ports(self, name: str) -> int:
        """The first of PORT_BLOCK ports for the next incarnation of an engine's member here; gives back the block of
        the previous one. Raises StartError when no block is free, and when the zygote is dead: then this agent is of no
        use.
        """
        if self._zygote is not None and self._zygote.poll() is not None:
            raise RuntimeError(f"its zygote has ended with {self._zygote.returncode}")
        return self._blocks.reserve(name)

    def log(self, name: str, lines: int) -> str:
        return "\n".join(last_lines(log_folder(self._deployment) / f"{name}.log", lines))


def _log_output(path: Path) -> BinaryIO:
    """A new file for what a process prints. Where none can be made the process runs, and its output is lost."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        log.warning("no log at %s: %s", path, error)
        return open(os.devnull, "wb")


class _Block(NamedTuple):
    first: int
    hold: int  # while this file is open, no other deployment of this machine takes these ports


class PortBlocks:
    """A node's port numbers, in blocks. A block that comes back is the last in line: SGLang's decode engines remember
    bootstrap addresses, and one is not to meet another prefill behind an address while it may still know the old one.

    Engines listen only some seconds after they get their numbers: until then two deployments of one machine would not
    see each other's. So a block is held by a name that belongs to one process, and to the ports' network namespace.
    """

    def __init__(self, port_range: range = PORT_RANGE) -> None:
        firsts = list(port_range[::PORT_BLOCK][: len(port_range) // PORT_BLOCK])
        self._free = deque(random.sample(firsts, len(firsts)))
        self._held: dict[str, _Block] = {}  # by engine; one incarnation of an engine lives at a time

    def reserve(self, engine_id: str) -> int:
        """The first port of a block that nobody listens on now. Raises StartError when no block is free."""
        before = self._held.pop(engine_id, None)
        for _ in range(len(self._free)):
            first = self._free.popleft()
            hold = held_name(f"disagg.ports.{first}")
            if hold is not None and not any(why_not_bound("", port) for port in range(first, first + PORT_BLOCK)):
                self._held[engine_id] = _Block(first, hold)
                break
            if hold is not None:
                os.close(hold)
            self._free.append(first)
        if before is not None:
            os.close(before.hold)
            self._free.append(before.first)
        if engine_id not in self._held:
            what = f"no free block of {PORT_BLOCK} ports among {len(self._free)}"
            raise StartError("ports", what, "end what else uses ports from 20000 to 32000 on this node")
        return self._held[engine_id].first


class EngineActor:
    """Supervises one engine node, incarnation after incarnation."""

    def __init__(self) -> None:
        os.umask(0o077)
        self._exit: asyncio.Future[Exit] | None = None
        self._beginning = asyncio.Lock()  # held until an incarnation that begins can be ended
        self._writer: asyncio.StreamWriter | None = None
        self._lane = self._log_trouble = ""
        self._life = ""  # that is up, or was last
        self._pids: dict[str, int | list[int]] = {"actor": os.getpid()}
        self._standby: Standby | None = None
        self._no_standby = ""  # why the next incarnation has none
        self._next: tuple[StandbySpec, dict[str, str]] | None = None  # what a standby would be made from

    async def start(self, spec_json: bytes, zygote: str | None, environment: dict[str, str]) -> Ready:
        """Starts the incarnation; returns what its host says when ready, or raises StartError with its last lines.

        `zygote`: the socket of the process that forks it; None spawns it with `environment`.
        """
        spec = _on_this_node(decode_spec(spec_json))
        ready: asyncio.Future[Ready | Exit] = asyncio.get_running_loop().create_future()
        async with self._beginning:
            self._writer, self._lane, self._log_trouble, self._life = None, "", "", ""
            self._exit = asyncio.get_running_loop().create_future()
            reader, self._writer, way = await self._way_to_reaper(spec, zygote, environment)
            self._writer.write(encode_spec(spec) + b"\n")
            self._reading = asyncio.get_running_loop().create_task(self._read(reader, self._writer, ready, self._exit))
        answer = await ready
        if isinstance(answer, Exit):
            tail = "\n".join(answer.tail)
            raise StartError(spec.place, f"it died while starting ({answer.status}); its last lines:\n{tail}")
        self._life = spec.life
        self._no_standby = answer.unfit
        standby = StandbySpec(environment=spec.environment, spares=answer.spares)
        self._next = (standby, environment) if answer.spares else None
        return msgspec.structs.replace(
            answer, pids=self._pids, devices=self.devices(), way=way, log_trouble=self._log_trouble
        )

    async def keep_spare(self) -> None:
        """Starts a standby for the next incarnation of the engine that runs."""
        async with self._beginning:
            if self._standby is not None and self._standby.has_ended:
                self._standby.close()
                self._standby = None
            if self._standby is None and self._next is not None:
                self._standby = await Standby.start(*self._next)
            elif self._no_standby:
                log.warning("no standby can be kept: %s", self._no_standby)

    async def exited(self) -> Exit:
        """Returns once nothing of the incarnation is left."""
        assert self._exit is not None
        return await asyncio.shield(self._exit)

    async def end(self) -> None:
        """Kills the incarnation's whole tree and returns once it is gone."""
        async with self._beginning:
            pass
        if self._writer is not None and self._exit is not None and not self._exit.done():
            self._writer.write_eof()  # its reaper kills them all: SIGKILL ends stopped processes, too
            await self._exit

    def runs(self) -> str:
        """The life that is up; empty: none is."""
        return self._life if self._exit is not None and not self._exit.done() else ""

    def devices(self) -> str:
        """The GPUs that Ray gave this actor."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def node_id(self) -> str:
        return _node_id()

    def lane(self) -> str:
        return self._lane

    def log_trouble(self) -> str:
        """Why the engine's log lacks lines; empty if it does not."""
        return self._log_trouble

    async def _way_to_reaper(
        self, spec: HostSpec, zygote: str | None, environment: dict[str, str]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """(the pipe to a reaper that waits for the spec, how that reaper came to be, for people)."""
        if zygote:
            reader, writer = await asyncio.open_unix_connection(zygote, limit=PIPE_LINE_MAX_BYTES)
            return reader, writer, "forked"
        standby, self._standby = self._standby, None
        if standby is not None:
            try:
                return await standby.claim(spec)
            except NoStandby as error:
                self._no_standby = str(error)
        pipe, way = spawn_with_pipe("disagg.process.reaper", environment), "spawned"
        if self._no_standby:
            way += f", for its spare is of no use: {self._no_standby}"
            self._no_standby = ""  # said
            log.warning("%s is %s", spec.place, way)
        reader, writer = await asyncio.open_unix_connection(sock=pipe, limit=PIPE_LINE_MAX_BYTES)
        return reader, writer, way

    async def _read(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ready: asyncio.Future[Ready | Exit],
        gone: asyncio.Future[Exit],
    ) -> None:
        answer, why_ended = VANISHED, ""
        try:
            while line := await reader.readline():
                try:
                    news = decode_news(line)
                except msgspec.DecodeError as error:
                    why_ended = f"what it says cannot be read: {error}"
                    writer.write_eof()  # its reaper ends it all, and says so
                    continue
                match news:
                    case Started(reaper, host):
                        self._pids |= {"reaper": reaper, "host": host}
                    case Ready() as message:
                        self._pids |= message.pids
                        ready.set_result(message)
                    case LaneSeen(lane):
                        self._lane = lane
                    case LogTrouble(trouble):
                        self._log_trouble = trouble
                    case Exit() as answer:
                        pass
        except ConnectionError:
            pass
        finally:
            writer.close()  # at the peer's end of file asyncio keeps our half open
        if why_ended:
            answer = msgspec.structs.replace(answer, why=why_ended)
        if not ready.done():
            ready.set_result(answer)
        gone.set_result(answer)


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _on_this_node(spec: HostSpec) -> HostSpec:
    """The spec with what only this node knows."""
    # SGLang would choose an address itself, and on a node with several networks perhaps another one.
    environment = {"SGLANG_HOST_IP": spec.plane_host, ONE_ADDRESS_VARIABLE: "1"} | (
        between_nodes(spec) if spec.members > 1 else {}
    )
    if is_loopback(spec.plane_host):
        environment |= on_loopback()
    environment |= spec.environment
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    return msgspec.structs.replace(spec, environment=environment, asked_s=time.monotonic())


def between_nodes(spec: HostSpec) -> dict[str, str]:
    """The environment by which the hosts of an engine over several nodes use the network of their addresses in Ray."""
    network = interface_of(spec.plane_host)
    # Left alone, Gloo and NCCL may choose a network that does not lead to the other nodes. NCCL takes a name without =
    # for the beginning of a name. Variables that the node's Ray was started with are kept.
    said = {"GLOO_SOCKET_IFNAME": network, "NCCL_SOCKET_IFNAME": f"={network}"} if network else {}
    ours = {name: value for name, value in said.items() if name not in os.environ}
    if spec.member:
        ours["SGLANG_BLOCK_NONZERO_RANK_CHILDREN"] = "0"  # Engine() returns there, too
    return ours


def is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def on_loopback() -> dict[str, str]:
    """The environment of an engine of a private deployment: all that its libraries open is on loopback, too."""
    import psutil

    addresses = psutil.net_if_addrs()
    (loopback, *_) = [name for name in addresses if any(each.address == "127.0.0.1" for each in addresses[name])]
    others = [name for name in addresses if name != loopback]
    # ^ excludes: RDMA devices stay, and so do the lanes of GPUs, which open no port.
    ucx = {"UCX_NET_DEVICES": "^" + ",".join(others)} if others else {}
    return {
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": f"={loopback}",
        **ucx,
    }


def interface_of(address: str) -> str:
    """The network interface that has this address; empty if none has."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return str(name)
    return ""
