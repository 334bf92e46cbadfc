"""A request names a LoRA adapter as `model`, as MODEL:ADAPTER, or as SGLang's lora_path; operators load and unload."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import MODEL, Answer, ScriptedBackend, exchange, http_request, says, serving

from disagg.adapters import Adapter, Served, problem_of_name
from disagg.errors import NoAdapter
from disagg.frontend.keys import Keys
from disagg.tokenizer.codec import Codec
from disagg.tokenizer.short_bodies import SHORT_BYTES

ADMIN, KEY = "admin-key-of-a-good-length", "client-key-of-a-good-length"
MESSAGES = [{"role": "user", "content": "Hi"}]
ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/generate": {"text": "Hi"},
}
EVERYWHERE = pytest.mark.parametrize("path", ENDPOINTS)


def backend() -> ScriptedBackend:
    return ScriptedBackend(
        says("Hi"), adapters={"sql": Adapter("sql", "/a/sql", created_s=7), "o/fr": Adapter("o/fr", "/b")}
    )


def post(path: str, body: dict[str, Any], *headers: str) -> bytes:
    return http_request("POST", path, json.dumps(body).encode(), headers)


@EVERYWHERE
@pytest.mark.parametrize(
    ("said", "adapter"),
    [
        ({"model": MODEL}, ""),
        ({"model": "sql"}, "sql"),
        ({"model": "o/fr"}, "o/fr"),
        ({"model": f"{MODEL}:sql"}, "sql"),
        ({"model": MODEL, "lora_path": "sql"}, "sql"),
        ({"model": MODEL, "lora_path": ["sql", "sql"]}, "sql"),
        ({"model": MODEL, "lora_path": None}, ""),
        ({"model": MODEL, "lora_path": [None]}, ""),
        ({"model": "sql", "lora_path": "sql"}, "sql"),
    ],
    ids=str,
)
async def test_an_adapter_reaches_the_legs_and_the_answer_says_the_name_that_was_asked(
    codec: Codec, path: str, said: dict[str, Any], adapter: str
) -> None:
    scripted = backend()
    async with serving(scripted, codec) as frontend:
        answer = await exchange(frontend.port, post(path, ENDPOINTS[path] | said))
    assert answer.status == 200, answer.body
    assert [request.adapter for request in scripted.requests] == [adapter]
    if path != "/generate":  # whose answers name no model
        assert answer.json["model"] == said["model"]


@EVERYWHERE
@pytest.mark.parametrize(
    ("said", "param", "status"),
    [
        ({"model": "law"}, "model", 404),
        ({"model": f"{MODEL}:law"}, "model", 404),
        ({"model": f"{MODEL}:"}, "model", 404),
        ({"model": "other:sql"}, "model", 404),
        ({"model": MODEL, "lora_path": "law"}, "lora_path", 404),
        ({"model": "sql", "lora_path": "o/fr"}, "lora_path", 400),
        ({"model": MODEL, "lora_path": ["sql", "o/fr"]}, "lora_path", 400),
        ({"model": MODEL, "lora_path": 5}, "lora_path", 400),
        ({"model": 5}, "model", 400),
    ],
    ids=str,
)
async def test_a_name_that_is_not_there_is_refused_as_an_unknown_model_is(
    codec: Codec, path: str, said: dict[str, Any], param: str, status: int
) -> None:
    scripted = backend()
    async with serving(scripted, codec) as frontend:
        answer = await exchange(frontend.port, post(path, ENDPOINTS[path] | said))
    error = answer.json["error"]
    assert (answer.status, scripted.requests) == (status, [])
    if path != "/v1/messages":  # Anthropic's errors have neither
        assert error["param"] == param
        assert status != 404 or error["code"] == "model_not_found"


async def test_a_stream_and_a_long_body_name_it_too(codec: Codec) -> None:
    scripted = backend()
    long = " " * (SHORT_BYTES + 1)  # read in a process of its own
    async with serving(scripted, codec) as frontend:
        body = {"model": "sql", "messages": MESSAGES, "stream": True, "user": long}
        streamed = await exchange(frontend.port, post("/v1/chat/completions", body), 30)
        assert {json.loads(event)["model"] for event in streamed.events if event != "[DONE]"} == {"sql"}
        del scripted.adapters["sql"]
        gone = await exchange(frontend.port, post("/v1/chat/completions", body), 30)
    assert [request.adapter for request in scripted.requests] == ["sql"]
    assert (gone.status, gone.json["error"]["code"]) == (404, "model_not_found")


async def test_samples_of_one_answer_share_it(codec: Codec) -> None:
    scripted = backend()
    async with serving(scripted, codec) as frontend:
        await exchange(frontend.port, post("/v1/completions", {"model": "sql", "prompt": ["a", "b"], "n": 2}))
    assert [request.adapter for request in scripted.requests] == ["sql"] * 4


async def test_models_are_listed_with_what_they_are_of(codec: Codec) -> None:
    async with serving(backend(), codec) as frontend:
        listed = (await exchange(frontend.port, http_request("GET", "/v1/models"))).json["data"]
        of_one = [
            await exchange(frontend.port, http_request("GET", f"/v1/models/{name}"))
            for name in ("sql", "o/fr", MODEL, f"{MODEL}:sql", "law")
        ]
    assert [(each["id"], each.get("parent"), each.get("root")) for each in listed] == [
        (MODEL, None, None),
        ("sql", MODEL, MODEL),
        ("o/fr", MODEL, MODEL),
    ]
    assert listed[1]["created"] == 7
    assert "/a/sql" not in str(listed)
    assert [each.status for each in of_one] == [200, 200, 200, 200, 404]
    assert [each.json["id"] for each in of_one[:4]] == ["sql", "o/fr", MODEL, f"{MODEL}:sql"]
    assert of_one[0].json == listed[1]
    assert "'scripted', with the adapters o/fr, sql" in of_one[4].json["error"]["message"]


async def test_one_that_goes_while_a_request_is_on_its_way_is_a_404(codec: Codec) -> None:
    async def script(_running: Any) -> None:
        raise NoAdapter("request 1", "there is no adapter 'sql' on this engine any more", "see /v1/models")

    async with serving(ScriptedBackend(script, adapters={"sql": Adapter("sql", "/a")}), codec) as frontend:
        answer = await exchange(frontend.port, post("/v1/completions", {"model": "sql", "prompt": "Hi"}))
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")


async def change(
    scripted: ScriptedBackend, codec: Codec, path: str, body: Any, *headers: str, **options: Any
) -> Answer:
    async with serving(scripted, codec, **options) as frontend:
        return await exchange(frontend.port, post(path, body, *headers))


async def test_an_operator_loads_and_unloads_in_sglangs_words(codec: Codec) -> None:
    scripted = backend()
    body = {"lora_name": "law", "lora_path": "/c", "pinned": True, "lora_id": None}
    loaded = await change(scripted, codec, "/load_lora_adapter", body)
    there = {"sql": "/a/sql", "o/fr": "/b", "law": "/c"}
    assert (loaded.status, loaded.json) == (200, {"success": True, "error_message": None, "loaded_adapters": there})
    assert scripted.adapters["law"].pinned
    gone = await change(scripted, codec, "/unload_lora_adapter", {"lora_name": "sql"})
    assert (gone.status, sorted(gone.json["loaded_adapters"])) == (200, ["law", "o/fr"])
    again = await change(scripted, codec, "/unload_lora_adapter", {"lora_name": "sql"})
    assert (again.status, again.json["success"]) == (409, False)
    assert "no adapter 'sql'" in again.json["error_message"]
    scripted.adapter_trouble = "decode-0: no memory"
    failed = await change(scripted, codec, "/load_lora_adapter", {"lora_name": "x", "lora_path": "/x"})
    assert (failed.status, failed.json["error_message"]) == (409, "decode-0: no memory")
    assert failed.json["error"]["code"] == "adapter_not_changed"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/load_lora_adapter", {"lora_path": "/a"}, "lora_name"),
        ("/load_lora_adapter", {"lora_name": "x"}, "lora_path"),
        ("/load_lora_adapter", {"lora_name": 5, "lora_path": "/a"}, "lora_name"),
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": ["/a"]}, "lora_path"),
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": "/a", "pinned": "yes"}, "pinned"),
        ("/load_lora_adapter", {"lora_name": "x", "lora_path": "/a", "load_inplace": True}, "load_inplace"),
        ("/unload_lora_adapter", {}, "lora_name"),
        ("/unload_lora_adapter", {"lora_name": "sql", "lora_path": "/a"}, "lora_path"),
        ("/unload_lora_adapter", [], None),
    ],
    ids=str,
)
async def test_a_body_that_is_wrong_changes_nothing(codec: Codec, path: str, body: Any, param: str | None) -> None:
    scripted = backend()
    answer = await change(scripted, codec, path, body)
    assert (answer.status, answer.json["success"], answer.json["error"]["param"]) == (400, False, param)
    assert sorted(scripted.adapters) == ["o/fr", "sql"]


async def test_it_takes_an_operator(codec: Codec) -> None:
    body, bearer = {"lora_name": "x", "lora_path": "/x"}, "authorization: Bearer "
    for options, headers, status in (
        ({"keys": Keys([KEY], [ADMIN])}, (bearer + ADMIN,), 200),
        ({"keys": Keys([KEY], [ADMIN])}, (bearer + KEY,), 403),
        ({"keys": Keys([KEY], [ADMIN])}, (), 401),
        ({}, ("origin: http://evil.example",), 403),
        ({}, ("x-forwarded-for: 203.0.113.7",), 403),
    ):
        scripted = backend()
        answer = await change(scripted, codec, "/load_lora_adapter", body, *headers, **options)
        assert (answer.status, "x" in scripted.adapters) == (status, status == 200)


def test_names() -> None:
    served = Served("a:b", frozenset({"sql", "b"}))
    asked = ("a:b", "a:b:sql", "sql", "b", "a:sql", "a", "", ":sql", "a:b:")
    assert [served.adapter_of(name) for name in asked] == ["", "sql", "sql", "b", *(None,) * 5]
    assert problem_of_name("org/name-1.2_x", "m") is None
