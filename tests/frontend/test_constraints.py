"""What an answer must look like is read from every client's words, bounded, and told to engines in SGLang's."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from scripted import ScriptedBackend, ask, exchange, says, serving

from disagg.errors import BadRequest
from disagg.frontend import constraints
from disagg.frontend.constraints import READERS, Constraint, constraint_of
from disagg.tokenizer.codec import Codec

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TEXT = '{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}'
TAG = {"type": "structural_tag", "format": {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}, "end": "x"}}
LEGACY = {"type": "structural_tag", "structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}
CHAT = "/v1/chat/completions"


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def of_openai(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, **more}}


@pytest.mark.parametrize(
    ("field", "value", "engine"),
    [
        ("response_format", {"type": "text"}, None),
        ("response_format", {"type": "json_object"}, {"json_schema": '{"type":"object"}'}),
        ("response_format", of_openai(), {"json_schema": TEXT}),
        ("response_format", of_openai(strict=True, description="of a person"), {"json_schema": TEXT}),
        ("response_format", of_openai(strict=None, schema={"enum": [1]}), {"json_schema": '{"enum":[1]}'}),
        ("response_format", TAG, {"structural_tag": compact(TAG)}),
        ("response_format", LEGACY, {"structural_tag": compact(LEGACY)}),
        ("json_schema", SCHEMA, {"json_schema": TEXT}),
        ("json_schema", TEXT, {"json_schema": TEXT}),
        ("json_schema", "$$ANY$$", {"json_schema": "$$ANY$$"}),
        ("regex", "a+", {"regex": "a+"}),
        ("ebnf", 'root ::= "a"', {"ebnf": 'root ::= "a"'}),
        ("structural_tag", compact(TAG), {"structural_tag": compact(TAG)}),
        ("guided_json", SCHEMA, {"json_schema": TEXT}),
        ("guided_regex", "a+", {"regex": "a+"}),
        ("guided_choice", ["yes", "no", "yes"], {"regex": "(yes|no)"}),
        ("guided_grammar", 'root ::= "a"', {"ebnf": 'root ::= "a"'}),
        ("structured_outputs", {"json": SCHEMA, "regex": None}, {"json_schema": TEXT}),
        ("structured_outputs", {"regex": "a+", "json_object": False}, {"regex": "a+"}),
        ("structured_outputs", {"choice": ["a.b", "c|d"]}, {"regex": r"(a\.b|c\|d)"}),
        ("structured_outputs", {"grammar": 'root ::= "a"'}, {"ebnf": 'root ::= "a"'}),
        ("structured_outputs", {"json_object": True}, {"json_schema": '{"type":"object"}'}),
        ("structured_outputs", {"structural_tag": TAG}, {"structural_tag": compact(TAG)}),
        *[(name, "", None) for name in ("json_schema", "regex", "ebnf", "structural_tag", "guided_regex")],
        ("structured_outputs", {}, None),
        ("guided_choice", [], None),
    ],
)
def test_every_way_to_ask_is_one_of_sglangs(field: str, value: Any, engine: dict[str, str] | None) -> None:
    assert constraint_of({field: value}) == (None if engine is None else Constraint(field, engine))


def test_any_choice_is_taken_word_for_word() -> None:
    choices = ["a.b", "a\\b", "[x]", "{1}", "^$", "a/b", "(c)", "d|e", "f*g+h?", "ü 🎾", "two\nlines", "-"]
    pattern = constraint_of({"guided_choice": choices}).sampling["regex"]  # type: ignore[union-attr]
    assert all(re.fullmatch(pattern, choice) for choice in choices)
    assert not re.fullmatch(pattern, "axb")


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


@pytest.mark.parametrize(
    ("field", "value", "param", "says"),
    [
        ("response_format", "json", "response_format", "must be an object"),
        ("response_format", {}, "response_format.type", "must be text, json_object"),
        ("response_format", {"type": "xml"}, "response_format.type", "must be text, json_object"),
        ("response_format", {"type": "json_schema"}, "response_format.json_schema", "must be an object"),
        ("response_format", {"type": "json_object", "x": 1}, "response_format.x", "is not supported"),
        ("response_format", of_openai(schema=None), "response_format.json_schema.schema", "is missing"),
        ("response_format", of_openai(schema=[]), "response_format.json_schema.schema", "must be an object"),
        ("response_format", of_openai(x=1), "response_format.json_schema.x", "is not supported"),
        ("response_format", of_openai(strict=1), "response_format.json_schema.strict", "must be true or false"),
        (
            "response_format",
            of_openai(strict=True, schema={"type": "array"}),
            "response_format.json_schema.schema",
            "must be of the type object where strict is true",
        ),
        ("response_format", {"type": "structural_tag"}, "response_format", "must hold 'format', or"),
        ("json_schema", "{", "json_schema", "is no JSON"),
        ("json_schema", "[" * 5000, "json_schema", "is nested too deeply"),
        ("json_schema", "[]", "json_schema", "must be a JSON object"),
        ("json_schema", 5, "json_schema", "as an object or as text"),
        ("json_schema", deep(65), "json_schema", "nested deeper than 64 levels"),
        ("json_schema", compact(deep(65)), "json_schema", "nested deeper than 64 levels"),
        ("json_schema", {"enum": list(range(40_000))}, "json_schema", "more than 32768 values and names"),
        ("json_schema", {"const": "x" * 70_000}, "json_schema", "longer than 65536 bytes"),
        ("json_schema", " " * 70_000, "json_schema", "longer than 65536 bytes"),
        ("json_schema", {"pattern": "a\0"}, "json_schema", "holds a NUL"),
        ("json_schema", {"a\0": 1}, "json_schema", "holds a NUL"),
        ("json_schema", '{"pattern":"\\u0000"}', "json_schema", "holds a NUL"),
        ("structural_tag", "{}", "structural_tag", "must hold 'format', or"),
        ("regex", 5, "regex", "must be a string"),
        ("regex", "a\0", "regex", "holds a NUL"),
        ("regex", "a" * 20_000, "regex", "longer than 16384 bytes"),
        ("regex", "ü" * 9_000, "regex", "longer than 16384 bytes"),
        ("ebnf", "a" * 70_000, "ebnf", "longer than 65536 bytes"),
        ("guided_choice", "yes", "guided_choice", "must be a list of strings"),
        ("guided_choice", ["a", 1], "guided_choice[1]", "must be a string"),
        ("guided_choice", ["a", ""], "guided_choice[1]", "is empty"),
        ("guided_choice", ["a"] * 1025, "guided_choice", "at most 1024"),
        ("guided_choice", ["a" * 40_000, "b" * 40_000], "guided_choice", "longer than 65536 bytes in all"),
        ("structured_outputs", [], "structured_outputs", "must be an object"),
        ("structured_outputs", {"xml": 1}, "structured_outputs.xml", "is not supported"),
        ("structured_outputs", {"json": SCHEMA, "regex": "a"}, "structured_outputs", "give one of them"),
        ("structured_outputs", {"json_object": 1}, "structured_outputs.json_object", "must be true or false"),
        ("structured_outputs", {"regex": 1}, "structured_outputs.regex", "must be a string"),
    ],
)
def test_what_is_no_constraint_is_refused_by_name(field: str, value: Any, param: str, says: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(says)) as refused:
        constraint_of({field: value})
    assert refused.value.param == param


def test_just_within_the_limits_passes() -> None:
    assert constraint_of({"json_schema": deep(64)}) is not None
    assert constraint_of({"regex": "a" * constraints.REGEX_BYTES_MAX}) is not None
    assert constraint_of({"json_schema": {"enum": list(range(10_000))}}) is not None


def test_two_constraints_are_refused_whatever_they_are() -> None:
    both = {"regex": "a", "response_format": {"type": "json_object"}}
    with pytest.raises(BadRequest, match="'response_format' and 'regex' each constrain the answer; give one of them"):
        constraint_of(both)
    assert constraint_of({**both, "response_format": {"type": "text"}}) is not None


def test_a_schema_of_megabytes_is_refused_without_a_look_at_all_of_it() -> None:
    schema = {"properties": {f"p{index}": {"enum": list(range(100))} for index in range(20_000)}}
    started_s = time.perf_counter()
    with pytest.raises(BadRequest, match="more than 32768 values"):
        constraint_of({"json_schema": schema})
    assert time.perf_counter() - started_s < 1.0


async def test_both_endpoints_take_it_and_engines_that_cannot_are_told_of(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        for path in (CHAT, "/v1/completions"):
            assert (await exchange(frontend.port, ask(path, response_format=of_openai()))).status == 200
        assert [request.sampling["json_schema"] for request in backend.requests] == [TEXT, TEXT]
        backend.ignored = {"grammar": "say grammar_backend: xgrammar in the engine's arguments"}
        assert (await exchange(frontend.port, ask(response_format={"type": "text"}))).status == 200
        for name in READERS:
            value = {"type": "json_object"} if name == "response_format" else None
            value = ["a"] if name == "guided_choice" else value
            value = {"json_object": True} if name == "structured_outputs" else value
            answer = await exchange(frontend.port, ask(**{name: value or (TAG if "tag" in name else "{}")}))
            error = answer.json["error"]
            assert (answer.status, error["param"], error["code"]) == (400, name, "ignored_parameter")
            assert "grammar_backend: xgrammar" in error["message"]


async def test_min_tokens_beside_a_constraint_is_refused(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, ask(regex="a", min_tokens=5))
        assert (answer.status, answer.json["error"]["param"]) == (400, "min_tokens")
        assert "could not end" in answer.json["error"]["message"]
