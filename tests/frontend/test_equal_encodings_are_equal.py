"""What a client means counts, not how its library writes it: null for absent, 16.0 for 16, a list for its one item."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import ScriptedBackend, ask, exchange, says, serving

from disagg.coordinator.request import Request
from disagg.frontend.parameters import same
from disagg.tokenizer.codec import Codec

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def saying(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


def text(*texts: str, **more: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": each, **more} for each in texts]


# path, a plain request's fields, and others that mean the same
EQUAL: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    (TEXT, {"prompt": "Hi"}, [{"prompt": ["Hi"]}, {"prompt": [39, 72]}, {"prompt": [[39, 72]]}]),
    (TEXT, {"prompt": [1, 2, 3]}, [{"prompt": [[1, 2, 3]]}, {"prompt": [1.0, 2.0, 3]}, {"prompt": [[1, 2.0, 3]]}]),
    (CHAT, {"max_tokens": 16}, [{"max_tokens": 16.0}, {"max_completion_tokens": 16}, {"max_completion_tokens": 16.0}]),
    (CHAT, {"seed": 5, "top_k": 3}, [{"seed": 5.0, "top_k": 3.0}]),
    (CHAT, {"temperature": 1, "top_p": 1}, [{"temperature": 1.0, "top_p": 1.0}]),
    (CHAT, {"stop": "a"}, [{"stop": ["a"]}, {"stop": ["a", ""]}]),
    (
        CHAT,
        saying("a b"),
        [saying(text("a b")), saying(text("a", "b")), saying(text("a b", cache_control=None), name=None, x=None)],
    ),
    (CHAT, saying(""), [saying(text(""))]),
    (CHAT, {"chat_template_kwargs": {}}, [{"chat_template_kwargs": None}, {"add_special_tokens": False}]),
    (TEXT, {}, [{"add_special_tokens": True}, {"add_special_tokens": None}]),
    *[
        (
            path,
            {},
            [
                {name: value}
                for name, values in {
                    "stop": [None, "", [], [""]],
                    "n": [None, 1, 1.0],
                    "best_of": [1, 1.0],
                    "stream": [None, False],
                    "stream_options": [None, {}, {"include_usage": False}, {"include_usage": None, "x": None}],
                    "response_format": [None, {"type": "text"}, {"type": "text", "json_schema": None}],
                    "logit_bias": [None, {}],
                    "logprobs": [None, False],
                    "tools": [None, []],
                    "tool_choice": [None, "none", "auto"],
                    "parallel_tool_calls": [None, True, False],
                    "modalities": [None, ["text"]],
                    "min_tokens": [None, 0, 0.0],
                    "length_penalty": [None, 1, 1.0],
                    "user": [None, "me"],
                    "metadata": [None, {}, {"a": None}],
                    "max_tokens": [None],
                    "return_token_ids": [None, False],
                    "ignore_eos": [None, False],
                    "not_a_parameter": [None],
                }.items()
                for value in values
            ],
        )
        for path in (CHAT, TEXT)
    ],
]


@pytest.mark.parametrize(("path", "plain", "others"), EQUAL, ids=lambda value: str(value)[:40])
async def test_engines_are_asked_the_same(
    codec: Codec, path: str, plain: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        for fields in (plain, *others):
            answer = await exchange(frontend.port, ask(path, **fields))
            assert answer.status == 200, (fields, answer.body)
    first, *rest = map(what_engines_are_asked, backend.requests)
    for fields, each in zip(others, rest, strict=True):
        assert each == first, fields


def what_engines_are_asked(request: Request) -> tuple[Any, ...]:
    stops = [text for text in ("a", "b") if _stops_at(request, text)]
    return request.prompt_ids, request.sampling, request.max_tokens, request.end_ids, stops


def _stops_at(request: Request, text: str) -> bool:
    request.text.push([ord(text) - ord("!")])  # the byte tokenizer's ids begin with "!"
    stopped, request.text.stopped = request.text.stopped, False
    return stopped


@pytest.mark.parametrize(
    ("neutral", "other"),
    [
        *[(1, True), (0, False), (False, 0), (True, 1), (1, "1"), (1, 2.0), ("", None), ("auto", "none")],
        *[([], {}), ({}, []), ([], [None]), (["text"], ["text", "text"]), (["text"], [None]), ({}, {"5": 1})],
        *[({"type": "text"}, other) for other in ({}, {"type": None}, {"type": "text", "strict": False})],
    ],
)
def test_what_is_not_the_same(neutral: Any, other: Any) -> None:
    assert not same(neutral, other)


async def test_deep_nesting_in_a_field_is_refused_by_name(codec: Codec) -> None:
    deep: Any = None
    for _ in range(400):
        deep = {"type": deep}
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, ask(CHAT, response_format=deep))
        assert (answer.status, answer.json["error"]["param"]) == (400, "response_format.type")


async def test_special_tokens_are_put_around_only_where_asked(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def encode(_encoder: object, _text: str, *, special_tokens: bool) -> list[int]:
        seen.append(special_tokens)
        return [1]

    monkeypatch.setattr("disagg.tokenizer.encoder.Encoder.encode", encode)
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        for path in (CHAT, TEXT):
            for fields in ({}, {"add_special_tokens": True}, {"add_special_tokens": False}):
                assert (await exchange(frontend.port, ask(path, **fields))).status == 200
    assert seen == [False, True, False, True, True, False]
