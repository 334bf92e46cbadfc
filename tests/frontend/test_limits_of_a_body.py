"""Whatever a client can make larger in a body has a limit: what is at it is taken, what is beyond it gets a 400 that
names it. docs/limits.md has the numbers (test_limits_are_told.py); samples and their tokens together are in
test_many_samples.py, what engines hold in test_bad_input_is_refused.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from scripted import CONTEXT, MODEL

from disagg.adapters import Served
from disagg.errors import BadRequest
from disagg.frontend import constraints, inputs, reading, request_body, tool_choice
from disagg.frontend.reading import read
from disagg.frontend.tool_choice import tool_use_of
from disagg.sampling import BIASES_MAX, STOP_IDS_MAX, STOP_PATTERNS_MAX
from disagg.tokenizer.codec import Codec
from tests.frontend.tool_formats import tool

ASKED = {"role": "user", "content": "a"}
ARRAY, TEXT, NUMBER = "array_above_max_length", "string_above_max_length", "integer_above_max_value"
OF_OPENAI = "response_format.json_schema.schema"


def schema_of_size(size: int) -> dict[str, Any]:
    """Whose JSON has so many bytes."""
    return {"title": "x" * (size - len('{"title":""}'))}


def schema_of_depth(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"not": schema}
    return schema


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _of_responses(schema: dict[str, Any]) -> dict[str, Any]:
    return {"input": "a", "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}


def _biases(count: int) -> dict[str, Any]:
    """A token may be named in several ways."""
    return {"logit_bias": {f"{number % 200:0{3 + number // 200}d}": 1 for number in range(count)}}


Fields = Callable[[int], dict[str, Any]]
# What grows: endpoint, fields of a size, the largest that is taken, whom the refusal of a larger one names, its code.
TABLE: dict[str, tuple[str, Fields, int, str, str]] = {
    "n": ("text", lambda size: {"n": size}, request_body.N_MAX, "n", NUMBER),
    "n of /generate": (
        "generate",
        lambda size: {"text": "a", "sampling_params": {"n": size}},
        request_body.N_MAX,
        "sampling_params.n",
        NUMBER,
    ),
    "best_of": ("text", lambda size: {"best_of": size}, request_body.N_MAX, "best_of", NUMBER),
    "prompts": ("text", lambda size: {"prompt": ["a"] * size}, request_body.PROMPTS_MAX, "prompt", ARRAY),
    "prompts of /generate": ("generate", lambda size: {"text": ["a"] * size}, request_body.PROMPTS_MAX, "text", ARRAY),
    "inputs": ("embd", lambda size: {"input": ["a"] * size}, inputs.BATCH_MAX, "input", ARRAY),
    "top_logprobs": (
        "chat",
        lambda size: {"logprobs": True, "top_logprobs": size},
        request_body.TOP_LOGPROBS_MAX,
        "top_logprobs",
        NUMBER,
    ),
    "stop strings": ("chat", lambda size: {"stop": ["a"] * size}, request_body.STOP_STRINGS_MAX, "stop", ARRAY),
    "a stop string": ("chat", lambda size: {"stop": ["a" * size]}, request_body.STOP_CHARACTERS_MAX, "stop[0]", TEXT),
    "stop_sequences": (
        "messages",
        lambda size: {"stop_sequences": ["a"] * size},
        request_body.STOP_STRINGS_MAX,
        "stop_sequences",
        ARRAY,
    ),
    "logit_bias": ("chat", _biases, BIASES_MAX, "logit_bias", ARRAY),
    "stop_token_ids": ("chat", lambda size: {"stop_token_ids": [5] * size}, STOP_IDS_MAX, "stop_token_ids", ARRAY),
    "stop_regex": ("chat", lambda size: {"stop_regex": ["a"] * size}, STOP_PATTERNS_MAX, "stop_regex", ARRAY),
    "a schema": ("chat", lambda n: _format(schema_of_size(n)), constraints.SCHEMA_BYTES_MAX, OF_OPENAI, TEXT),
    "its depth": (
        "chat",
        lambda size: _format(schema_of_depth(size)),
        constraints.SCHEMA_DEPTH_MAX,
        OF_OPENAI,
        "invalid_value",
    ),
    "a schema of Responses": (
        "responses",
        lambda size: _of_responses(schema_of_size(size)),
        constraints.SCHEMA_BYTES_MAX,
        "text.format",
        TEXT,
    ),
    "json_schema": ("chat", lambda n: {"json_schema": schema_of_size(n)}, 64 << 10, "json_schema", TEXT),
    "regex": ("chat", lambda size: {"regex": "a" * size}, constraints.REGEX_BYTES_MAX, "regex", TEXT),
    "ebnf": ("chat", lambda size: {"ebnf": "a" * size}, constraints.GRAMMAR_BYTES_MAX, "ebnf", TEXT),
    "choices": (
        "chat",
        lambda size: {"guided_choice": ["a"] * size},
        constraints.CHOICES_MAX,
        "guided_choice",
        ARRAY,
    ),
}


def _read(endpoint: str, fields: dict[str, Any], codec: Codec) -> None:
    start: dict[str, dict[str, Any]] = {
        "chat": {"model": MODEL, "messages": [ASKED]},
        "messages": {"model": MODEL, "messages": [ASKED], "max_tokens": 5},
        "text": {"model": MODEL, "prompt": "a"},
        "generate": {},
    }
    body = json.dumps(start.get(endpoint, {"model": MODEL}) | fields, separators=(",", ":")).encode()
    read(b"2\n[]" + body if endpoint == "responses" else body, endpoint, Served(MODEL), codec)


@pytest.mark.parametrize(("endpoint", "fields", "most", "param", "code"), TABLE.values(), ids=TABLE)
def test_at_its_limit_it_is_taken_and_beyond_it_refused_by_name(
    codec: Codec, endpoint: str, fields: Fields, most: int, param: str, code: str
) -> None:
    _read(endpoint, fields(most), codec)
    with pytest.raises(BadRequest) as refused:
        _read(endpoint, fields(most + 1), codec)
    assert (refused.value.param, refused.value.code) == (param, code)
    assert f"'{param}'" in refused.value.message


def test_no_more_of_a_schema_is_looked_at_than_its_limit(codec: Codec) -> None:
    with pytest.raises(BadRequest, match=f"more than {constraints.SCHEMA_NODES_MAX} values and names"):
        _read("chat", _format({"enum": [1] * (1 << 20)}), codec)


@pytest.mark.parametrize(("endpoint", "field"), [("text", "prompt"), ("generate", "text")])
def test_prompts_have_a_limit_together(
    codec: Codec, endpoint: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PROMPT_TOKENS_MAX", 2 * CONTEXT)
    half = "a" * (CONTEXT // 2)
    _read(endpoint, {field: [half] * 4}, codec)
    with pytest.raises(BadRequest) as refused:
        _read(endpoint, {field: [half] * 4 + ["a"]}, codec)
    assert (refused.value.param, refused.value.code) == (field, "too_many_tokens")


@pytest.mark.parametrize("endpoint", ["chat", "messages", "responses"])
def test_messages_are_counted_before_any_is_looked_at(codec: Codec, endpoint: str) -> None:
    param = "input" if endpoint == "responses" else "messages"
    with pytest.raises(BadRequest, match=f"'{param}' has {CONTEXT + 1} entries") as refused:
        _read(endpoint, {param: [ASKED] * (CONTEXT + 1)}, codec)
    assert refused.value.param == param


def _parts(nodes: int) -> list[dict[str, Any]]:
    """Two schemas that have so many values and names together."""
    half = nodes // 2
    return [{"enum": [0] * (count - 3)} for count in (half, nodes - half)]


# What of tools grows: tools of a size, the largest that are taken, whom the refusal of larger ones names, its code.
TOOLS: dict[str, tuple[Callable[[int], list[dict[str, Any]]], int, str, str]] = {
    "how many": (lambda size: [tool(f"f{number}") for number in range(size)], tool_choice.TOOLS_MAX, "", ARRAY),
    "a description": (
        lambda size: [{"function": {"name": "f", "description": "x" * size}}],
        tool_choice.DESCRIPTION_CHARACTERS_MAX,
        "[0].function.description",
        TEXT,
    ),
    "a schema": (
        lambda size: [{"function": {"name": "f", "parameters": schema_of_size(size)}}],
        tool_choice.SCHEMA_BYTES_MAX,
        "[0].function.parameters",
        "schema_too_large",
    ),
    "its depth": (
        lambda size: [{"function": {"name": "f", "parameters": schema_of_depth(size)}}],
        tool_choice.SCHEMA_DEPTH_MAX,
        "[0].function.parameters",
        "schema_too_deep",
    ),
    "all schemas": (
        lambda size: [{"function": {"name": f"f{at}", "parameters": schema}} for at, schema in enumerate(_parts(size))],
        tool_choice.SCHEMAS_NODES_MAX,
        "",
        "schema_too_large",
    ),
    "a name": (lambda size: [{"function": {"name": "x" * size}}], 64, "[0].function.name", "invalid_value"),
}


@pytest.mark.parametrize(("tools", "most", "where", "code"), TOOLS.values(), ids=TOOLS)
def test_tools_have_limits(tools: Callable[[int], list[dict[str, Any]]], most: int, where: str, code: str) -> None:
    assert tool_use_of({"tools": tools(most)}).tools
    with pytest.raises(BadRequest) as refused:
        tool_use_of({"tools": tools(most + 1)})
    assert (refused.value.param, refused.value.code) == (f"tools{where}", code)
