"""Where there are keys, each path asks for one, and a request belongs to the key it came with."""

from __future__ import annotations

import asyncio
import hmac
import json

import pytest
from scripted import Answer, ScriptedBackend, ask, exchange, hangs, http_request, says, serving, until

from disagg.frontend.app import Frontend
from disagg.frontend.keys import Keys
from disagg.tokenizer.codec import Codec

FIRST, SECOND, ADMIN = "first-key-0123456789", "second-key-0123456789", "admin-key-0123456789"
CLIENTS_ALONE, BOTH, ADMINS_ALONE = Keys([FIRST, SECOND]), Keys([FIRST, SECOND], [ADMIN]), Keys([], [ADMIN])
OPEN, CLIENT, STATUS, OPERATE = (
    [("GET", "/health"), ("GET", "/ready"), ("GET", "/openapi.json"), ("GET", "/docs")],
    [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/scripted"),
        ("GET", "/metrics"),
        ("GET", "/metrics/engines"),
        ("POST", "/v1/chat/completions"),
    ],
    [("GET", "/disagg/status"), ("GET", "/disagg/loads")],
    [
        ("GET", "/disagg/logs/prefill-0"),
        ("POST", "/disagg/engines/prefill-0/drain"),
        ("POST", "/flush_cache"),
        ("GET", "/flush_cache"),
    ],
)
UNKNOWN = [("GET", "/"), ("GET", "/v1/unknown"), ("GET", "/disagg/unknown"), ("PUT", "/v1/models")]


async def asked(frontend: Frontend, method: str, path: str, key: str | None, *headers: str) -> Answer:
    said = [*headers, *([f"authorization: Bearer {key}"] if key else [])]
    body = ask().partition(b"\r\n\r\n")[2] if method == "POST" and path.startswith("/v1") else b""
    return await exchange(frontend.port, http_request(method, path, body, said))


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong-key-0123456789", f"Basic {FIRST}", f"Bearer {FIRST} x"])
async def test_who_has_no_key_gets_401_and_no_engine_sees_it(codec: Codec, key: str) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec, keys=CLIENTS_ALONE) as frontend:
        headers = [f"authorization: {key}"] if key else []
        for method, path in [*CLIENT, *STATUS, *OPERATE, *UNKNOWN, ("DELETE", "/v1/requests/x")]:
            answer = await exchange(frontend.port, http_request(method, path, headers=headers))
            assert (method, path, answer.status) == (method, path, 401)
            assert answer.headers["www-authenticate"] == "bearer"
            assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"
    assert backend.requests == []
    assert backend.drained == []


@pytest.mark.parametrize("key", [FIRST, SECOND])
async def test_each_key_opens(codec: Codec, key: str) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=CLIENTS_ALONE) as frontend:
        request = http_request("GET", "/v1/models", headers=[f"Authorization: bearer {key}"])
        assert (await exchange(frontend.port, request)).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"x-api-key: {FIRST}"], 200),
        ([f"X-API-Key:   {SECOND} "], 200),
        ([f"x-api-key: {FIRST}", f"authorization: Bearer {FIRST}"], 200),
        ([f"x-api-key: {FIRST}", "authorization: Basic of-a-proxy"], 200),
        (["x-api-key: wrong-key-0123456789"], 401),
        (["x-api-key:"], 401),
        ([f"x-api-key: Bearer {FIRST}"], 401),
        ([f"x-api-key: {FIRST}", f"authorization: Bearer {SECOND}"], 401),  # whose requests would they be?
        (["x-api-key: wrong-key-0123456789", f"authorization: Bearer {FIRST}"], 401),
        (["x-api-key:", f"authorization: Bearer {FIRST}"], 401),
    ],
)
async def test_a_key_may_come_as_anthropics_clients_send_it(codec: Codec, headers: list[str], status: int) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=CLIENTS_ALONE) as frontend:
        for method, path in (("GET", "/v1/models"), ("GET", "/disagg/status")):
            answer = await exchange(frontend.port, http_request(method, path, headers=headers))
            assert (path, answer.status) == (path, status), answer.body
        if len(headers) == 2 and status == 401:
            assert "different keys" in answer.json["error"]["message"]


async def test_two_keys_do_no_harm_where_none_is_asked_for(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        headers = ["x-api-key: one", "authorization: Bearer other"]
        assert (await exchange(frontend.port, http_request("GET", "/v1/models", headers=headers))).status == 200


async def test_a_request_belongs_to_its_key_however_it_was_sent(codec: Codec) -> None:
    backend = ScriptedBackend(hangs("Hi"))
    async with serving(backend, codec, keys=CLIENTS_ALONE) as frontend:
        task = asyncio.create_task(asked(frontend, "POST", "/v1/chat/completions", None, f"x-api-key: {FIRST}"))
        await until(lambda: bool(backend.requests))
        path = f"/v1/requests/chatcmpl-{backend.requests[0].id}"
        assert (await asked(frontend, "DELETE", path, SECOND)).status == 404
        assert (await asked(frontend, "DELETE", path, FIRST)).status == 200
        task.cancel()


@pytest.mark.parametrize(
    ("keys", "key", "client", "status", "operate"),
    [
        (Keys(), None, 200, 200, 200),
        (CLIENTS_ALONE, FIRST, 200, 200, 200),
        (BOTH, None, 401, 401, 401),
        (BOTH, FIRST, 200, 403, 403),
        (BOTH, ADMIN, 200, 200, 200),
        (ADMINS_ALONE, None, 200, 401, 401),
        (ADMINS_ALONE, ADMIN, 200, 200, 200),
        (ADMINS_ALONE, "wrong-key-0123456789", 200, 401, 401),
    ],
)
async def test_what_each_key_opens(
    codec: Codec, keys: Keys, key: str | None, client: int, status: int, operate: int
) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=keys) as frontend:
        for paths, wanted in ((OPEN, 200), (CLIENT, client), (STATUS, status), (OPERATE, operate)):
            for method, path in paths:
                answer = await asked(frontend, method, path, key)
                assert (method, path, answer.status) == (method, path, wanted), answer.body


async def test_the_error_says_which_key_is_needed(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=BOTH) as frontend:
        for key, said in ((None, "security.admin_keys"), (FIRST, "this is one of security.api_keys")):
            answer = await asked(frontend, "GET", "/disagg/status", key)
            assert said in answer.json["error"]["message"]
        assert "security" not in (await asked(frontend, "GET", "/v1/models", None)).json["error"]["message"]


async def test_metrics_need_none_where_the_yaml_says_so(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=Keys([FIRST], open_metrics=True)) as frontend:
        assert (await asked(frontend, "GET", "/metrics", None)).status == 200
        assert (await asked(frontend, "GET", "/disagg/status", None)).status == 401


@pytest.mark.parametrize(
    ("keys", "key", "sees", "cancels"),
    [
        (BOTH, FIRST, None, 200),  # its own
        (BOTH, SECOND, None, 404),
        (BOTH, ADMIN, True, 200),
        (CLIENTS_ALONE, FIRST, True, 200),
        (CLIENTS_ALONE, SECOND, False, 404),
    ],
)
async def test_a_request_is_seen_and_cancelled_by_its_owner_and_by_admins(
    codec: Codec, keys: Keys, key: str, sees: bool | None, cancels: int
) -> None:
    backend = ScriptedBackend(hangs("Hi"))
    async with serving(backend, codec, keys=keys) as frontend:
        task = asyncio.create_task(asked(frontend, "POST", "/v1/chat/completions", FIRST))
        await until(lambda: bool(backend.requests))
        request_id = backend.requests[0].id
        status = await asked(frontend, "GET", "/disagg/status", key)
        timeline = await asked(frontend, "GET", f"/disagg/requests/{request_id}", key)
        if sees is None:
            assert (status.status, timeline.status) == (403, 403)
        else:
            assert (request_id in status.json["live"], timeline.status) == (sees, 200 if sees else 404)
        answer = await asked(frontend, "DELETE", f"/v1/requests/chatcmpl-{request_id}", key)
        assert answer.status == cancels
        if cancels == 404:  # no other answer than for what never was
            never = await asked(frontend, "DELETE", f"/v1/requests/chatcmpl-{'0' * 32}", key)
            assert never.body.replace(b"0" * 32, request_id.encode()) == answer.body
        task.cancel()


async def test_without_keys_everybody_may(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        assert (await exchange(frontend.port, ask())).status == 200


@pytest.mark.parametrize("place", [0, 15, None], ids=["the first", "the last", "none of them"])
async def test_as_much_is_compared_whichever_key_it_is(
    codec: Codec, place: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests of one length, all of them, and in constant time: how long a refusal takes tells nothing of a key. What
    is measured of it: `python -m benchmarks.attacks`."""
    keys = [f"key-number-{number:02d}-0123456789" for number in range(16)]
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    async with serving(ScriptedBackend(says("Hi")), codec, keys=Keys(keys, [ADMIN])) as frontend:
        sent = "key-number-xx-0123456789-and-longer" if place is None else keys[place]
        answer = await asked(frontend, "GET", "/v1/models", sent)
    assert answer.status == (401 if place is None else 200)
    assert compared == [(32, 32)] * 17
