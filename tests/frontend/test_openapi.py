"""/openapi.json and /docs tell every endpoint and its fields, and what they tell is what the readers take."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from disagg.adapters import Served
from disagg.errors import BadRequest
from disagg.frontend.endpoints import ENDPOINTS, Endpoint
from disagg.frontend.field_schemas import is_refused, schema_of
from disagg.frontend.openapi import document, page
from disagg.frontend.reading import READINGS, read, with_earlier
from disagg.sampling import FIELDS
from disagg.tokenizer.codec import Codec
from tests.frontend.scripted import MODEL, ScriptedBackend, exchange, http_request, says, serving

HI = [{"role": "user", "content": "Hi"}]
GOOD: dict[str, dict[str, Any]] = {
    "chat": {"model": MODEL, "messages": HI},
    "text": {"model": MODEL, "prompt": "Hi"},
    "responses": {"model": MODEL, "input": "Hi"},
    "messages": {"model": MODEL, "messages": HI, "max_tokens": 4},
    "count_tokens": {"model": MODEL, "messages": HI},
    "generate": {"text": "Hi"},
    "tokenize": {"prompt": "Hi"},
    "detokenize": {"tokens": [1]},
    "embd": {"model": MODEL, "input": "Hi"},
    "clas": {"input": "Hi"},
    "rank": {"query": "Hi", "documents": ["a"]},
    "scor": {"query": "Hi", "items": ["a"]},
}
# Where a text is tokenised: most of what a generation's body says changes no id, and is not looked at.
UNTOUCHED = {"tokenize": {"add_special_tokens", "model", "prompt", "messages", "return_token_strs"}}
OTHERS: list[Any] = [5, 0.5, "x", True, [5], [[5]], [{"a": 1}], ["x"], {"a": 1}]


def asked(endpoint: Endpoint, codec: Codec, name: str, value: Any, inner: str = "") -> None:
    body = {**GOOD[endpoint.word], name: {inner: value} if inner else value}
    if name == "messages" and endpoint.word == "tokenize":
        del body["prompt"]
    if name == "input_ids":
        del body["text"]
    data = json.dumps(body).encode()
    read(with_earlier(data, []) if endpoint.word == "responses" else data, endpoint.word, Served(MODEL), codec)


def is_of(schema: dict[str, Any], value: Any) -> bool:
    """As far as types go."""
    if "anyOf" in schema:
        return any(is_of(each, value) for each in schema["anyOf"])
    match schema.get("type"):
        case "boolean":
            return type(value) is bool
        case "integer":
            return type(value) is int
        case "number":
            return type(value) in (int, float)
        case "string":
            return type(value) is str
        case "object":
            return type(value) is dict
        case "array":
            return type(value) is list and is_of(schema["items"], value[0])
        case _:
            return True


def fields(endpoint: Endpoint) -> list[tuple[str, str]]:
    """(field, its own field or "")"""
    read_here = UNTOUCHED.get(endpoint.word, endpoint.reads)
    told = [(name, "") for name in sorted(read_here) if not is_refused(endpoint.word, name)]
    return told + [(name, each) for name, names in endpoint.inner.items() for each in sorted(names)]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda each: each.path)
def test_what_is_not_of_the_type_that_is_told_is_refused(endpoint: Endpoint, codec: Codec) -> None:
    for name, inner in fields(endpoint):
        wrong = [each for each in OTHERS if not is_of(schema_of(endpoint.word, inner or name), each)]
        for value in wrong:
            with pytest.raises(BadRequest):  # (this value of this field)
                asked(endpoint, codec, name, value, inner)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_the_bounds_of_sampling_fields_are_told(field: Any) -> None:
    schema = schema_of("chat", field.name)
    assert schema["maximum"] == field.most
    assert schema.get("minimum", schema.get("exclusiveMinimum")) == field.least


def test_each_body_that_is_read_has_its_row() -> None:
    assert {endpoint.word for endpoint in ENDPOINTS} == READINGS.keys() | {"responses"}


async def test_the_document_has_every_route_and_every_field(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("GET", "/openapi.json"))
        assert answer.headers["content-type"] == "application/json"
        told = answer.json
        routes = {f"{path}{{name}}" if path.endswith("/") else path for path in frontend._routes.all}
    assert told["paths"].keys() == routes
    for endpoint in ENDPOINTS:
        schema = told["paths"][endpoint.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        left_out = endpoint.reads - schema["properties"].keys()
        assert all(is_refused(endpoint.word, name) for name in left_out)
        for name, names in endpoint.inner.items():
            assert schema["properties"][name]["properties"].keys() == names
    assert {"get", "post"} == told["paths"]["/flush_cache"].keys()


async def test_answers_are_of_the_type_that_is_told(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        told = (await exchange(frontend.port, http_request("GET", "/openapi.json"))).json["paths"]
        for path, operations in told.items():
            if "get" not in operations:
                continue
            name = "prefill-0" if "logs" in path else MODEL
            method = "HEAD" if path == "/disagg/events" else "GET"  # it has no end
            answer = await exchange(frontend.port, http_request(method, path.replace("{name}", name)))
            if answer.status == 200:
                (kind,) = operations["get"]["responses"]["200"]["content"]
                assert answer.headers["content-type"].startswith(kind), path
        assert told["/abort_request"]["post"]["requestBody"]


async def test_the_page_shows_them_and_loads_nothing(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("GET", "/docs"))
        told = document(frontend._routes.all)
    text = answer.body.decode()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert text == page(told)
    assert not re.search(r"<script|<link|<img|src=|https?://", text)
    for path, operations in told["paths"].items():
        assert f"<code>{path}</code>" in text
        for operation in operations.values():
            if "requestBody" in operation:
                properties = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
                assert all(f"<code>{name}</code>" in text for name in properties)
    assert "<code>sampling_params.top_p</code></td><td>number above 0 to 1" in text
