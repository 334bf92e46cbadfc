"""The `openai` package, as anybody would use it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest
from scripted import MODEL, ScriptedBackend, fails, hangs, says, serving

from disagg.errors import Overloaded
from disagg.tokenizer.codec import Codec


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(says("Hel", "lo", "", "!", reason="length"))


@pytest.fixture
async def client(codec: Codec, backend: ScriptedBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(backend, codec) as frontend:
        url = f"http://127.0.0.1:{frontend.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            yield client


async def test_chat(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], extra_headers={"x-request-id": "mine" * 100}
    )
    answer = raw.parse()
    request = backend.requests[0]
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello!", "length")
    assert answer.id == "chatcmpl-" + request.id
    assert raw.headers["x-request-id"] == request.id
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(request.prompt_ids), 4)
    assert request.facts.client_request_id == "mine" * 32  # bounded


async def test_chat_streamed_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:4]] == ["Hel", "lo", "!"]
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_completions(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    answer = await client.completions.create(model=MODEL, prompt="Hi", max_tokens=4)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello!", "length")
    await client.completions.create(model=MODEL, prompt=[5, 6, 7])
    assert list(backend.requests[1].prompt_ids) == [5, 6, 7]


async def test_completions_streamed(client: openai.AsyncOpenAI) -> None:
    stream = await client.completions.create(model=MODEL, prompt="Hi", stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    assert "".join(choice.text for choice in choices) == "Hello!"
    assert choices[-1].finish_reason == "length"


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve(MODEL)).owned_by == "disagg"
    with pytest.raises(openai.NotFoundError, match="no model"):
        await client.models.retrieve("other")


async def test_errors_become_the_clients_exceptions(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model=MODEL, prompt="Hi", suffix="x")
    assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_parameter")
    assert caught.value.request_id is not None

    backend.script = fails(Overloaded("frontend", "the queue is full", "try again"))
    with pytest.raises(openai.RateLimitError) as refused:
        await client.completions.create(model=MODEL, prompt="Hi", stream=True)
    assert refused.value.response.headers["retry-after"] == "1"
    assert "frontend" not in refused.value.message  # `where` is for our logs


async def test_closing_the_stream_ends_the_request(client: openai.AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.script = hangs("one")
    stream = await client.completions.create(model=MODEL, prompt="Hi", stream=True)
    await anext(stream)
    await stream.close()
    await backend.ended.wait()
    assert backend.closed == ["cancelled"]
