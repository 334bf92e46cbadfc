"""A request for tokens would kill an embedding engine: its host takes none, and no policy may choose it for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from disagg.config.rules import check_rules, pool_texts
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient
from disagg.plane.ledger import Capacity
from disagg.plane.server import PlaneServer
from disagg.preflight.subject import pool_views
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.connections import Connections
from disagg.routing.endpoints import Endpoint, Engine, Pair
from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import LeastLoaded
from disagg.routing.router import PolicyFailed
from disagg.routing.view import Choice, Reason, RoutingView
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model
from disagg.simulated_engine.tokens import vector
from tests.routing.engines import PickingRouter
from transfer.canary import CanaryFailed, RankEndpoint, probe_embedding, probe_rank

SECRET = b"s" * 32


@asynccontextmanager
async def endpoint(role: Role) -> AsyncIterator[tuple[RankEndpoint, SimulatedEngine]]:
    engine = SimulatedEngine(Model(role=role), life=f"{role}-0#1")
    server = PlaneServer(engine, engine.start(), 1, SECRET, embeds=ROLES[role].embeds)
    client = PlaneClient(f"127.0.0.1:{await server.start('127.0.0.1')}", 1, SECRET, lambda _why: None)
    await client.connect()
    try:
        yield RankEndpoint(engine.life, 0, 1, "", client), engine
    finally:
        client.close()
        await asyncio.sleep(0.02)
        server.close()


async def test_a_host_of_an_embedding_engine_refuses_a_leg_that_wants_tokens() -> None:
    async with endpoint(Role.EMBEDDING) as (rank, engine):
        with pytest.raises(CanaryFailed, match="makes vectors, and was asked for tokens"):
            await probe_rank(rank, 1, 5.0)
        assert engine.legs_live == 0
        await probe_embedding(rank, 5.0)


async def test_a_host_of_another_engine_refuses_a_leg_that_wants_a_vector() -> None:
    async with endpoint(Role.AGGREGATED) as (rank, _):
        with pytest.raises(CanaryFailed, match="makes tokens, and was asked for vectors"):
            await probe_embedding(rank, 5.0)
        await probe_rank(rank, 1, 5.0)


async def test_its_probes_ask_for_vectors_alone() -> None:
    role = ROLES[Role.EMBEDDING]
    async with endpoint(Role.EMBEDDING) as (rank, engine):
        await role.prove(None, rank, 1, 5.0)
        await role.probe(rank, 5.0)
        engine.freeze()
        with pytest.raises(CanaryFailed, match="no end within"):
            await role.probe(rank, 0.1)


class Silent:
    """Ends well, without a vector."""

    def submit(self, leg: object, **_rest: object) -> int:
        asyncio.get_running_loop().call_soon(leg.on_end, m.LegEnd(1, "stop"))  # type: ignore[attr-defined]
        return 1


async def test_an_end_without_a_vector_is_a_failed_probe() -> None:
    with pytest.raises(CanaryFailed, match="without a vector"):
        await probe_embedding(RankEndpoint("embedding-0#1", 0, 1, "", Silent()), 5.0)  # type: ignore[arg-type]


class Client:
    is_open = True


def engine_of(role: Role, number: int) -> Engine:
    engine = Engine(f"{role}-0", f"{role}-0#1", role, number)
    engine.endpoints = [Endpoint(engine, 0, "", Client(), Capacity(8, 1000, 1))]  # type: ignore[arg-type]
    return engine


class Stubborn:
    """Chooses the embedding engine for everything."""

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        return Choice(Pair(None, next(iter(endpoints.of(Role.EMBEDDING)))), Reason())


@pytest.mark.parametrize("policy", [LeastLoaded(), Stubborn()])
def test_each_kind_of_request_goes_to_its_own_engines(policy: LeastLoaded | Stubborn) -> None:
    router = PickingRouter(Connections(SECRET), policy)
    for number, role in enumerate((Role.AGGREGATED, Role.EMBEDDING)):
        router.endpoints.add(engine_of(role, number))
    tokens = router.pick(RoutingView(prompt_tokens=10, new_tokens=5))
    of_vector = router.pick(RoutingView(prompt_tokens=10, new_tokens=1, embeds=True))
    assert tokens is not None
    assert of_vector is not None
    assert tokens.pair.decode.engine.role is Role.AGGREGATED
    assert of_vector.pair.decode.engine.role is Role.EMBEDDING
    assert of_vector.pair.decode.kv_tokens == 10  # the prompt's alone
    assert isinstance(tokens.reason, PolicyFailed) == isinstance(policy, Stubborn)


def test_a_deployment_is_ready_for_each_kind_by_itself() -> None:
    router = PickingRouter(Connections(SECRET))
    router.endpoints.add(embedding := engine_of(Role.EMBEDDING, 0))
    assert (router.is_ready(), router.is_ready(embeds=True)) == (False, True)
    assert router.pick(RoutingView(prompt_tokens=1, new_tokens=1)) is None
    router.endpoints.add(engine_of(Role.AGGREGATED, 1))
    router.endpoints.remove(embedding)
    assert (router.is_ready(), router.is_ready(embeds=True)) == (True, False)


@pytest.mark.parametrize("beside", [{}, {"prefill": {}, "decode": {}}, {"aggregated": {}}])
def test_a_pool_of_them_stands_alone_or_beside_any_others(beside: dict[str, object]) -> None:
    tree = {"version": 1, "model": {"path": "/nowhere/m"}, "embedding": {}, **beside}
    assert not check_rules(tree, pool_texts(tree))


def test_one_rank_embeds() -> None:
    tree = {"version": 1, "model": {"path": "/nowhere/m"}, "embedding": {"engine": {"tp_size": 2, "dp_size": 2}}}
    [problem] = check_rules(tree, pool_texts(tree))
    assert problem.path == "embedding.engine.dp_size"
    assert "replicas: 2" in problem.would_do


def test_encoders_get_whole_texts_and_a_pool_may_overrule_that() -> None:
    role = ROLES[Role.EMBEDDING]
    given = role.arguments({}, device="cpu", bootstrap_port=1)
    whole_texts = {"chunked_prefill_size": -1, "disable_radix_cache": True, "page_size": 1}
    assert given == {"is_embedding": True, "grammar_backend": "none", **whole_texts}
    assert role.arguments({"chunked_prefill_size": 512}, device="cpu", bootstrap_port=1)["chunked_prefill_size"] == 512


def test_preflight_rules_see_what_its_engines_get() -> None:
    """A rule about grammars, or about chunks, is not to refuse a pool that has none."""
    tree = {"version": 1, "model": {"path": "/nowhere/m"}, "embedding": {}, "prefill": {}, "decode": {}}
    views = {view.role: view for view in pool_views(pool_texts(tree), "cpu")}
    embedding, prefill = views["embedding"], views["prefill"]
    assert (embedding.get("grammar_backend"), embedding.get("chunked_prefill_size")) == ("none", -1)
    assert (prefill.get("grammar_backend"), prefill.get("chunked_prefill_size")) == ("xgrammar", 256)


async def test_a_simulated_engine_dies_of_what_kills_a_real_one() -> None:
    from disagg.plane.engine import Leg

    engine = SimulatedEngine(Model(role=Role.EMBEDDING))
    died = asyncio.Event()
    engine.on_death = died.set
    engine.submit(Leg("x", [1], {"max_new_tokens": 1}, 0, None), None)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await died.wait()


def test_vectors_tell_inputs_and_pairs_apart() -> None:
    assert len({vector([1, 2, 3]), vector([1, 2]), vector([1, 2, 3], 1), vector([1, 2, 3], 2)}) == 4
