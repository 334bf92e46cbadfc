"""Each role's answers to what is asked of it, and that the two ends of a transfer agree."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.role_table import ROLES
from disagg.roles import Role
from transfer.canary import RankEndpoint, no_peer


def test_there_is_one_object_for_each_name() -> None:
    assert list(ROLES) == list(Role)
    assert all(role.name is name for name, role in ROLES.items())


def test_partners_name_each_other_and_say_what_for() -> None:
    for name, role in ROLES.items():
        assert not (role.sends_kv_to and role.takes_kv_from)
        if role.partner:
            assert ROLES[role.partner].partner is name
            assert bool(ROLES[role.partner].takes_kv_from) == bool(role.sends_kv_to)
        assert bool(role.partner) == bool(role.why_partner) == bool(role.waits_for)


def test_a_way_to_serve_reads_the_prompt_once_and_makes_the_clients_tokens_once() -> None:
    for name, role in ROLES.items():
        both = [role, ROLES[role.partner]] if role.partner else [role]
        assert sum(each.reads_prompts for each in both) == 1, name
        assert sum(each.makes_tokens for each in both) == (0 if role.embeds else 1), name


def test_of_a_pair_the_sender_comes_first_whoever_is_asked() -> None:
    assert ROLES[Role.PREFILL].pair("mine", "other") == ("mine", "other")
    assert ROLES[Role.DECODE].pair("mine", "other") == ("other", "mine")


def test_a_prefill_makes_one_token_a_decode_all_and_an_embedding_engine_none() -> None:
    assert [ROLES[name].new_tokens(500) for name in Role] == [1, 500, 500, 0]


def test_only_a_prefill_has_a_bootstrap_server() -> None:
    assert [ROLES[name].bootstrap_address("10.0.0.1", 30007) for name in Role] == ["10.0.0.1:30007", "", "", ""]


async def test_a_prefill_is_not_registered_where_nobody_listens_and_others_always_are() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert not await ROLES[Role.PREFILL].is_registered(address)
    assert await ROLES[Role.DECODE].is_registered("")
    assert await ROLES[Role.AGGREGATED].is_registered("")


@pytest.mark.parametrize("device", ["cpu", "cuda", "simulated"])
def test_only_a_decode_engines_gpu_memory_comes_back_late(device: str) -> None:
    late = {name for name, role in ROLES.items() if role.memory_back_s(device) > 0}
    assert late == ({Role.DECODE} if device == "cuda" else set())


def test_the_pace_reaches_a_decode_engine_alone() -> None:
    for name, role in ROLES.items():
        environment = role.environment(first_token_s=30.5, pace_ms=25.0)
        assert environment.get("DISAGG_DECODE_PACE_MS") == ("25" if name is Role.DECODE else None)
        assert role.is_paced == (name is Role.DECODE)


class Client:
    """A rank's connection; each leg gets as many tokens as it asks for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, m.Bootstrap | None]] = []

    def submit(self, leg: Any, *, sampling: dict[str, Any], bootstrap: m.Bootstrap | None, **_rest: Any) -> int:
        tokens = sampling["max_new_tokens"]
        self.asked.append((tokens, bootstrap))
        soon = asyncio.get_running_loop().call_soon
        soon(leg.on_tokens, 0, [1] * tokens, None)
        soon(leg.on_end, m.LegEnd(1, "length"))
        return 1


@pytest.mark.parametrize(
    ("name", "tokens", "is_half"), [("prefill", 1, True), ("decode", 2, True), ("aggregated", 1, False)]
)
async def test_a_rank_is_probed_alone_half_of_a_pair_without_its_peer(name: str, tokens: int, is_half: bool) -> None:
    client = Client()
    endpoint = RankEndpoint("engine#1", 3, 4, "", cast("PlaneClient", client))
    await ROLES[Role(name)].probe(endpoint, limit_s=5.0)
    assert client.asked == [(tokens, no_peer(endpoint) if is_half else None)]
