"""/tokenize says the ids that a generation would begin with, /detokenize the text of ids; both within bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import CONTEXT, MODEL, Answer, ScriptedBackend, ask, exchange, http_request, says, serving

from disagg.frontend import tokenizing
from disagg.tokenizer.codec import Codec, load_codec
from disagg.tokenizer.overrides import Overrides
from disagg.tokenizer.short_bodies import SHORT_BYTES

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
OTHER = {"type": "function", "function": {"name": "other", "parameters": {}}}
HI = [{"role": "user", "content": "Hi"}]
KNOWS_TOOLS = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ messages[0].content }}{{ x }}"


async def posted(codec: Codec, path: str, body: dict[str, Any], limit_s: float = 10) -> Answer:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        return await exchange(frontend.port, http_request("POST", path, json.dumps(body).encode()), limit_s)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
async def test_a_text_and_texts(codec: Codec, path: str) -> None:
    ids = codec.text_ids("Hi")
    one = await posted(codec, path, {"model": MODEL, "prompt": "Hi"})
    assert (one.status, one.json) == (200, {"tokens": ids, "count": len(ids), "max_model_len": CONTEXT})
    two = (await posted(codec, path, {"prompt": ["Hi", ""], "return_token_strs": True})).json
    assert (two["tokens"], two["count"], two["token_strs"]) == ([ids, []], [2, 0], [["H", "i"], []])


async def test_a_chat_has_the_ids_that_its_answer_would_begin_with(codec: Codec) -> None:
    body = json.loads(ask(temperature=0.5, max_tokens=5, stream=True).partition(b"\r\n\r\n")[2])
    said = (await posted(codec, "/tokenize", body)).json
    assert said["tokens"] == codec.chat_ids(HI, {})
    assert said["count"] == len(said["tokens"])
    shorter = (await posted(codec, "/tokenize", {"messages": HI, "add_generation_prompt": False})).json
    assert shorter["tokens"] == codec.chat_ids(HI, {}, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"tools": [TOOL]}, "get_weather;Hi"),
        ({"tools": [TOOL], "tool_choice": "none"}, "Hi"),
        ({"tools": [OTHER, TOOL]}, "other;get_weather;Hi"),
        (
            {"tools": [OTHER, TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
            "get_weather;Hi",
        ),
        ({"chat_template_kwargs": {"x": "!"}}, "Hi!"),
    ],
)
async def test_tools_and_variables_reach_its_template(codec: Codec, more: dict[str, Any], text: str) -> None:
    other = load_codec(codec.folder, Overrides(chat_template=KNOWS_TOOLS))
    said = (await posted(other, "/tokenize", {"messages": HI, **more})).json
    assert codec.text_of(said["tokens"], skip_special_tokens=False) == text


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_ids_become_the_text_they_came_from(codec: Codec, path: str) -> None:
    ids = codec.text_ids("<|im_start|>H\u00ef")
    without = await posted(codec, path, {"model": MODEL, "tokens": ids})
    assert (without.status, without.json) == (200, {"text": "H\u00ef", "prompt": "H\u00ef"})
    whole = await posted(codec, path, {"tokens": [ids, []], "skip_special_tokens": False})
    assert whole.json["text"] == ["<|im_start|>H\u00ef", ""]
    assert (await posted(codec, path, {"tokens": []})).json["text"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "invalid_value"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "prompt", "invalid_value"),
        ("/tokenize", {"prompt": 5}, "prompt", "invalid_type"),
        ("/tokenize", {"prompt": ["a", 5]}, "prompt[1]", "invalid_type"),
        ("/tokenize", {"prompt": ["a"] * 1025}, "prompt", "array_above_max_length"),
        ("/tokenize", {"prompt": "a", "x": 1}, "x", "unknown_parameter"),
        ("/tokenize", {"prompt": "a", "return_token_strs": 1}, "return_token_strs", "invalid_type"),
        ("/tokenize", {"messages": HI, "tools": [5]}, "tools[0]", "invalid_type"),
        ("/tokenize", {"messages": HI, "tools": [TOOL]}, "tools", "unsupported_parameter"),  # its template has none
        ("/tokenize", {"messages": HI, "bootstrap_room": 1}, "bootstrap_room", "forbidden_parameter"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": "a"}, "tokens", "invalid_type"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens[1]", "invalid_type"),
        ("/detokenize", {"tokens": [1, [2]]}, "tokens[1]", "invalid_type"),
        ("/detokenize", {"tokens": [[1], 2]}, "tokens[1]", "invalid_type"),
        ("/detokenize", {"tokens": [[1], [259]]}, "tokens[1][0]", "invalid_token_id"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", "invalid_token_id"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]", "invalid_type"),
        ("/detokenize", {"tokens": [[1]] * 1025}, "tokens", "array_above_max_length"),
        ("/detokenize", {"tokens": [1], "skip_special_tokens": "no"}, "skip_special_tokens", "invalid_type"),
    ],
)
async def test_what_is_wrong_is_named(codec: Codec, path: str, body: dict[str, Any], param: str, code: str) -> None:
    answer = await posted(codec, path, body)
    assert (answer.status, answer.json["error"]["param"], answer.json["error"]["code"]) == (400, param, code)


async def test_another_model_is_not_here(codec: Codec) -> None:
    for path, said in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert (await posted(codec, path, {"model": "other", **said})).status == 404


async def test_more_tokens_than_are_answered_at_once(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "TOKENS_MAX", 5)
    ids = [1] * (CONTEXT + 1)
    for path, body in (("/tokenize", {"prompt": "x" * len(ids)}), ("/detokenize", {"tokens": [ids[1:], [1]]})):
        answer = await posted(codec, path, body)
        assert (answer.status, answer.json["error"]["code"]) == (400, "too_many_tokens")


async def test_long_ones_are_read_by_another_process(codec: Codec) -> None:
    text = "x" * (SHORT_BYTES + 1)
    said = (await posted(codec, "/tokenize", {"prompt": text}, 60)).json
    assert said["count"] == len(text)
    back = (await posted(codec, "/detokenize", {"tokens": said["tokens"]}, 60)).json
    assert back["text"] == text


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"truncate_prompt_tokens": 3}, 3),
        ({"truncate_prompt_tokens": -1, "max_tokens": 12}, CONTEXT - 12),
        ({"truncate_prompt_tokens": -1}, CONTEXT - 1),
        ({"truncate_prompt_tokens": None}, 0),
    ],
)
@pytest.mark.parametrize("as_ids", [False, True])
async def test_the_end_of_a_long_prompt_is_kept(codec: Codec, more: dict[str, Any], kept: int, as_ids: bool) -> None:
    text = "abc" * CONTEXT
    prompt = codec.text_ids(text) if as_ids else text
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, ask("/v1/completions", prompt=prompt, **more))
    assert answer.status == (200 if kept else 400)
    assert [list(each.prompt_ids) for each in backend.requests] == ([codec.text_ids(text)[-kept:]] if kept else [])


@pytest.mark.parametrize("more", [{"truncate_prompt_tokens": 3}, {"truncate_prompt_tokens": -1, "max_tokens": 12}])
async def test_tokenised_are_the_ids_that_a_generation_would_keep(codec: Codec, more: dict[str, Any]) -> None:
    text = "abc" * CONTEXT
    kept = more["truncate_prompt_tokens"] if more["truncate_prompt_tokens"] > 0 else CONTEXT - 12
    said = (await posted(codec, "/tokenize", {"prompt": text, **more})).json
    assert (said["tokens"], said["count"]) == (codec.text_ids(text)[-kept:], kept)
    many = (await posted(codec, "/tokenize", {"prompt": [text, "ab"], **more})).json
    assert many["count"] == [kept, 2]


async def test_a_chat_beyond_the_context_is_counted(codec: Codec) -> None:
    """Clients count to find out whether it fits."""
    one = {"role": "user", "content": "x" * CONTEXT}
    long = (await posted(codec, "/v1/messages/count_tokens", {"model": MODEL, "messages": [one]})).json
    assert long["input_tokens"] > CONTEXT
    many = [{"role": "user", "content": "x"}] * (CONTEXT + 1)
    assert (await posted(codec, "/v1/messages/count_tokens", {"model": MODEL, "messages": many})).status == 200
    refused = await posted(codec, "/v1/messages", {"model": MODEL, "messages": [one], "max_tokens": 1})
    assert (refused.status, refused.json["type"]) == (400, "error")
