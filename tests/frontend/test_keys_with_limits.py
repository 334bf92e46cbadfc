"""A key's limits: requests and tokens a minute, requests at once, models; told in 429s, headers and metrics."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import generate_latest
from scripted import MODEL, Answer, ScriptedBackend, ask, exchange, hangs, http_request, says, serving, until

from disagg.adapters import Adapter
from disagg.errors import BadRequest, RateLimited
from disagg.frontend.app import Frontend
from disagg.frontend.key_limits import Bucket, LimitedKey, Meter, Meters
from disagg.frontend.keys import Keys, digest
from disagg.telemetry.metrics import FrontendMetrics
from disagg.tokenizer.codec import Codec

FREE, LIMITED = "a-free-key-0123456789", "a-limited-key-0123456789"


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _meters(clock: Clock | None = None, **limits: Any) -> Meters:
    return Meters([LimitedKey(key=LIMITED, name="team-a", **limits)], clock or Clock())


def _serving(codec: Codec, backend: ScriptedBackend, meters: Meters) -> Any:
    return serving(backend, codec, keys=Keys([FREE, LIMITED]), meters=meters)


async def _asked(frontend: Frontend, key: str = LIMITED, path: str = "/v1/chat/completions", **changes: Any) -> Answer:
    body = ask(**changes).partition(b"\r\n\r\n")[2]
    return await exchange(frontend.port, http_request("POST", path, body, [f"authorization: Bearer {key}"]))


def _error(answer: Answer) -> tuple[int, str, str]:
    error = json.loads(answer.body)["error"]
    return answer.status, error["code"], error["type"]


REFUSED = 429, "rate_limit_exceeded", "rate_limit_error"


async def test_requests_a_minute(codec: Codec) -> None:
    clock, backend = Clock(), ScriptedBackend(says("Hi"))
    async with _serving(codec, backend, _meters(clock, requests_per_minute=2)) as frontend:
        first = await _asked(frontend)
        assert first.status == 200
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] == "30.000s"
        assert "x-ratelimit-limit-tokens" not in first.headers
        assert (await _asked(frontend)).status == 200
        third = await _asked(frontend)
        assert _error(third) == REFUSED
        assert third.headers["retry-after"] == "30"
        assert third.headers["x-ratelimit-remaining-requests"] == "0"
        assert (await _asked(frontend, FREE)).status == 200
        clock.now_s += 30
        assert (await _asked(frontend)).status == 200
        assert _error(await _asked(frontend)) == REFUSED
    assert len(backend.requests) == 4


async def test_tokens_of_prompts_and_answers(codec: Codec) -> None:
    clock, meters = Clock(), _meters(tokens_per_minute=10_000)
    meters = _meters(clock, tokens_per_minute=10_000)
    async with _serving(codec, ScriptedBackend(says("Hi", "there")), meters) as frontend:
        answer = await _asked(frontend)
        usage = json.loads(answer.body)["usage"]
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert left == 10_000 - usage["prompt_tokens"]
        meter = meters.of(digest(LIMITED.encode()))
        assert meter is not None
        assert meter.tokens["prompt"] == usage["prompt_tokens"]


async def test_a_stream_has_the_headers_too_and_counts_until_its_end(codec: Codec) -> None:
    meters = _meters(concurrent=1, tokens_per_minute=10_000)
    backend = ScriptedBackend(hangs("Hi"))
    async with _serving(codec, backend, meters) as frontend:
        running = asyncio.create_task(_asked(frontend, stream=True))
        await until(lambda: bool(backend.requests))
        refused = await _asked(frontend)
        assert _error(refused) == REFUSED
        assert refused.headers["retry-after"] == "1"
        running.cancel()  # the client leaves
        await until(lambda: bool(backend.closed))
        backend.script = says("Hi")
        answer = await _asked(frontend, stream=True)
        assert answer.status == 200
        assert "x-ratelimit-remaining-tokens" in answer.headers


async def test_a_model_that_the_key_may_not_name(codec: Codec) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with _serving(codec, backend, _meters(models=("other",))) as frontend:
        refused = await _asked(frontend)
        assert _error(refused) == (403, "model_not_allowed", "invalid_request_error")
        assert (await _asked(frontend, FREE)).status == 200
    assert len(backend.requests) == 1


ADAPTERS = {name: Adapter(name, f"/adapters/{name}") for name in ("sql", "law")}


@pytest.mark.parametrize(
    ("may", "said", "status"),
    [
        (MODEL, {"model": MODEL}, 200),
        (MODEL, {"model": MODEL, "lora_path": "sql"}, 403),
        (MODEL, {"model": f"{MODEL}:sql"}, 403),
        ("sql", {"model": "sql"}, 200),
        ("sql", {"model": f"{MODEL}:sql"}, 200),
        ("sql", {"model": MODEL, "lora_path": "sql"}, 200),
        ("sql", {"model": MODEL, "lora_path": "law"}, 403),
        ("sql", {"model": MODEL}, 403),
        (f"{MODEL}:sql", {"model": "sql"}, 200),
    ],
    ids=str,
)
async def test_an_adapter_is_the_same_however_it_is_named(
    codec: Codec, may: str, said: dict[str, str], status: int
) -> None:
    backend = ScriptedBackend(says("Hi"), adapters=dict(ADAPTERS))
    async with _serving(codec, backend, _meters(models=(may,))) as frontend:
        answer = await _asked(frontend, **said)
    assert (answer.status, len(backend.requests)) == (status, status == 200)


async def test_an_adapter_of_vectors_is_one_too(codec: Codec) -> None:
    backend = ScriptedBackend(says("Hi"), adapters=dict(ADAPTERS), embeds=True)
    body = json.dumps({"model": MODEL, "lora_path": "sql", "input": "x"}).encode()
    request = http_request("POST", "/v1/embeddings", body, [f"authorization: Bearer {LIMITED}"])
    async with _serving(codec, backend, _meters(models=(MODEL,))) as frontend:
        assert (await exchange(frontend.port, request)).status == 403
    assert not backend.requests


async def test_anthropics_clients_read_it_in_their_words(codec: Codec) -> None:
    async with _serving(codec, ScriptedBackend(says("Hi")), _meters(requests_per_minute=1)) as frontend:
        body = json.dumps(
            {"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
        ).encode()
        request = http_request("POST", "/v1/messages", body, [f"x-api-key: {LIMITED}"])
        assert (await exchange(frontend.port, request)).status == 200
        refused = await exchange(frontend.port, request)
        assert (refused.status, json.loads(refused.body)["error"]["type"]) == (429, "rate_limit_error")


async def test_what_no_engine_answers_is_not_counted(codec: Codec) -> None:
    async with _serving(codec, ScriptedBackend(says("Hi")), _meters(requests_per_minute=1)) as frontend:
        for _ in range(3):
            request = http_request("GET", "/v1/models", headers=[f"authorization: Bearer {LIMITED}"])
            assert (await exchange(frontend.port, request)).status == 200


def test_a_bucket_fills_evenly_and_never_beyond_its_limit() -> None:
    bucket = Bucket(60, 0.0)
    bucket.take(60, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(1.0)
    assert bucket.level(30.0) == pytest.approx(30.0)
    assert bucket.level(1e6) == 60
    bucket.take(100, 1e6)  # an answer's tokens are taken when they are known
    assert bucket.wait_s(1, 1e6) == pytest.approx(41.0)


def test_a_prompt_that_never_fits_is_told_so() -> None:
    meter = Meter(LimitedKey(key=LIMITED, name="a", tokens_per_minute=100), Clock())
    running = meter.begin()
    with pytest.raises(RateLimited, match="send a shorter one") as refused:
        meter.read("m", "", 101)
    assert refused.value.wait_s == 0.0
    assert RateLimited(*refused.value.args).wait_s == 0.0
    meter.end(running)
    running = meter.begin()
    meter.read("m", "", 100)
    meter.end(running)
    with pytest.raises(RateLimited, match="try again in"):
        meter.begin()


def test_a_refusal_gives_its_place_back() -> None:
    meter = Meter(LimitedKey(key=LIMITED, name="a", concurrent=1, models=("m",)), Clock())
    for _ in range(3):
        running = meter.begin()
        with pytest.raises(BadRequest):
            meter.read("n", "", 1)
        meter.end(running)


async def test_answers_that_run_are_counted_too(codec: Codec) -> None:
    meters, backend = _meters(tokens_per_minute=1000), ScriptedBackend(hangs("Hi"))
    async with _serving(codec, backend, meters) as frontend:
        running = asyncio.create_task(_asked(frontend, stream=True))
        await until(lambda: bool(backend.requests))
        (request,) = backend.requests
        before = meters.told["disagg_key_tokens"].get(("team-a", "output"), 0)
        request.emitted_ids += range(400)
        assert meters.told["disagg_key_tokens"]["team-a", "output"] == before + 400
        request.emitted_ids += range(600)
        refused = await _asked(frontend)
        assert _error(refused) == REFUSED
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
        running.cancel()  # the client leaves
        await until(lambda: bool(backend.closed))
        assert meters.told["disagg_key_tokens"]["team-a", "output"] == before + 1000  # none of them twice


async def test_a_probe_that_makes_a_token_is_a_request_of_its_key(codec: Codec) -> None:
    request = http_request("GET", "/health_generate", headers=[f"authorization: Bearer {LIMITED}"])
    meters, backend = _meters(requests_per_minute=1), ScriptedBackend(says("Hi"))
    async with _serving(codec, backend, meters) as frontend:
        assert (await exchange(frontend.port, request)).status == 200
        assert _error(await exchange(frontend.port, request)) == REFUSED
    assert len(backend.requests) == 1
    assert meters.told["disagg_key_tokens"]["team-a", "output"] == 1


def test_metrics_by_the_keys_name() -> None:
    meters, metrics = _meters(requests_per_minute=1), FrontendMetrics()
    meter = meters.of(digest(LIMITED.encode()))
    assert meter is not None
    meter.begin()
    meter.read("m", "", 7)
    with pytest.raises(RateLimited):
        meter.begin()
    text = generate_latest(metrics.up_to_date(metrics.figures({}, {}, meters.told), [], {}, {}, {})).decode()
    assert 'disagg_key_requests_total{key="team-a"} 1.0' in text
    assert 'disagg_key_tokens_total{key="team-a",kind="prompt"} 7.0' in text
    assert 'disagg_key_refused_total{key="team-a",limit="requests"} 1.0' in text
    assert LIMITED not in text
