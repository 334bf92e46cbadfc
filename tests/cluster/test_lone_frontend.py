"""`disagg frontend` while it serves: a number that another has taken, and what is published that cannot be used.

Its processes and the store are stand-ins: tests/frontend/test_a_frontend_elsewhere.py has real ones.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from disagg.cluster.course import Course
from disagg.cluster.lone_frontend import Wanted, _address_towards, _Alone
from disagg.coordinator.limits import Limits
from disagg.errors import StartError
from disagg.frontend.on_host import OnHost
from disagg.frontend.published import published, sealed
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.registry.keys import Keys, encode
from disagg.registry.records import ControllerRecord, SealedSpec
from disagg.registry.sealed import Secret
from disagg.registry.shared import FileAt, Shared
from disagg.registry.store import Entry, Snapshot, StoreLost

KEYS = Keys("prod", "chat")
TEXT = "0123456789abcdef" * 4
SPEC = FrontendSpec(
    registry="",
    control="",
    host="127.0.0.1",
    port=8000,
    body_limit_bytes=1 << 20,
    models=(ModelSpec(path="/m", name="m", tokenization="engine"),),
    number=0,
    stop_s=1.0,
    limits=Limits(),
)


class Process:
    def __init__(self, number: int) -> None:
        self.spec, self.listens = replace(SPEC, number=number), asyncio.Event()
        self.listens.set()
        self.renewed: list[FrontendSpec] = []

    async def renew(self, spec: FrontendSpec) -> None:
        self.spec = spec
        self.renewed.append(spec)


def alone(folder: Path, *numbers: int) -> tuple[_Alone, dict[int, Process]]:
    made = _Alone(Wanted(Shared(FileAt(str(folder)), KEYS), Secret(TEXT, KEYS)), Course())
    processes = {number: Process(number) for number in numbers}
    made._processes = dict(processes)  # type: ignore[arg-type]
    return made, processes


async def test_a_number_that_was_taken_is_given_up_by_its_process_alone(tmp_path: Path) -> None:
    made, processes = alone(tmp_path, 300, 301)
    answers: list[Any] = [StoreLost("registry", "it is away"), 302]

    async def claim() -> int:
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return int(answer)

    made._taken.put_nowait(300)
    taking = asyncio.create_task(made._take_other_numbers(SimpleNamespace(claim=claim)))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while not processes[300].renewed:
            await asyncio.sleep(0.01)
    taking.cancel()
    assert [spec.number for spec in processes[300].renewed] == [302]
    assert processes[301].renewed == []
    assert set(made._processes) == {301, 302}


async def test_what_cannot_be_used_changes_nothing_and_what_can_is_taken_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made, processes = alone(tmp_path, 300, 301)

    def of(text: str, **more: Any) -> SealedSpec:
        return sealed(published(replace(SPEC, **more), 10.0, origins_said=False), Secret(text, KEYS))

    as_before = await made._fitted(published(SPEC, 10.0, origins_said=False))
    other_version = SealedSpec(version="another", sealed=of(TEXT).sealed)
    told: list[SealedSpec | None] = [of(TEXT), None, of(TEXT[::-1], port=1), other_version, of(TEXT, port=9)]

    async def watch() -> AsyncIterator[Any]:
        for each in told:
            yield SimpleNamespace(changes=SimpleNamespace(spec=each))

    made._follower = SimpleNamespace(watch=watch, control="127.0.0.1:7")  # type: ignore[assignment]
    await made._heed_changes(as_before)
    assert [(spec.number, spec.port) for spec in processes[300].renewed] == [(300, 9)]
    assert [(spec.number, spec.port) for spec in processes[301].renewed] == [(301, 9)]
    assert "is not the security.secret" in caplog.text
    assert "runs disagg another" in caplog.text


@pytest.mark.parametrize(
    ("control", "host", "is_refused"),
    [("127.0.0.1:7", "", False), ("127.0.0.1:7", "x", True), ("10.0.0.1:7", "x", False)],
)
async def test_a_deployment_that_only_its_own_host_reaches_is_refused(
    tmp_path: Path, control: str, host: str, *, is_refused: bool
) -> None:
    made, _ = alone(tmp_path)
    record = ControllerRecord(run="r", host=host or socket.gethostname(), pid=1, control=control)

    async def snapshot(_prefix: str) -> Snapshot:
        return Snapshot(1, {KEYS.controller: Entry(encode(record), 1)})

    made._store = SimpleNamespace(snapshot=snapshot)  # type: ignore[assignment]
    if not is_refused:
        await made._refuse_unknown()
        return
    with pytest.raises(StartError, match="private Ray of x"):
        await made._refuse_unknown()


async def test_a_number_taken_while_all_start_again_is_no_more_any_processes(tmp_path: Path) -> None:
    made, processes = alone(tmp_path, 300, 301)
    for process in processes.values():
        process.listens.clear()

    async def claim() -> int:
        return 302

    async def watch() -> AsyncIterator[Any]:
        said = sealed(published(replace(SPEC, port=9), 10.0, origins_said=False), Secret(TEXT, KEYS))
        yield SimpleNamespace(changes=SimpleNamespace(spec=said))

    as_before = await made._fitted(published(SPEC, 10.0, origins_said=False))
    made._follower = SimpleNamespace(watch=watch, control="127.0.0.1:7")  # type: ignore[assignment]
    heeding = asyncio.create_task(made._heed_changes(as_before))
    async with asyncio.timeout(5):
        while not processes[300].renewed:
            await asyncio.sleep(0.01)
    made._taken.put_nowait(301)  # while the first one starts
    taking = asyncio.create_task(made._take_other_numbers(SimpleNamespace(claim=claim)))  # type: ignore[arg-type]
    await asyncio.sleep(0.05)
    for process in processes.values():
        process.listens.set()
    async with asyncio.timeout(5):
        await heeding
        while len(processes[301].renewed) < 2:
            await asyncio.sleep(0.01)
    taking.cancel()
    assert (processes[301].spec.number, processes[301].spec.port) == (302, 9)
    assert processes[300].spec.number == 300


@pytest.mark.parametrize(
    ("controller", "here"),
    [("127.0.0.1:7", "127.0.0.1"), ("[::1]:7", "::1"), ("", "127.0.0.1"), ("no.such.host.invalid:7", "127.0.0.1")],
)
def test_others_find_it_where_the_controller_would(controller: str, here: str) -> None:
    assert _address_towards(controller) == here


def test_a_model_that_the_deployment_does_not_have_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made, _ = alone(tmp_path)
    made._wanted = replace_said(made._wanted, {"chat": "/m", "chta": "/m"})
    records = {"0": SimpleNamespace(spec={"name": "chat"}), "1": SimpleNamespace(spec={"name": "tiny"})}
    made._follower = SimpleNamespace(models=records)  # type: ignore[assignment]
    made._tell(replace(SPEC, models=()))
    assert "--model chta: the deployment has no such model yet; it has chat, tiny" in caplog.text
    assert "--model chat:" not in caplog.text


def replace_said(wanted: Wanted, models: dict[str, str]) -> Wanted:
    return dataclasses.replace(wanted, said=OnHost(models=models))
