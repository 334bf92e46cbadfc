"""What an engine would take and not heed it says of itself, and every frontend refuses it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.frontend.service import Service
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.router import Router
from disagg.sglang.ignored import ignored_parameters


def said(**more: Any) -> Any:
    defaults = {"sampling_backend": "pytorch", "speculative_algorithm": None, "enable_deterministic_inference": False}
    defaults |= {"grammar_backend": "xgrammar"}
    return SimpleNamespace(**{**defaults, **more})


@pytest.mark.parametrize(
    ("arguments", "off", "ignored"),
    [
        (said(), (), {}),
        (said(sampling_backend="flashinfer"), (), {"seed": "say sampling_backend: pytorch in the engine's arguments"}),
        (said(sampling_backend="ascend"), (), {"seed": "say sampling_backend: pytorch in the engine's arguments"}),
        (said(sampling_backend=None), (), {"seed": "say sampling_backend: pytorch in the engine's arguments"}),
        (said(), ("seeds",), {"seed": "install an SGLang release"}),
        (said(enable_deterministic_inference=True), ("seeds",), {}),  # SGLang sees to it by itself
        (said(), ("runs", "pace"), {}),
        (said(), ("grammar",), dict.fromkeys(("grammar", "min_tokens", "stop_regex"), "install an SGLang release")),
        (said(), ("salts",), {"cache_salt": "install an SGLang release"}),
        (said(grammar_backend="none"), (), {"grammar": "say grammar_backend: xgrammar"}),
        (said(grammar_backend="llguidance"), (), {}),
        (said(speculative_algorithm="EAGLE"), (), {"seed": "leave out speculative_algorithm", "min_p": "say top_p"}),
    ],
)
def test_it_follows_from_the_engines_arguments(arguments: Any, off: tuple[str, ...], ignored: dict[str, str]) -> None:
    found = ignored_parameters(arguments, off)
    assert found.keys() == ignored.keys()
    assert all(ignored[name] in found[name] for name in ignored)


async def test_one_engine_that_ignores_it_is_enough_for_a_refusal_whatever_its_state() -> None:
    """A request may come to any engine, and to another one when it migrates."""
    router = Router(Connections(b"s" * 32))
    heeds = EngineRecord(id="decode-0", role=Role.DECODE, state=State.READY)
    ignores = EngineRecord(id="prefill-0", role=Role.PREFILL, state=State.STARTING, ignores={"seed": "say so"})
    router.connections.records = {record.id: record for record in (heeds, ignores)}
    service = Service(
        model_name="m",
        router=router,
        coordinator=Coordinator(router, Limits()),
        control=None,
    )
    assert service.ignored == {"seed": "say so"}
