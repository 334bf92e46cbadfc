"""What a client sends wrong gets a 4xx that names the parameter; no engine sees it and the server goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scripted import CONTEXT, ScriptedBackend, ask, exchange, http_request, says, serving

from disagg.frontend import parameters
from disagg.tokenizer.codec import Codec

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

# path, fields, status, param, code
BAD: list[tuple[str, dict[str, Any], int, str | None, str]] = [
    (CHAT, {"model": ...}, 400, "model", "missing_required_parameter"),
    (CHAT, {"model": 3}, 400, "model", "invalid_type"),
    (CHAT, {"model": "gpt-5"}, 404, "model", "model_not_found"),
    (CHAT, {"messages": ...}, 400, "messages", "missing_required_parameter"),
    (CHAT, {"messages": []}, 400, "messages", "empty_array"),
    (CHAT, {"messages": "Hi"}, 400, "messages", "invalid_type"),
    (CHAT, {"messages": ["Hi"]}, 400, "messages[0]", "invalid_type"),
    (CHAT, {"messages": [{"content": "Hi"}]}, 400, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": 1, "content": "Hi"}]}, 400, "messages[0].role", "invalid_type"),
    (CHAT, {"messages": [{"role": "boss", "content": "Hi"}]}, 400, "messages[0].role", "invalid_value"),
    (CHAT, {"messages": [{"role": "function", "content": "1"}]}, 400, "messages[0].role", "unsupported_parameter"),
    (CHAT, {"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "messages", "invalid_messages"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", "invalid_type"),
    (CHAT, {"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content", "empty_array"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
        400,
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    (CHAT, {"messages": [{"role": "user", "content": "", "x": 1}]}, 400, "messages[0].x", "unknown_parameter"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", "missing_required_parameter"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
        400,
        "messages[0].content[0].x",
        "unknown_parameter",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        400,
        "messages[0].content[0].text",
        "invalid_type",
    ),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        400,
        "messages[0].tool_calls[0].function",
        "missing_required_parameter",
    ),
    (CHAT, {"max_tokens": 0}, 400, "max_tokens", "integer_below_min_value"),
    (CHAT, {"max_tokens": -1}, 400, "max_tokens", "integer_below_min_value"),
    (CHAT, {"max_completion_tokens": 0}, 400, "max_completion_tokens", "integer_below_min_value"),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, 400, "max_tokens", "invalid_value"),
    (CHAT, {"max_tokens": "5"}, 400, "max_tokens", "invalid_type"),
    (CHAT, {"max_tokens": 5.5}, 400, "max_tokens", "invalid_type"),
    (CHAT, {"max_tokens": 1e300}, 400, "max_tokens", "integer_above_max_value"),
    (CHAT, {"max_tokens": True}, 400, "max_tokens", "invalid_type"),
    (CHAT, {"max_tokens": CONTEXT}, 400, "max_tokens", "context_length_exceeded"),
    (CHAT, {"max_completion_tokens": CONTEXT}, 400, "max_completion_tokens", "context_length_exceeded"),
    (CHAT, {"max_tokens": 10**30}, 400, "max_tokens", "integer_above_max_value"),
    (TEXT, {"prompt": "x" * CONTEXT}, 400, "prompt", "context_length_exceeded"),
    (CHAT, {"temperature": -0.1}, 400, "temperature", "decimal_below_min_value"),
    (CHAT, {"temperature": 2.1}, 400, "temperature", "decimal_above_max_value"),
    (CHAT, {"temperature": "hot"}, 400, "temperature", "invalid_type"),
    (CHAT, {"temperature": False}, 400, "temperature", "invalid_type"),
    (CHAT, {"top_p": 0}, 400, "top_p", "decimal_below_min_value"),
    (CHAT, {"top_p": 1.5}, 400, "top_p", "decimal_above_max_value"),
    (CHAT, {"top_k": -2}, 400, "top_k", "integer_below_min_value"),
    (CHAT, {"min_p": 1.1}, 400, "min_p", "decimal_above_max_value"),
    (CHAT, {"presence_penalty": 3}, 400, "presence_penalty", "decimal_above_max_value"),
    (CHAT, {"frequency_penalty": -3}, 400, "frequency_penalty", "decimal_below_min_value"),
    (CHAT, {"repetition_penalty": 0}, 400, "repetition_penalty", "decimal_below_min_value"),
    (CHAT, {"seed": 1.5}, 400, "seed", "invalid_type"),
    (CHAT, {"seed": 2**63}, 400, "seed", "integer_above_max_value"),
    (CHAT, {"ignore_eos": "yes"}, 400, "ignore_eos", "invalid_type"),
    (CHAT, {"stream": 1}, 400, "stream", "invalid_type"),
    (CHAT, {"stop": [None]}, 400, "stop[0]", "invalid_type"),
    (CHAT, {"stop": ["a", 1]}, 400, "stop[1]", "invalid_type"),
    (CHAT, {"stop": {"a": 1}}, 400, "stop", "invalid_type"),
    (CHAT, {"stop": ["a"] * 17}, 400, "stop", "array_above_max_length"),
    (CHAT, {"stop": "a" * 257}, 400, "stop", "string_above_max_length"),
    (CHAT, {"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    (CHAT, {"stream": True, "stream_options": True}, 400, "stream_options", "invalid_type"),
    (CHAT, {"stream": True, "stream_options": {"x": 1}}, 400, "stream_options.x", "unknown_parameter"),
    (
        CHAT,
        {"stream": True, "stream_options": {"include_usage": 1}},
        400,
        "stream_options.include_usage",
        "invalid_type",
    ),
    (CHAT, {"stream_options": {"continuous_usage_stats": True}}, 400, "stream_options", "invalid_value"),
    (
        CHAT,
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        400,
        "stream_options.include_obfuscation",
        "unsupported_parameter",
    ),
    (CHAT, {"add_special_tokens": 1}, 400, "add_special_tokens", "invalid_type"),
    (CHAT, {"chat_template_kwargs": []}, 400, "chat_template_kwargs", "invalid_type"),
    (CHAT, {"chat_template_kwargs": {"messages": []}}, 400, "chat_template_kwargs.messages", "invalid_value"),
    (CHAT, {"reasoning_effort": "huge"}, 400, "reasoning_effort", "invalid_value"),
    (CHAT, {"reasoning_effort": 1}, 400, "reasoning_effort", "invalid_value"),
    (CHAT, {"reasoning_effort": True}, 400, "reasoning_effort", "invalid_type"),
    (CHAT, {"reasoning": {"effort": []}}, 400, "reasoning.effort", "invalid_type"),
    (CHAT, {"reasoning": {"enabled": "yes"}}, 400, "reasoning.enabled", "invalid_type"),
    (CHAT, {"reasoning": {"max_tokens": 5}}, 400, "reasoning.max_tokens", "unsupported_parameter"),
    (CHAT, {"documents": {}}, 400, "documents", "invalid_type"),
    (CHAT, {"documents": ["text"]}, 400, "documents[0]", "invalid_type"),
    (CHAT, {"documents": [{}] * (CONTEXT + 1)}, 400, "documents", "context_length_exceeded"),
    (CHAT, {"documents": [{"text": "never shown"}]}, 400, "documents", "unsupported_parameter"),
    (CHAT, {"continue_final_message": 1}, 400, "continue_final_message", "invalid_type"),
    (CHAT, {"continue_final_message": True}, 400, "continue_final_message", "invalid_value"),
    (
        CHAT,
        {"continue_final_message": True, "add_generation_prompt": True},
        400,
        "continue_final_message",
        "invalid_value",
    ),
    (CHAT, {"truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens", "invalid_value"),
    (CHAT, {"truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens", "integer_below_min_value"),
    (TEXT, {"truncate_prompt_tokens": CONTEXT + 1}, 400, "truncate_prompt_tokens", "integer_above_max_value"),
    (TEXT, {"reasoning_effort": "low"}, 400, "reasoning_effort", "unknown_parameter"),
    (TEXT, {"prompt": ...}, 400, "prompt", "missing_required_parameter"),
    (TEXT, {"prompt": ""}, 400, "prompt", "empty_prompt"),
    (TEXT, {"prompt": []}, 400, "prompt", "empty_array"),
    (TEXT, {"prompt": 5}, 400, "prompt", "invalid_type"),
    (TEXT, {"prompt": [1, "a"]}, 400, "prompt[1]", "invalid_type"),
    (TEXT, {"prompt": ["a", 1]}, 400, "prompt[1]", "invalid_type"),
    (TEXT, {"prompt": ["a", ""]}, 400, "prompt[1]", "empty_prompt"),
    (TEXT, {"prompt": [[1], [2, 259]]}, 400, "prompt[1][1]", "invalid_token_id"),
    (TEXT, {"prompt": ["a"] * 257}, 400, "prompt", "array_above_max_length"),
    (TEXT, {"prompt": ["a"] * 16, "n": 17}, 400, "prompt", "too_many_samples"),
    (TEXT, {"prompt": "a", "n": 0}, 400, "n", "integer_below_min_value"),
    (TEXT, {"prompt": "a", "n": 33}, 400, "n", "integer_above_max_value"),
    (TEXT, {"prompt": "a", "n": 2, "best_of": 1}, 400, "best_of", "invalid_value"),
    (TEXT, {"prompt": "a", "best_of": 2, "stream": True}, 400, "best_of", "invalid_value"),
    (TEXT, {"prompt": "a", "logprobs": 21}, 400, "logprobs", "integer_above_max_value"),
    (TEXT, {"prompt": "a", "logprobs": True}, 400, "logprobs", "invalid_type"),
    (TEXT, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "integer_below_min_value"),
    (CHAT, {"top_logprobs": 2}, 400, "top_logprobs", "invalid_value"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "integer_above_max_value"),
    (CHAT, {"logprobs": 1}, 400, "logprobs", "invalid_type"),
    (CHAT, {"n": True}, 400, "n", "invalid_type"),
    (CHAT, {"tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
    (TEXT, {"prompt": [""]}, 400, "prompt", "empty_prompt"),
    (TEXT, {"prompt": [[]]}, 400, "prompt[0]", "empty_array"),
    (TEXT, {"prompt": [["a"]]}, 400, "prompt[0][0]", "invalid_type"),
    (TEXT, {"prompt": [[1, 259]]}, 400, "prompt[0][1]", "invalid_token_id"),
    (TEXT, {"prompt": [[True]]}, 400, "prompt[0][0]", "invalid_type"),
    (TEXT, {"prompt": [None]}, 400, "prompt[0]", "invalid_type"),
    (TEXT, {"prompt": {"a": 1}}, 400, "prompt", "invalid_type"),
    (TEXT, {"prompt": [1, 2.5]}, 400, "prompt[1]", "invalid_type"),
    (TEXT, {"prompt": [1, 259]}, 400, "prompt[1]", "invalid_token_id"),
    (TEXT, {"prompt": [-1]}, 400, "prompt[0]", "invalid_token_id"),
    (CHAT, {"temprature": 1}, 400, "temprature", "unknown_parameter"),
    (CHAT, {"prompt": "Hi"}, 400, "prompt", "unknown_parameter"),
    (TEXT, {"messages": []}, 400, "messages", "unknown_parameter"),
    *[
        (CHAT, {name: value}, 400, name, "unsupported_parameter")
        for name, value in {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "functions": [{"name": "f"}],
            "audio": {"endpoint": "x"},
            "modalities": ["text", "audio"],
            "store": True,
            "service_tier": "flex",
        }.items()
    ],
    (CHAT, {"priority": False}, 400, "priority", "invalid_type"),
    (CHAT, {"priority": 101}, 400, "priority", "integer_above_max_value"),
    (CHAT, {"prompt_cache_key": 5}, 400, "prompt_cache_key", "invalid_type"),
    *[(TEXT, {name: value}, 400, name, "unsupported_parameter") for name, value in {"suffix": "x"}.items()],
    *[
        (CHAT, {name: value}, 400, name, "forbidden_parameter")
        for name, value in {
            "bootstrap_room": 5,
            "bootstrap_host": "10.0.0.1",
            "bootstrap_port": None,
            "routed_dp_rank": 0,
            "data_parallel_rank": 1,
            "disagg_prefill_dp_rank": 1,
            "rid": "x",
        }.items()
    ],
]


@pytest.mark.parametrize(("path", "fields", "status", "param", "code"), BAD, ids=lambda value: str(value)[:40])
async def test_a_bad_field(
    codec: Codec, path: str, fields: dict[str, Any], status: int, param: str | None, code: str
) -> None:
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, ask(path, **fields))
        error = answer.json["error"]
        assert (answer.status, error["param"], error["code"]) == (status, param, code)
        assert error["type"] == "invalid_request_error"
        assert param is None or param.split("[")[0] in error["message"]
        assert len(answer.headers["x-request-id"]) == 32
        assert backend.requests == []
        assert (await exchange(frontend.port, ask())).status == 200  # it goes on


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{'model': 1}", "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"a": "\xff"}', "invalid_json"),
        (b'{"a": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b"5", "invalid_type"),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_bad_body(codec: Codec, path: str, body: bytes, code: str) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("POST", path, body))
        assert (answer.status, answer.json["error"]["code"]) == (400, code)


@pytest.mark.parametrize("header", ["X-Data-Parallel-Rank: 1", "x-bootstrap-room: 7"])
async def test_a_rank_in_a_header(codec: Codec, header: str) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("POST", CHAT, b"{}", [header]))
        assert (answer.status, answer.json["error"]["code"]) == (400, "forbidden_parameter")


async def test_what_the_engines_cannot_hold_is_refused_below_the_context(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"), request_tokens_max=100)
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, ask(TEXT, prompt="x" * 60, max_tokens=41))
        assert (answer.status, answer.json["error"]["code"]) == (400, "context_length_exceeded")
        assert "engines" in answer.json["error"]["message"]
        assert (await exchange(frontend.port, ask(TEXT, prompt="x" * 95))).status == 200
        assert backend.requests[0].max_tokens == 5  # absent: up to what fits


async def test_a_body_over_the_limit_is_refused_before_it_is_read(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec, body_limit_bytes=1000) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ncontent-length: 1001\r\nexpect: 100-continue\r\n\r\n"
        )
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert head.startswith(b"HTTP/1.1 413 ")
        writer.close()

        answer = await exchange(frontend.port, http_request("POST", CHAT, b"x" * 3000))
        assert (answer.status, answer.json["error"]["code"]) == (413, "request_too_large")
        assert answer.headers["connection"] == "close"

        chunked = b"POST /v1/completions HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n"
        chunked += b"200\r\n" + b"x" * 0x200 + b"\r\n200\r\n" + b"x" * 0x200 + b"\r\n0\r\n\r\n"
        assert (await exchange(frontend.port, chunked)).status == 413


async def test_values_that_ask_for_nothing_pass(codec: Codec) -> None:
    neutral: dict[str, Any] = {
        "n": 1,
        "tools": [],
        "tool_choice": "auto",
        "logprobs": False,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "temperature": None,
        "stop": None,
        "max_tokens": None,
        "functions": None,
    }
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        assert (await exchange(frontend.port, ask(**neutral))).status == 200
        said: dict[str, Any] = {
            "role": "assistant",
            "content": "x",
            "refusal": None,
            "tool_calls": None,
            "annotations": [],
        }
        again = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, said]
        assert (await exchange(frontend.port, ask(messages=again))).status == 200


async def test_sampling_speaks_sglangs_words(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"))
    given = {"temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "frequency_penalty": 1, "presence_penalty": -1}
    given |= {"repetition_penalty": 1.1, "seed": 3, "ignore_eos": True}
    async with serving(backend, codec) as frontend:
        await exchange(frontend.port, ask(**given, max_tokens=9, stop="###"))
        await exchange(frontend.port, ask())
    first, second = backend.requests
    given["sampling_seed"] = given.pop("seed")
    assert (first.sampling, first.max_tokens) == (given, 9)
    assert second.sampling == {"temperature": 0.6, "top_k": -1}  # what the model's makers advise
    assert second.max_tokens == CONTEXT - len(second.prompt_ids)


async def test_paths_nobody_serves(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("GET", "/v2/models"))
        assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_url")
        answer = await exchange(frontend.port, http_request("GET", CHAT))
        assert (answer.status, answer.headers["allow"]) == (405, "post, options")


IGNORED = {"seed": "say sampling_backend: pytorch in the engine's arguments", "min_p": "say top_p"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seed": 0, "temperature": 1}, "seed"),
        ({"seed": -1}, "seed"),
        ({"min_p": 0.1, "temperature": 0.5}, "min_p"),
        ({"seed": None, "min_p": 0}, None),
        ({"seed": 7, "temperature": 0}, None),  # nothing is left to chance
        ({"seed": 7, "min_p": 0.5, "temperature": 1, "top_k": 1}, None),
        ({"temperature": 1, "top_p": 0.5}, None),
    ],
)
async def test_what_the_engines_would_ignore_is_refused_by_name(
    codec: Codec, fields: dict[str, Any], param: str | None
) -> None:
    backend = ScriptedBackend(says("x"), ignored=IGNORED)
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, ask(TEXT, prompt="x", max_tokens=1, **fields))
        if param is None:
            assert answer.status == 200
            return
        error = answer.json["error"]
        assert (answer.status, error["param"], error["code"]) == (400, param, "ignored_parameter")
        assert IGNORED[param] in error["message"]
        assert backend.requests == []


@pytest.mark.parametrize("honoured", [parameters.CHAT, parameters.COMPLETION])
def test_no_parameter_that_is_honoured_is_one_that_clients_may_not_send(honoured: frozenset[str]) -> None:
    """Those are looked for first, and not held against what is forbidden."""
    assert not honoured & parameters.FORBIDDEN
    forbidden = parameters.FORBIDDEN_PREFIXES, parameters.FORBIDDEN_SUFFIXES
    assert not any(name.startswith(forbidden[0]) or name.endswith(forbidden[1]) for name in honoured)
