"""Real engines that are not forked: the next incarnation comes from a standby, and is the same engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from deployment import Traces, assert_nothing_left, serving
from hosts import ADDRESS, LegLog, fresh_prompt, leg, wait_until
from moe import ATTENTION_APART, PAGE

from disagg.cluster.actors import EngineActor, PortBlocks
from disagg.cluster.janitor import Search
from disagg.config.schema import Deadlines
from disagg.cpu_profile.paths import standin_environment
from disagg.host_spec import DEPLOYMENT_VARIABLE, SECRET_VARIABLE, HostSpec, encode_spec
from disagg.models.resolve import resolve_model
from disagg.models.tiny import make_tiny
from disagg.plane.client import PlaneClient
from disagg.roles import Role
from disagg.sglang.arguments import Ports, engine_arguments, engine_environment
from disagg.sglang.children import PRELAUNCHED_SINCE
from disagg.sglang.releases import number_of

# An actor does not wait for its reapers: they end after it.
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
KIT_S = 240.0


class Engine:
    """An engine actor as Ray has it, but in this process."""

    def __init__(self, folder: Path, model: str, **engine: Any) -> None:
        self.folder, self.engine, self.secret = folder, engine, secrets.token_hex(32)
        self.model = str(resolve_model(model))
        self.actor, self.blocks, self.incarnation = EngineActor(), PortBlocks(), 0
        self.environment = standin_environment(os.environ) | {
            DEPLOYMENT_VARIABLE: folder.name,
            SECRET_VARIABLE: self.secret,
        }
        self.facts: dict[str, Any] = {}

    async def start(self) -> float:
        """Seconds until its host says that it is up."""
        self.incarnation += 1
        ports, ranks = Ports.from_first(self.blocks.reserve("a")), self.engine.get("tp_size", 1)
        arguments = engine_arguments(
            Role.AGGREGATED, self.engine, device="cpu", model_path=self.model, host=ADDRESS, ports=ports
        )
        spec = HostSpec(
            engine_id="a",
            incarnation=self.incarnation,
            role=Role.AGGREGATED,
            arguments=arguments,
            environment=engine_environment(Role.AGGREGATED, device="cpu", deadlines=Deadlines(), ranks=ranks),
            plane_host=ADDRESS,
            log_path=str(self.folder / "a.log"),
            scratch=str(self.folder / f"a-{self.incarnation}"),
            fork=False,
        )
        began_s = time.monotonic()
        self.facts = msgspec.to_builtins(await self.actor.start(encode_spec(spec), None, self.environment))
        return time.monotonic() - began_s

    async def keep_spare(self) -> list[int]:
        """The standby's pids once it is ready."""
        await self.actor.keep_spare()

        async def is_ready() -> bool:
            assert self.actor._standby is not None
            return bool(self.actor._standby.pids)

        await wait_until(is_ready, KIT_S)
        assert self.actor._standby is not None
        return self.actor._standby.pids

    async def tokens(self, prompt: list[int]) -> list[int]:
        client = PlaneClient(self.facts["plane"], self.incarnation, bytes.fromhex(self.secret), lambda _why: None)
        await client.connect()
        answer: LegLog = leg(client, prompt, 12)
        assert (await answer.until_end()).reason == "length"
        client.close()
        return answer.token_ids

    def processes(self) -> set[int]:
        return {process.pid for process in Search(self.folder.name).look()}

    @property
    def log(self) -> str:
        return (self.folder / "a.log").read_text()


@contextlib.asynccontextmanager
async def engine(model: str = "smollm2", **arguments: Any) -> AsyncIterator[Engine]:
    made = Engine(Path(tempfile.mkdtemp(prefix="ds-")), model, **arguments)
    try:
        yield made
    finally:
        await made.actor.end()
        if made.actor._standby is not None:
            made.actor._standby.close()

        async def is_gone() -> bool:
            return not made.processes()

        try:
            await wait_until(is_gone, 30)
        finally:
            shutil.rmtree(made.folder)


async def test_an_engine_from_its_standby_is_the_same_engine_sooner() -> None:
    prompt, usual = fresh_prompt(40), os.getpriority(os.PRIO_PROCESS, 0)
    async with engine() as a:
        spawned_s = await a.start()
        assert a.facts["way"] == "spawned"
        _used_what_was_expected(a)
        first, of_first = await a.tokens(prompt), a.processes()
        standby = await a.keep_spare()
        assert len(standby) == 3, "a host, its scheduler, its detokenizer"
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in standby} <= {usual, 19}
        print(f"\nan idle standby: PSS {_pss_mb(standby):.0f} MB beside its engine")
        before_s = _cpu_s(standby)
        await asyncio.sleep(2)
        assert _cpu_s(standby) - before_s < 0.1, "it only waits"

        os.kill(a.facts["pids"]["schedulers"][0], signal.SIGKILL)
        exit_ = await asyncio.wait_for(a.actor.exited(), 20)
        assert exit_.signal or exit_.code is not None

        async def first_is_gone() -> bool:
            return not a.processes() & of_first

        await wait_until(first_is_gone, 30)
        print(f"\nspawned {spawned_s:.1f} s: {a.facts['start_s']}")
        standby_s = await a.start()
        print(f"from its standby {standby_s:.1f} s: {a.facts['start_s']}")
        assert a.facts["way"] == "spare"
        assert {a.facts["pids"]["host"], *a.facts["pids"]["schedulers"], *a.facts["pids"]["detokenizers"]} == set(
            standby
        )
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in standby} == {usual}
        assert "no spare process" not in a.log
        assert await a.tokens(prompt) == first
        for pid in standby:
            environment = psutil.Process(pid).environ()
            assert environment[DEPLOYMENT_VARIABLE] == a.folder.name, "the janitor would find it"


def _used_what_was_expected(of: Engine) -> None:
    """Its processes were there, importing, while its host imported."""
    assert "no spare process" not in of.log
    assert "were not used" not in of.log
    pids = of.facts["pids"]
    imported_s = psutil.Process(pids["host"]).create_time() + of.facts["start_s"]["imports"]
    assert all(psutil.Process(pid).create_time() < imported_s for pid in pids["schedulers"] + pids["detokenizers"])


def _cpu_s(pids: list[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def _pss_mb(pids: list[int]) -> float:
    return float(sum(psutil.Process(pid).memory_full_info().pss for pid in pids)) / 1e6


async def test_ranks_behind_a_controller_have_spares_too_and_a_dead_spare_is_replaced() -> None:
    prompt = fresh_prompt(40)
    tiny = {"page_size": PAGE, "max_total_tokens": 4096}
    async with engine(str(make_tiny("qwen3moe")), **ATTENTION_APART, **tiny) as a:
        spawned_s = await a.start()
        _used_what_was_expected(a)
        first = await a.tokens(prompt)
        standby = await a.keep_spare()
        if number_of(metadata.version("sglang")) < PRELAUNCHED_SINCE:
            assert len(standby) == 3, "a host, the controller, its detokenizer"
        else:
            assert len(standby) == 5, "a host, two schedulers, the controller, its detokenizer"
        family = {pid for each in standby for pid in (each, *(p.pid for p in psutil.Process(each).children(True)))}
        assert len(family) == 5, "and two schedulers"
        os.kill(_detokenizer(standby[1:]), signal.SIGKILL)  # the host's own command names it, too
        os.kill(a.facts["pids"]["host"], signal.SIGKILL)
        await asyncio.wait_for(a.actor.exited(), 20)
        standby_s = await a.start()
        print(f"\ndp 2: spawned {spawned_s:.1f} s, from its standby {standby_s:.1f} s: {a.facts['start_s']}")
        assert a.facts["way"] == "spare"
        assert set(a.facts["pids"]["schedulers"]) <= family
        assert a.log.count("no spare process for") == 1, "the detokenizer"
        assert await a.tokens(prompt) == first


async def test_a_standby_that_ended_costs_only_its_time() -> None:
    async with engine() as a:
        await a.start()
        standby = await a.keep_spare()
        os.kill(standby[0], signal.SIGKILL)
        await a.actor.end()
        await a.start()
        assert a.facts["way"] == "spawned, for its spare is of no use: it has ended (killed by SIGKILL)"


def test_a_deployments_engine_comes_back_from_its_standby() -> None:
    before = Traces.now()
    with serving("configs/local-cpu.yaml", "ray.address=local", "decode.spare=true") as deployment:

        def standby() -> list[psutil.Process]:
            actor = psutil.Process(deployment.engine("decode-0")["pids"]["actor"])
            return [p for p in actor.children(True) if "disagg.process.standby_host" in p.cmdline()]

        first = deployment.complete("The capital of France is", max_tokens=4)["choices"][0]["text"]
        deployment.wait_until(standby, 60)
        spare = standby()[0]
        deployment.wait_until(lambda: len(spare.children()) == 2 and _is_idle([spare, *spare.children()]), KIT_S)
        engine = deployment.engine("decode-0")
        os.kill(engine["pids"]["host"], signal.SIGKILL)
        killed_s = time.monotonic()

        def is_back() -> bool:
            now = deployment.engine("decode-0")
            return bool(now["incarnation"] > engine["incarnation"] and now["state"] == "ready")

        deployment.wait_until(is_back, 60)
        now = deployment.engine("decode-0")
        print(f"\ndead to ready {time.monotonic() - killed_s:.1f} s: {now['start_s']}; at first {engine['start_s']}")
        assert now["pids"]["host"] == spare.pid
        assert "ready, spare, after" in deployment.said()
        assert deployment.complete("The capital of France is", max_tokens=4)["choices"][0]["text"] == first
        deployment.wait_until(lambda: [p for p in standby() if p.pid != spare.pid], 60)
    assert_nothing_left(before)


def _is_idle(processes: list[psutil.Process]) -> bool:
    before_s = _cpu_s([p.pid for p in processes])
    time.sleep(1)
    return _cpu_s([p.pid for p in processes]) - before_s < 0.02


def _detokenizer(pids: list[int]) -> int:
    return next(pid for pid in pids if "detokenizer" in " ".join(psutil.Process(pid).cmdline()))
