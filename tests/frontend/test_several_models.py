"""Several models behind one frontend: each request goes to the model that it names, on every endpoint, and is read
with that model's tokenizer, template and bounds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scripted import CONTEXT, Answer, ScriptedBackend, exchange, http_request, make_model_folder, says

from disagg.adapters import Adapter
from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.limits import Limits
from disagg.frontend.app import Frontend
from disagg.frontend.exchange import Exchange
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.frontend.page.feed import Feed
from disagg.frontend.service import Service
from disagg.frontend.whole import AllModels
from disagg.routing.connections import Connections
from disagg.routing.router import Router
from disagg.telemetry.traces.sender import Sender
from disagg.telemetry.traces.tracer import Tracer
from disagg.telemetry.traces.tree import Span
from disagg.tokenizer.codec import Codec, load_codec

BIG, SMALL, ODD = "org/Big:v2", "small", "odd"
SHORTER = 200
MESSAGES = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/generate": {"text": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
    "/v1/classify": {"input": "Hi"},
    "/v1/rerank": {"query": "Hi", "documents": ["Ho"]},
    "/v1/score": {"query": "Hi", "items": ["Ho"], "label_token_ids": [5]},
    "/tokenize": {"prompt": "Hi"},
    "/v1/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5]},
    "/v1/detokenize": {"tokens": [5]},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
}
RUN = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/generate"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """With another tokenizer and a shorter context."""
    folder = make_model_folder(tmp_path_factory.mktemp("other"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: 255 - number for word, number in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 259, "max_position_embeddings": SHORTER}))
    return load_codec(folder)


class Two:
    def __init__(self, frontend: Frontend, big: ScriptedBackend, small: ScriptedBackend) -> None:
        self.frontend, self.big, self.small = frontend, big, small

    async def post(self, path: str, body: Any, *headers: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await exchange(self.frontend.port, http_request("POST", path, data, headers))

    async def get(self, path: str) -> Answer:
        return await exchange(self.frontend.port, http_request("GET", path))


@asynccontextmanager
async def two(codec: Codec, other: Codec, tracer: Tracer | None = None, **adapters: list[str]) -> AsyncIterator[Two]:
    """`adapters`: of each."""
    backends = [ScriptedBackend(says(f"from {name}"), model_name=name) for name in (BIG, SMALL)]
    for backend, names in zip(backends, (adapters.get("big", []), adapters.get("small", [])), strict=True):
        backend.adapters = {name: Adapter(name, f"/{name}") for name in names}
    big, small = backends
    frontend = Frontend(
        big,
        OwnTokenizer(codec, lambda: big.served),
        more=[(small, OwnTokenizer(other, lambda: small.served))],
        whole=Both(says(""), parts=backends),
        tracer=tracer,
    )
    await frontend.start("127.0.0.1", 0)
    try:
        yield Two(frontend, big, small)
    finally:
        await frontend.stop(0.2)


class Both(ScriptedBackend):
    """Speaks for two scripted ones."""

    def __init__(self, script: Any, parts: list[ScriptedBackend]) -> None:
        super().__init__(script)
        self.parts = parts

    def owner_of(self, request_id: str) -> bytes | None:
        return next((owner for part in self.parts if (owner := part.owner_of(request_id)) is not None), None)

    def ready(self) -> tuple[bool, str]:
        return any(part.ready()[0] for part in self.parts), "none is"


@pytest.mark.parametrize("path", RUN)
async def test_a_request_is_read_and_run_by_the_model_that_it_names(codec: Codec, other: Codec, path: str) -> None:
    async with two(codec, other) as both:
        for backend in (both.big, both.small):
            answer = await both.post(path, {**BODIES[path], "model": backend.model_name})
            assert answer.status == 200
            assert f"from {backend.model_name}" in answer.body.decode()
            assert answer.headers["x-request-id"] == backend.requests[0].id
        prompts = [[*backend.requests[0].prompt_ids] for backend in (both.big, both.small)]
        (folded,) = {tuple(255 - each if each < 256 else each for each in prompts[0])}
        assert list(folded) == prompts[1], "each by its own tokenizer"


@pytest.mark.parametrize("path", BODIES)
async def test_a_name_that_is_not_there_is_a_404_that_names_those_that_are(
    codec: Codec, other: Codec, path: str
) -> None:
    async with two(codec, other, small=["sql"]) as both:
        answer = await both.post(path, {**BODIES[path], "model": "gpt-5"})
        assert answer.status == 404
        said = answer.json["error"]
        assert said.get("code", "model_not_found") == "model_not_found"
        assert said["message"].startswith(
            f"there is no model 'gpt-5' here; there are '{BIG}', '{SMALL}', '{SMALL}:sql'"
        )
        assert answer.headers["x-request-id"]
        for body in (BODIES[path], BODIES[path] | {"model": None}):
            answer = await both.post(path, body)
            assert answer.status == 400
            assert f"'model' is missing; there are '{BIG}'" in answer.json["error"]["message"]
        assert both.big.requests == both.small.requests == []


@pytest.mark.parametrize("path", [path for path in BODIES if path not in RUN])
async def test_what_no_engine_generates_goes_by_name_too(codec: Codec, other: Codec, path: str) -> None:
    async with two(codec, other) as both:
        answers = [await both.post(path, {**BODIES[path], "model": name}) for name in (BIG, SMALL)]
        statuses = {answer.status for answer in answers}
        if "tokenize" in path or "count" in path:
            assert statuses == {200}
        elif path == "/v1/score":
            assert [len(backend.requests) for backend in (both.big, both.small)] == [1, 1]
        else:
            assert statuses == {400}
            assert "no embedding engines" in answers[0].json["error"]["message"]
        if path == "/tokenize":
            assert [answer.json["max_model_len"] for answer in answers] == [CONTEXT, SHORTER]
            first, second = (answer.json["tokens"] for answer in answers)
            assert [255 - each for each in first] == second


async def test_where_none_is_served_any_more_that_is_said(codec: Codec, other: Codec) -> None:
    async with two(codec, other) as both:
        for model in both.frontend._models.all:
            both.frontend.leaves(model)
        answer = await both.post("/v1/completions", {"model": BIG, "prompt": "Hi"})
        assert (answer.status, answer.json["error"]["code"]) == (503, "no_ready_pair")
        assert (await both.get("/v1/models")).json["data"] == []


async def test_bounds_are_each_models(codec: Codec, other: Codec) -> None:
    async with two(codec, other) as both:
        body = {"prompt": "x" * 300}
        assert (await both.post("/v1/completions", {**body, "model": BIG})).status == 200
        refused = await both.post("/v1/completions", {**body, "model": SMALL})
        assert (refused.status, refused.json["error"]["code"]) == (400, "context_length_exceeded")
        listed = (await both.get("/v1/models")).json["data"]
        assert [(each["id"], each["max_model_len"]) for each in listed] == [(BIG, CONTEXT), (SMALL, SHORTER)]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize"])
async def test_a_refused_body_is_traced_as_its_models(codec: Codec, other: Codec, path: str) -> None:
    names: list[str] = []

    def export(spans: Sequence[tuple[str, Span]]) -> bool:
        names.extend(span.name for _, span in spans)
        return True

    sender = Sender("first", export)
    async with two(codec, other, tracer=Tracer(sender, 1.0)) as both:
        assert (await both.post(path, {"model": SMALL, "stop": 5, "input": 5})).status == 400
    sender.send_due(all_of_them=True)
    assert [name.partition(" ")[2] for name in names] == [SMALL]


async def test_a_bad_body_is_told_as_ever(codec: Codec, other: Codec) -> None:
    async with two(codec, other) as both:
        assert "is not JSON" in (await both.post("/v1/completions", b'{"model": "small"')).json["error"]["message"]
        assert "must be" in (await both.post("/v1/completions", {"model": 5, "prompt": "x"})).json["error"]["message"]
        assert (await both.post("/v1/completions", b"[]")).status == 400
        marked = b"\xef\xbb\xbf" + json.dumps({"model": SMALL, "prompt": "x"}).encode()
        assert (await both.post("/v1/completions", marked)).status == 200
        zipped = await both.post("/v1/completions", b"\x1f\x8b", "content-encoding: gzip")
        assert zipped.status == 415
        long = {"model": SMALL, "prompt": [5] * 200_000}
        assert "context" in (await both.post("/v1/completions", long)).json["error"]["message"]
        too_long = http_request("POST", "/v1/completions", b"x").replace(b"length: 1", b"length: 999999999")
        assert (await exchange(both.frontend.port, too_long)).status == 413


async def test_adapters_are_each_models(codec: Codec, other: Codec) -> None:
    async with two(codec, other, big=["sql", "fr"], small=["sql"]) as both:
        for name, backend, adapter in (
            ("fr", both.big, "fr"),
            (f"{BIG}:sql", both.big, "sql"),
            (f"{SMALL}:sql", both.small, "sql"),
        ):
            answer = await both.post("/v1/completions", {"prompt": "Hi", "model": name})
            assert answer.json["model"] == name
            assert backend.requests[-1].adapter == adapter
        ambiguous = await both.post("/v1/completions", {"prompt": "Hi", "model": "sql"})
        assert ambiguous.status == 400
        assert f"say '{BIG}:sql' or '{SMALL}:sql'" in ambiguous.json["error"]["message"]
        assert (await both.post("/v1/completions", {"prompt": "Hi", "model": f"{SMALL}:fr"})).status == 404
        listed = [(each["id"], each.get("parent")) for each in (await both.get("/v1/models")).json["data"]]
        assert listed == [(BIG, None), ("sql", BIG), ("fr", BIG), (SMALL, None), ("sql", SMALL)]
        assert (await both.get(f"/v1/models/{SMALL}:sql")).json["parent"] == SMALL
        assert (await both.get("/v1/models/nobody")).status == 404


async def test_an_adapter_is_loaded_for_the_model_that_is_said(codec: Codec, other: Codec) -> None:
    async with two(codec, other) as both:
        body = {"lora_name": "new", "lora_path": "/a"}
        assert (await both.post("/load_lora_adapter", body)).status == 400
        assert (await both.post("/load_lora_adapter", {**body, "model": "nobody"})).status == 404
        loaded = await both.post("/load_lora_adapter", {**body, "model": SMALL})
        assert loaded.json["loaded_adapters"] == {"new": "/a"}
        assert (list(both.big.adapters), list(both.small.adapters)) == ([], ["new"])
        assert (await both.post("/unload_lora_adapter", {"lora_name": "new", "model": SMALL})).status == 200
        assert both.small.adapters == {}


async def test_one_that_is_lost_leaves_the_frontend_in_use(codec: Codec, other: Codec) -> None:
    async with two(codec, other) as both:
        both.small.not_ready = "small.aggregated-0 is dead"
        assert (await both.get("/ready")).status == 200
        assert (await both.get("/ready?model=small")).status == 503
        assert (await both.get(f"/ready?model={BIG}")).status == 200
        assert (await both.get("/ready?model=nobody")).status == 404
        both.big.not_ready = "nor is this one"
        assert (await both.get("/ready")).status == 503
        for path in ("/get_model_info", "/server_info"):
            assert (await both.get(path)).json["served_model_name"] == BIG
            assert (await both.get(f"{path}?model=small")).json["served_model_name"] == SMALL


async def test_what_runs_is_cancelled_wherever_it_runs(codec: Codec, other: Codec) -> None:
    async with two(codec, other) as both:
        answer = await both.post("/v1/completions", {"prompt": "Hi", "model": SMALL})
        named = answer.headers["x-request-id"]
        cancelled = await exchange(both.frontend.port, http_request("DELETE", f"/v1/requests/{named}"))
        assert (cancelled.status, cancelled.json["cancelled"]) == (200, True)
        nobody = await exchange(both.frontend.port, http_request("DELETE", "/v1/requests/0001ff"))
        assert nobody.status == 404


async def test_a_conversation_may_go_on_with_another_model(codec: Codec, other: Codec) -> None:
    async with two(codec, other) as both:
        first = await both.post("/v1/responses", {"input": "Hi", "model": BIG})
        body = {"input": "And?", "model": SMALL, "previous_response_id": first.json["id"]}
        assert (await both.post("/v1/responses", body)).status == 200
        said = bytes(255 - each for each in both.small.requests[0].prompt_ids if each < 256)
        assert len(said) > len(b"And?Hi"), "with what was said before"


async def test_with_one_model_no_body_is_looked_at_before_its_reader(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any) -> bytes:
        raise AssertionError("a request of the only model costs nothing more")

    monkeypatch.setattr(Exchange, "peek", never)
    backend = ScriptedBackend(says("Hi"))
    frontend = Frontend(backend, OwnTokenizer(codec, lambda: backend.served))
    await frontend.start("127.0.0.1", 0)
    try:
        data = json.dumps({"prompt": "Hi", "model": backend.model_name}).encode()
        assert (await exchange(frontend.port, http_request("POST", "/v1/completions", data))).status == 200
    finally:
        await frontend.stop(0.2)


async def test_status_and_page_tell_of_all_models() -> None:
    routers = [Router(Connections(b"s" * 32)) for _ in range(2)]
    coordinators = [Coordinator(router, Limits()) for router in routers]
    first, second = zip(coordinators, (router.connections for router in routers), strict=True)
    feed = Feed("a, b", *first, more=[second])
    services = [
        Service(model_name=name, router=router, coordinator=each, control=None, group=name, feed=feed)
        for name, router, each in zip("ab", routers, coordinators, strict=True)
    ]
    whole = AllModels(services)
    said = whole.status(None)
    assert said["models"] == [{"model": name, "adapters": [], "ready": False} for name in "ab"]
    assert (said["ready"], said["frontend"]["requests"], said["engines"]) == (False, 0, [])
    assert whole.ready() == (False, "no engine is registered; no engine is registered")
    assert await whole.loads() == await whole.flush_caches(0.0) == {}
    assert whole.owner_of("0001ff") is None
    with feed.viewer(None) as viewer:
        assert b'"model":"a, b"' in (await viewer.next())
