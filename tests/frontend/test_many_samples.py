"""n, best_of, several prompts, echo and logprobs: one answer of many requests, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from disagg.errors import LegLost
from disagg.plane.messages import TokenLogprobs
from disagg.tokenizer.codec import Codec
from tests.frontend.scripted import MODEL, Running, ScriptedBackend, ask, exchange, http_request, serving

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


async def says_its_number(running: Running) -> None:
    """Two tokens and an end; the later a request came, the sooner it ends."""
    number = int(running.request.id[4:], 16)
    for piece in range(2):
        await asyncio.sleep(0.002 * (4 - number))
        await running.say(f"{number}{'ab'[piece]}", [number], None)
    await running.say("", [], "length")


async def says_with_logprobs(running: Running) -> None:
    request = running.request
    number = int(request.id[4:], 16)
    if "logprob_start_len" in request.asks:
        request.prompt_logprobs = [
            TokenLogprobs(each, -1.0 if at else None) for at, each in enumerate(request.prompt_ids)
        ]
    for token_id in (65, 66):
        if "return_logprob" in request.asks:
            top = [(token_id + at, -0.5 - at) for at in range(request.asks["top_logprobs_num"])]
            request.logprobs.append(TokenLogprobs(token_id, -0.5 * (number + 1), top))
        await running.say(chr(token_id), [token_id])
    await running.say("", [], "length")


async def test_each_prompt_is_answered_n_times_in_order(codec: Codec) -> None:
    backend = ScriptedBackend(says_its_number)
    async with serving(backend, codec) as frontend:
        answer = (await exchange(frontend.port, ask(TEXT, prompt=["ab", "abc"], n=2))).json
    assert [(each["index"], each["text"], each["finish_reason"]) for each in answer["choices"]] == [
        (0, "0a0b", "length"),
        (1, "1a1b", "length"),
        (2, "2a2b", "length"),
        (3, "3a3b", "length"),
    ]
    assert answer["usage"]["prompt_tokens"] == 2 + 3  # each prompt once
    assert answer["usage"]["completion_tokens"] == 4 * 2
    assert answer["id"] == "cmpl-" + backend.requests[0].id
    assert len({request.id for request in backend.requests}) == 4


async def test_a_completion_that_does_not_say_how_long_has_16_tokens_and_a_chat_the_context(codec: Codec) -> None:
    backend = ScriptedBackend(says_its_number)
    almost_all = [65] * (codec.context_length - 3)
    async with serving(backend, codec) as frontend:
        for request in (ask(TEXT, prompt="ab"), ask(TEXT, prompt=almost_all), ask(CHAT)):
            await exchange(frontend.port, request)
    text, at_the_end, chat = backend.requests
    assert (text.max_tokens, at_the_end.max_tokens) == (16, 3)
    assert chat.max_tokens == codec.context_length - len(chat.prompt_ids)


async def test_choices_of_a_stream_interleave_and_each_ends_once(codec: Codec) -> None:
    backend = ScriptedBackend(says_its_number)
    async with serving(backend, codec) as frontend:
        request = ask(CHAT, n=3, stream=True, stream_options={"include_usage": True})
        events = (await exchange(frontend.port, request)).events
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    texts, ends, roles = ["", "", ""], [0, 0, 0], [0, 0, 0]
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        roles[choice["index"]] += "role" in choice["delta"]
        ends[choice["index"]] += choice["finish_reason"] is not None
    assert (texts, ends, roles) == (["0a0b", "1a1b", "2a2b"], [1, 1, 1], [1, 1, 1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    order = [chunk["choices"][0]["index"] for chunk in chunks[:-1] if chunk["choices"][0]["delta"].get("content")]
    assert order != sorted(order)


async def test_the_first_error_ends_all_samples(codec: Codec) -> None:
    async def script(running: Running) -> None:
        if running.request.id.endswith("2"):
            await asyncio.sleep(0.01)
            raise LegLost("request", "gone", "try again")
        await asyncio.sleep(60)

    backend = ScriptedBackend(script)
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, ask(CHAT, n=4))
    assert (answer.status, answer.json["error"]["code"]) == (502, "leg_lost")
    assert backend.closed == ["cancelled"] * 4


async def test_a_seed_counts_on_so_that_samples_differ(codec: Codec) -> None:
    backend = ScriptedBackend(says_its_number)
    async with serving(backend, codec) as frontend:
        await exchange(frontend.port, ask(CHAT, n=3, seed=7))
    assert [request.sampling["sampling_seed"] for request in backend.requests] == [7, 8, 9]


async def test_samples_of_a_long_prompt_wait_until_the_first_has_read_it(codec: Codec) -> None:
    begun: list[int] = []

    async def script(running: Running) -> None:
        begun.append(len(begun))
        await asyncio.sleep(0.01)
        assert len(backend.requests) in (1, 3), "the others came before the first token, or not together"
        await running.say("x", [1])
        await asyncio.sleep(0.01)
        await running.say("", [], "stop")

    backend = ScriptedBackend(script)
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, ask(TEXT, prompt="a" * 300, n=3))
    assert (answer.status, len(answer.json["choices"])) == (200, 3)


async def test_logprobs_of_a_chat(codec: Codec) -> None:
    backend = ScriptedBackend(says_with_logprobs)
    async with serving(backend, codec) as frontend:
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{frontend.port}/v1", api_key="none")
        asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "logprobs": True}
        answer = await client.chat.completions.create(**asked, top_logprobs=2)
        stream = await client.chat.completions.create(**asked, top_logprobs=2, stream=True)
        streamed = [each async for chunk in stream for each in (chunk.choices[0].logprobs or _NONE).content or []]
        await client.close()
    assert answer.choices[0].logprobs is not None
    whole = answer.choices[0].logprobs.content
    assert whole is not None
    assert [(each.token, each.logprob, len(each.top_logprobs)) for each in whole] == [
        (codec.texts.token_text(65)[0], -0.5, 2),
        (codec.texts.token_text(66)[0], -0.5, 2),
    ]
    assert [(each.token, each.bytes) for each in streamed] == [(each.token, each.bytes) for each in whole]


class _NONE:
    content: list[Any] = []  # noqa: RUF012


async def test_echo_gives_the_prompt_and_its_logprobs(codec: Codec) -> None:
    backend = ScriptedBackend(says_with_logprobs)
    async with serving(backend, codec) as frontend:
        asked: dict[str, Any] = {"prompt": "xyz", "echo": True, "logprobs": 1}
        whole = (await exchange(frontend.port, ask(TEXT, **asked))).json["choices"][0]
        alone = (await exchange(frontend.port, ask(TEXT, **asked, max_tokens=0))).json
        events = (await exchange(frontend.port, ask(TEXT, **asked, stream=True))).events
    assert whole["text"] == "xyzAB"
    assert whole["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, -0.5, -0.5]
    assert whole["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert alone["choices"][0]["text"] == "xyz"
    assert alone["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
    assert alone["usage"]["completion_tokens"] == 0
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert "".join(choice["text"] for choice in choices) == "xyzAB"
    numbers = [number for choice in choices for number in (choice["logprobs"] or {}).get("token_logprobs", [])]
    assert numbers == [None, -1.0, -1.0, -1.5, -1.5]  # the third request


async def test_best_of_returns_the_likeliest(codec: Codec) -> None:
    backend = ScriptedBackend(says_with_logprobs)
    async with serving(backend, codec) as frontend:
        answer = (await exchange(frontend.port, ask(TEXT, prompt="a", n=1, best_of=3))).json
    assert len(backend.requests) == 3
    assert [(each["index"], each["logprobs"]) for each in answer["choices"]] == [(0, None)]
    assert answer["usage"]["completion_tokens"] == 6  # all that were made


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_what_all_samples_may_say_is_bounded(codec: Codec, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.frontend.samples.OUTPUT_TOKENS_MAX", 100)
    backend = ScriptedBackend(says_its_number)
    async with serving(backend, codec) as frontend:
        refused = await exchange(frontend.port, ask(path, n=4, max_tokens=26))
        taken = await exchange(frontend.port, ask(path, n=4, max_tokens=25))
    assert (refused.status, refused.json["error"]["code"], taken.status) == (400, "too_many_tokens", 200)
    assert len(backend.requests) == 4


async def test_a_cancel_by_id_ends_all_samples_also_when_the_first_has_ended(codec: Codec) -> None:
    started = asyncio.Event()

    async def script(running: Running) -> None:
        if running.request.id != backend.requests[0].id:
            started.set()
            await asyncio.sleep(60)
        await running.say("x", [1], "stop")

    class Cancels(ScriptedBackend):
        def cancel(self, request_id: str) -> bool:
            cancelled.append(request_id)
            return request_id != self.requests[0].id  # which has ended

    cancelled: list[str] = []
    backend = Cancels(script)
    async with serving(backend, codec) as frontend:
        asking = asyncio.create_task(exchange(frontend.port, ask(CHAT, n=3)))
        await started.wait()
        first = backend.requests[0].id
        answer = await exchange(frontend.port, http_request("DELETE", f"/v1/requests/chatcmpl-{first}"))
        asking.cancel()
    assert (answer.status, answer.json["cancelled"]) == (200, True)
    assert cancelled == [request.id for request in backend.requests]
