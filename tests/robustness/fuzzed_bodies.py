"""Requests that are nearly right: a good body of each endpoint with a field or two of the wrong type, size, depth or
letters, a name twice, JSON that breaks off, a head that lies about its body. Strategies for hypothesis.

In:    the table of fields (disagg/frontend/endpoints.py), so that a field that is built is tried without a line here
Out:   whole requests, as bytes, each on a connection that closes after it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from features import CHAT_TOOLS, FEATURES, Feature
from http_world import PATHS
from hypothesis import strategies
from scripted import MODEL

from disagg.frontend.endpoints import ENDPOINTS
from disagg.frontend.parameters import FORBIDDEN, HARMLESS, UNBUILT


def _short(feature: Feature) -> dict[str, Any]:
    """Its answer has a few tokens."""
    name = {"responses": "max_output_tokens", "generate": ""}.get(feature.api, "max_tokens")
    body = {**feature.body, **feature.streamed_body} if "stream" in feature.body else dict(feature.body)
    if name:
        return {"model": MODEL, **body, name: 8}
    return {**body, "sampling_params": {"max_new_tokens": 8, **body.get("sampling_params", {})}}


_MESSAGES = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
_CALLED = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "a", "content": "12"},
]  # fmt: skip
GOOD: dict[str, list[dict[str, Any]]] = {path: [] for path in PATHS.values()}
for _feature in FEATURES.values():
    GOOD[PATHS[_feature.api]] += [_short(_feature) | {"stream": is_stream} for is_stream in (True, False)]
GOOD["/v1/chat/completions"] += [
    {"model": MODEL, "messages": _CALLED, "max_tokens": 8, **CHAT_TOOLS},
    {**_MESSAGES, "max_completion_tokens": 8, "logit_bias": {"5": 1.5}, "seed": 1, "stop_token_ids": [5], "top_k": 3},
]
GOOD["/v1/responses"] += [
    {"model": MODEL, "max_output_tokens": 8, "reasoning": {"effort": "low", "summary": "auto"}, "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "a", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "12"}]},
]  # fmt: skip
GOOD["/v1/messages"] += [
    {"model": MODEL, "max_tokens": 8, "system": [{"type": "text", "text": "Be brief."}], "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "get_time", "input": {"zone": "x"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "12"}]}]},
]  # fmt: skip
GOOD |= {
    "/v1/messages/count_tokens": [{**_MESSAGES}],
    "/abort_request": [{"rid": "0001"}],
    "/tokenize": [{"model": MODEL, "prompt": "Hi", "return_token_strs": True}, _MESSAGES],
    "/detokenize": [{"model": MODEL, "tokens": [72, 105]}, {"tokens": [[72], [105]]}],
    "/v1/embeddings": [
        {"model": MODEL, "input": ["Hi", "Ho"], "encoding_format": "base64"},
        {"model": MODEL, "input": [[72, 105]]},
    ],
    "/v1/classify": [{"model": MODEL, "input": "Hi"}],
    "/v1/rerank": [{"model": MODEL, "query": "Hi", "documents": ["a", "b"], "top_n": 1, "return_documents": True}],
    "/v1/score": [{"model": MODEL, "query": "Hi", "items": ["a", "b"], "apply_softmax": True}],
    "/load_lora_adapter": [{"lora_name": "a", "lora_path": "b", "pinned": False}],
    "/unload_lora_adapter": [{"lora_name": "a"}],
    "/flush_cache": [{}],
    "/disagg/engines/decode-0/drain": [{}],
    "/disagg/changes": [{"order": {"do": "scale", "counts": {"prefill": 2}}, "yes": True, "dry_run": False}],
}


class Raw(str):
    """Written as it is, without quotes."""


def _deep(depth: int, begin: Any) -> Any:
    made: Any = []
    for _ in range(depth):
        made = begin(made)
    return made


# What may stand anywhere instead of what is right. Large ones are made when they are drawn.
VALUES: list[Callable[[], Any]] = [
    lambda value=value: deepcopy(value)
    for value in (
        None, True, False, 0, 1, 2, 3, -1, -2, 7, 16.0, 0.5, 1.5, -0.5, 1e-300, 1e300, -1e300, 2**31 - 1, 2**31, 2**32,
        2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, Raw("9" * 400), Raw("-" + "9" * 5000), Raw("1e400"),
        Raw("-0"), Raw("-0.0"), Raw("1E5"),
        Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("01"), Raw("+1"), Raw("0x10"),
        "", " ", "a", "0", "1", "true", "null", "auto", "none", "required", "text", "json_object", MODEL, "user", "low",
        "\0", "a\0b", "\ud800", "a\udfffb", "\ud83c\udfbe", "\u2028\u2029\x85", "\ufeff", "é" * 60, "🎾", "\x1b[0m",
        "..",
        "%s%n{}{{}}{% raw %}", "<|im_end|>", "<tool_call>", "</think>", '"', "\\", "[a-z]+", "(a+)+$", "(",
        "a{1,100000}", "(?=a)",
        'root ::= "a"', '{"type":"object"}', "data:image/png;base64,AA", "http://127.0.0.1:1/x",
        [], [[]], [None], [""], ["a"], ["a", 1], [1], [1, 2.5], [-1], [1e30], [True], [{}], [[1], [2]], [[], []],
        {}, {"": 1}, {"a": None}, {"5": 1}, {"5": 101}, {"-1": 1}, {"x": 1}, {"5": {}}, {"type": "object"},
        {"type": "function"}, {"type": "text"}, {"type": "text", "text": "a"}, {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        {"type": "enabled", "budget_tokens": 1024}, {"type": "allowed_tools"}, {"$ref": "#"}, {"type": "regex",
        "pattern": "("},
        {"role": "user", "content": "Hi"}, {"type": "image_url", "image_url": {"url": "x"}}, {"effort": "low"},
        {"enable_thinking": True}, {"messages": []}, {"include_usage": True}, {"__class__": "x"}, {"\ud800": 1},
    )
]  # fmt: skip
LARGE: list[Callable[[], Any]] = [
    lambda: "a" * 300,
    lambda: "word " * 2000,
    lambda: "🎾" * 20_000,
    lambda: "a" * 70_000,
    lambda: ["a"] * 20,
    lambda: ["a"] * 300,
    lambda: [1] * 300,
    lambda: [1] * 6000,
    lambda: [""] * 3000,
    lambda: [{}] * 700,
    lambda: [[1]] * 300,
    lambda: [{"role": "user", "content": "a"}] * 600,
    lambda: {str(number): 1 for number in range(2000)},
    lambda: {f"n{number}": None for number in range(300)},
    lambda: _deep(70, lambda inner: [inner]),
    lambda: _deep(70, lambda inner: {"items": inner}),
    lambda: _deep(600, lambda inner: [inner]),
    lambda: _deep(2000, lambda inner: {"a": inner}),
    lambda: {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1500)}},
    lambda: {"anyOf": [{"type": "object", "properties": {"a": {"enum": list(range(50))}}}] * 40},
    lambda: [{"type": "function", "function": {"name": f"f{number}"}} for number in range(150)],
]
NAMES = sorted(
    UNBUILT.keys() | HARMLESS | FORBIDDEN | {"chat_template", "bootstrap_room", "x", "", "\0", "a" * 200, "\ud800"}
)
_OF = {
    each.path: sorted(each.known | {f"{outer}.{name}" for outer, names in each.inner.items() for name in names})
    for each in ENDPOINTS
}
DEPTH_MAX = 8  # of what is spoiled within a body


@dataclass(frozen=True)
class Sent:
    path: str
    data: bytes
    ends: bool  # the client shuts its sending side: its head has promised more
    is_http: bool = True  # else its head asks for what HTTP/1.1 answers with a 501 or a 505

    @property
    def api(self) -> str:
        return "messages" if self.path.startswith("/v1/messages") else "chat"


@strategies.composite
def requests(draw: strategies.DrawFn) -> Sent:
    path = draw(strategies.sampled_from(list(GOOD)))
    body = deepcopy(draw(strategies.sampled_from(GOOD[path])))
    for _ in range(draw(strategies.sampled_from((1, 0, 1, 1, 0, 1, 1, 2, 3)))):
        _spoil(draw, path, body)
    return _framed(draw, path, _broken(draw, _written(draw, body)))


def _spoil(draw: strategies.DrawFn, path: str, body: dict[str, Any]) -> None:
    made = draw(strategies.sampled_from(LARGE if draw(strategies.integers(0, 11)) == 0 else VALUES))()
    way = draw(strategies.integers(0, 9))
    if way < 5:
        name = draw(strategies.sampled_from(_OF.get(path) or NAMES))
        node = body
        for outer in name.split(".")[:-1]:
            node = node.setdefault(outer, {})
            if not isinstance(node, dict):
                return
        node[name.rpartition(".")[2]] = made
    elif way == 5:
        body[draw(strategies.sampled_from(NAMES))] = made
    else:
        _spoil_within(draw, body, made, way)


def _spoil_within(draw: strategies.DrawFn, body: dict[str, Any], made: Any, way: int) -> None:
    """Somewhere within: another value, one more, one less, or itself a list deeper."""
    places = list(_places(body))
    if not places:
        return
    node, key = draw(strategies.sampled_from(places))
    match way:
        case 6 | 7:
            node[key] = made
        case 8:
            del node[key]
        case _ if isinstance(node, list):
            node.insert(0, made)
        case _:
            node[key] = [node[key]]


def _places(node: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Of the first of each list, and not of what is nested to be deep."""
    for key in list(node) if isinstance(node, dict) else range(min(len(node), 20)):
        yield node, key
        if depth < DEPTH_MAX and isinstance(node[key], dict | list):
            yield from _places(node[key], depth + 1)


def _written(draw: strategies.DrawFn, body: Any) -> bytes:
    way = draw(strategies.integers(0, 19)) - 18
    text = _json(body, ascii_alone=way != 0)
    if way == 1 and body:  # a name twice
        name = draw(strategies.sampled_from(list(body)))
        text = f"{text[:-1]},{_json(name)}:{_json(draw(strategies.sampled_from(VALUES))())}}}"
    return text.encode("utf-8", "surrogatepass")


def _json(value: Any, *, ascii_alone: bool = True) -> str:
    """Of any depth; as `json.dumps` but for what is to be written as it is."""
    said: list[str] = []
    todo: list[Any] = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, Raw):
            said.append(node)
        elif isinstance(node, dict):
            todo.append(Raw("}"))
            for at, (name, each) in reversed(list(enumerate(node.items()))):
                todo += [each, Raw(("," if at else "") + json.dumps(name, ensure_ascii=ascii_alone) + ":")]
            said.append("{")
        elif isinstance(node, list):
            todo.append(Raw("]"))
            for at, each in reversed(list(enumerate(node))):
                todo += [each, Raw("," if at else "")]
            said.append("[")
        else:
            said.append(json.dumps(node, ensure_ascii=ascii_alone))
    return "".join(said)


def _broken(draw: strategies.DrawFn, data: bytes) -> bytes:
    """One in ten is no JSON any more, or JSON in other bytes."""
    way = draw(strategies.integers(0, 99)) - 90
    at = draw(strategies.integers(0, max(0, len(data) - 1))) if 0 <= way < 5 else 0
    match way:
        case 0 | 1:
            return data[:at]
        case 2 | 3:
            return data[:at] + bytes([draw(strategies.integers(0, 255))]) + data[at + 1 :]
        case 4:
            return data[:at] + draw(strategies.binary(max_size=8)) + data[at:]
        case 5:
            return b"\xef\xbb\xbf" + data
        case 6:
            return data.decode(errors="replace").encode("utf-16")
        case 7:
            return data.replace(b'"', b"'")
        case 8:
            return data + draw(strategies.sampled_from((b"\0", b"}", b"{}", b" \n", b",", b"x")))
        case 9:
            return draw(
                strategies.sampled_from((b"", b"[]", b"null", b"1", b'""', b"[" * 5000, b'{"a":' * 3000, b"a=b"))
            )
    return data


def _framed(draw: strategies.DrawFn, path: str, data: bytes) -> Sent:
    """One in ten has a head that is unusual, or wrong."""
    way, ends, is_http = draw(strategies.integers(0, 159)) - 144, False, True
    fields, version = [b"host: localhost", b"content-type: application/json", b"connection: close"], b"1.1"
    length: list[bytes] = [b"content-length: %d" % len(data)]
    match way:
        case 0:
            length, data = [b"transfer-encoding: chunked"], _chunks(draw, data) + b"0\r\n\r\n"
        case 1:
            length, data = [b"transfer-encoding: chunked"], _chunks(draw, data) + b"0\r\nx: y\r\n\r\n"
        case 2:
            length, data, ends = [b"transfer-encoding: chunked"], _chunks(draw, data), True
        case 3:
            length, data, ends = [b"transfer-encoding: chunked"], b"zz\r\n" + data, True
        case 4:
            length, ends = [b"content-length: %d" % (len(data) + 10)], True
        case 5 if data:
            length = [b"content-length: %d" % (len(data) - 1)]
        case 6:
            length = [
                b"content-length: "
                + draw(strategies.sampled_from((b"-1", b"x", b"+5", b"9" * 30, b"", b"5 5", b"0x5")))
            ]
        case 7:
            length.append(b"content-length: %d" % (len(data) + 1))
        case 8:
            length.append(b"transfer-encoding: chunked")
        case 9:
            length, ends, is_http = [b"transfer-encoding: gzip, chunked"], True, False
        case 10:
            fields.append(b"content-encoding: " + draw(strategies.sampled_from((b"gzip", b"br", b"identity", b"\xff"))))
        case 11:
            fields[1] = b"content-type: " + draw(
                strategies.sampled_from((b"text/plain", b"multipart/form-data", b"", b"\xff"))
            )
        case 12:
            version = b"1.0"
        case 13:
            version, is_http = draw(strategies.sampled_from((b"2.0", b"1.2", b"0.9", b"x"))), False
        case 14:
            fields.append(
                draw(
                    strategies.sampled_from(
                        (b"x-data-parallel-rank: 1", b"expect: 100-continue", b"expect: x", b"a b: c")
                    )
                )
            )
        case 15:
            fields.append(
                b"x-request-id: " + draw(strategies.sampled_from((b"\xff" * 300, b"a" * 5000, b"\t", b"a\tb")))
            )
    head = b"\r\n".join([b"POST %b HTTP/%b" % (path.encode(), version), *fields, *length, b"", b""])
    return Sent(path, head + data, ends, is_http)


def _chunks(draw: strategies.DrawFn, data: bytes) -> bytes:
    cuts = sorted(draw(strategies.sets(strategies.integers(0, len(data)), max_size=5)))
    parts = [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if begin < end]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
