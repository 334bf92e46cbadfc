"""Engine hosts without Ray: a zygote forks them, and a test talks to them over the plane, as a frontend does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from disagg.cluster.actors import PortBlocks
from disagg.config.schema import Deadlines
from disagg.cpu_profile.paths import standin_environment
from disagg.host_spec import DEPLOYMENT_VARIABLE, HostSpec, encode_spec
from disagg.kv_events.blocks import BlockHasher
from disagg.models.resolve import resolve_model
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.process.news import Exit, Ready, decode_news
from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.kv_feed import KvFeed
from disagg.routing.prefix_index.index import PrefixIndex
from disagg.sglang.arguments import Ports, engine_arguments, engine_environment
from disagg.sglang.plugins.faults import HANG_VARIABLE, NAN_VARIABLE, SLOW_VARIABLE

ADDRESS = "127.0.0.1"
START_S = 300.0  # on a busy machine
BUSY_S = 120.0  # for whatever is waited for: nothing here is timed
BLOCK_TOKENS = 64  # of what it tells of its prefix cache
GREEDY = {"temperature": 0.0, "ignore_eos": True}
_numbers = itertools.count(1)
_blocks = PortBlocks()


class Host:
    """One engine host, its reaper above it; gone with everything when its pipe closes."""

    def __init__(self, agent: NodeAgent, role: Role, model: str = "smollm2", **engine: Any) -> None:
        self.name = f"{role.value}-{next(_numbers)}"
        ports = Ports.from_first(_blocks.reserve(self.name))
        self.bootstrap_port = ports.bootstrap
        self.log = agent.folder / f"{self.name}.log"
        spec = HostSpec(
            engine_id=self.name,
            incarnation=1,
            role=role,
            arguments=engine_arguments(
                role, engine, device="cpu", model_path=str(resolve_model(model)), host=ADDRESS, ports=ports
            ),
            environment=engine_environment(role, device="cpu", deadlines=Deadlines(), ranks=engine.get("tp_size", 1)),
            plane_host=ADDRESS,
            log_path=str(self.log),
            scratch=str(agent.folder / self.name),
            fork=True,
            block_tokens=BLOCK_TOKENS,
        )
        self._secret = agent.secret
        self._pipe = socket.socket(socket.AF_UNIX)
        self._pipe.settimeout(START_S)
        self._pipe.connect(str(agent.path))
        self._pipe.sendall(encode_spec(spec) + b"\n")
        self._lines = self._pipe.makefile("rb")
        self.facts: dict[str, Any] = {}

    def wait_until_ready(self) -> Host:
        while line := self._lines.readline():
            match decode_news(line):
                case Exit():
                    break
                case Ready() as ready:
                    self.facts = msgspec.to_builtins(ready)
                    return self
        raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()[-4000:]}")

    @contextlib.asynccontextmanager
    async def cache(self) -> AsyncIterator[Cache]:
        """What it tells of its prefix cache, in an index."""
        cache = Cache(self.name, bytes.fromhex(self._secret))
        async with self.client(on_kv=cache.feed.on_kv) as client:
            await wait_until(cache.is_whole, BUSY_S)
            yield cache
            assert client.is_open

    @property
    def scheduler(self) -> psutil.Process:
        return psutil.Process(self.facts["pids"]["schedulers"][0])

    @contextlib.asynccontextmanager
    async def client(self, **asks: Any) -> AsyncIterator[PlaneClient]:
        client = PlaneClient(self.facts["plane"], 1, bytes.fromhex(self._secret), lambda _why: None, **asks)
        await client.connect()
        try:
            yield client
        finally:
            client.close()

    def close(self) -> None:
        """Returns once nothing of it is left."""
        with contextlib.suppress(OSError):
            self._pipe.shutdown(socket.SHUT_WR)
            while self._lines.readline():
                pass
        self._lines.close()
        self._pipe.close()


class Cache:
    """A frontend's view of what one engine's dp rank 0 has cached."""

    def __init__(self, name: str, secret: bytes) -> None:
        engine, nothing = Engine(name, f"{name}#1", Role.PREFILL, 0), None
        self.endpoint = Endpoint(engine, 0, "", nothing, nothing, slot=0)  # type: ignore[arg-type]
        engine.endpoints, self.index = [self.endpoint], PrefixIndex()
        self._hasher = BlockHasher(secret, BLOCK_TOKENS)
        self.feed = KvFeed(engine, self.index, BLOCK_TOKENS, lambda: None)

    async def is_whole(self) -> bool:
        return self.feed.is_whole or bool(self.feed.why_not and "yet" not in self.feed.why_not)

    def tokens(self, prompt_ids: list[int]) -> int:
        """Of the prompt's whole blocks, those that it has."""
        found = self.index.overlaps(self._hasher.path(prompt_ids))
        return max((held.blocks for held in found), default=0) * BLOCK_TOKENS


class NodeAgent:
    """A zygote, and the folder of everything it forks."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dh-"))
        self.path, self.secret = self.folder / "z.sock", secrets.token_hex(32)
        self.hang, self.slow_transfer, self.nan = (self.folder / name for name in ("hang", "slow", "nan"))
        environment = standin_environment(os.environ) | {
            **engine_environment(Role.PREFILL, device="cpu", deadlines=Deadlines()),  # imports read it
            DEPLOYMENT_VARIABLE: self.folder.name,
            HANG_VARIABLE: str(self.hang),
            SLOW_VARIABLE: str(self.slow_transfer),
            NAN_VARIABLE: str(self.nan),
        }
        self._log = (self.folder / "zygote.log").open("wb")
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "disagg.process.zygote", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(f"{self.secret}\n".encode())
        self._zygote.stdin.flush()
        assert self._zygote.stdout is not None
        line = self._zygote.stdout.readline()
        assert line == b"ready\n", (self.folder / "zygote.log").read_text()[-4000:]

    def close(self) -> None:
        self._zygote.kill()
        self._zygote.communicate()
        self._log.close()
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def agent() -> Iterator[NodeAgent]:
    made = NodeAgent()
    try:
        yield made
    finally:
        made.close()


class LegLog:
    """What one leg told, and when."""

    def __init__(self, client: PlaneClient, **submit: Any) -> None:
        self.stages: list[str] = []
        self.told_cached_tokens: int | None = None  # before its end
        self.token_ids: list[int] = []
        self.logprobs: list[m.TokenLogprobs] = []
        self.end: m.LegEnd | None = None
        self._client, self._news = client, asyncio.Event()
        self._number = client.submit(self, **submit)

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None:
        self.stages.append(name)
        if cached_tokens is not None:
            self.told_cached_tokens = cached_tokens
        self._news.set()

    def on_tokens(self, offset: int, token_ids: list[int], logprobs: list[m.TokenLogprobs] | None) -> None:
        assert offset == len(self.token_ids)
        self.token_ids += token_ids
        self.logprobs += logprobs or []
        self._news.set()

    def on_end(self, end: m.LegEnd) -> None:
        assert self.end is None
        self.end = end
        self._news.set()

    def abort(self) -> None:
        self._client.abort(self._number)

    async def until(self, condition: Callable[[LegLog], object], limit_s: float = BUSY_S) -> float:
        """Seconds until `condition(self)`."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                while not condition(self):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            told = f"stages {self.stages}, {len(self.token_ids)} tokens, end {self.end}"
            raise AssertionError(f"not within {limit_s:g} s: {told}") from None
        return time.monotonic() - began

    async def until_end(self, limit_s: float = BUSY_S) -> m.LegEnd:
        await self.until(lambda leg: leg.end, limit_s)
        assert self.end is not None
        return self.end


def leg(
    client: PlaneClient,
    prompt_ids: list[int],
    new_tokens: int,
    bootstrap: m.Bootstrap | None = None,
    dp_rank: int = 0,
    **sampling: Any,
) -> LegLog:
    return LegLog(
        client,
        leg_id=secrets.token_hex(16),
        prompt=m.pack_ids(prompt_ids),
        sampling={**GREEDY, **sampling, "max_new_tokens": new_tokens},
        dp_rank=dp_rank,
        bootstrap=bootstrap,
    )


def fresh_prompt(tokens: int) -> list[int]:
    """Nothing of it is cached."""
    return [random.randrange(1000, 40_000) for _ in range(tokens)]


async def wait_until(condition: Callable[[], Any], limit_s: float) -> float:
    """Seconds until the coroutine function's answer is true."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < limit_s, f"not within {limit_s} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began
