"""`model.tokenization: engine` gives the bytes that `frontend` gives, at every endpoint."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from before_engines import SCORER
from scripted import CONTEXT, MODEL, until
from speaking_engine import say
from two_frontends import Scene, scene

from disagg.frontend.endpoints import ENDPOINTS
from disagg.roles import Role

CHAT, TEXT, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
CUT = "é€🎾👩‍👩‍👧‍👦".encode()  # one byte a token: half characters on the way
BROKEN = b"a\xf0\x9f\x8eb\xe2\x82"  # bytes that form no character, the last of them unfinished
CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "ü"}}\n</tool_call>'
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
RAISES = [{"role": "assistant", "content": "first"}]  # the template refuses it


def chat(text: str | bytes, **more: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": [{"role": "user", "content": say(text)}]} | more


def complete(text: str | bytes, **more: Any) -> tuple[str, dict[str, Any]]:
    return TEXT, {"prompt": say(text), "max_tokens": 60} | more


def generate(text: str | bytes, sampling: dict[str, Any] | None = None, **more: Any) -> tuple[str, dict[str, Any]]:
    return GENERATE, {"text": say(text), "sampling_params": {"max_new_tokens": 60} | (sampling or {})} | more


ASKED: dict[str, tuple[str, Any]] = {
    "chat": chat("Hello!"),
    "chat of half characters": chat(CUT),
    "chat, its last character unfinished": chat(BROKEN),
    "chat, cut in a character": chat(CUT, max_tokens=4),
    "chat with a stop string": chat(b"one two " + CUT + b" three", stop=["🎾", "zzz"]),
    "chat that shows its stop string": chat("one two three", stop=["two"], include_stop_str_in_output=True),
    "chat that ends in a begun stop string": chat("one tw", stop=["two"]),
    "chat with a stop token": chat("one two", stop_token_ids=[50]),
    "chat that shows special tokens": (CHAT, {"messages": [{"role": "user", "content": "<say 61S062S2>"}]}
        | {"skip_special_tokens": False, "no_stop_trim": True}),
    "chat that hides special tokens": (CHAT, {"messages": [{"role": "user", "content": "<say 61S062S2>"}]}),
    "chat with logprobs": chat(CUT, logprobs=True, top_logprobs=3),
    "chat of two": chat("Hello!", n=2),
    "chat with token ids": chat("Hello!", return_token_ids=True),
    "chat that goes on": (CHAT, {"messages": [{"role": "user", "content": say("ab")}, {"role": "assistant",
        "content": "I"}], "continue_final_message": True}),
    "chat with tools": chat("I look. " + CALL, tools=[LOOK]),
    "chat that reasons": chat("<think>\nlet me see</think>\n\nIt is ü."),
    "text": complete("Hello!"),
    "text of half characters": complete(BROKEN),
    "text, echoed": complete("Hello!", echo=True),
    "text, echoed with logprobs": complete("Hello!", echo=True, logprobs=2),
    "text, its prompt alone": complete("Hello!", echo=True, logprobs=2, max_tokens=0),
    "text of ids": (TEXT, {"prompt": [33, 34, 35], "max_tokens": 3}),
    "text of three prompts": (TEXT, {"prompt": [say("a"), say("é"), say("")], "max_tokens": 9, "logprobs": 1}),
    "text, the best of three": complete("Hello!", best_of=3),
    "text without a limit": (TEXT, {"prompt": say("Hello!"), "ignore_eos": True}),
    "text of a long body": complete("Hello!", metadata={"a": "b" * 40_000}),
    "responses": ("/v1/responses", {"input": say("Hello! " + CALL), "tools": [
        {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}]}),
    "messages": ("/v1/messages", {"max_tokens": 50, "stop_sequences": ["!"],
        "messages": [{"role": "user", "content": say("Hello! You")}]}),
    "generate": generate("Hello!"),
    "generate with logprobs": generate(CUT, return_logprob=True, top_logprobs_num=2, return_text_in_logprobs=True,
        logprob_start_len=0),
    "generate with chosen ids": generate("Hello!", return_logprob=True, token_ids_logprob=[7, 200, 257],
        return_text_in_logprobs=True),
    "chat with logprobs of its prompt": chat("Hello!", prompt_logprobs=2),
    "text with logprobs of its prompt": complete("Hello!", prompt_logprobs=1, logprobs=3),
    "scores by tokens": ("/v1/score", {"query": say("a"), "items": ["b", "ü"], "label_token_ids": [40, 41]}),
    "tokens of a text that is cut": ("/tokenize", {"prompt": "one two", "truncate_prompt_tokens": 3}),
    "generate, a batch": (GENERATE, {"text": [say("a"), say("b")], "sampling_params": {"max_new_tokens": 9}}),
    "generate with a stop": generate("one two", {"stop": ["tw"]}),
    "tokens of a text": ("/tokenize", {"prompt": "Grüße <|im_end|>", "return_token_strs": True}),
    "tokens of texts": ("/v1/tokenize", {"prompt": ["a", "b"], "add_special_tokens": False}),
    "tokens of a chat": ("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}),
    "text of tokens": ("/detokenize", {"tokens": [[33, 200], [257, 33]], "skip_special_tokens": False}),
    "count": ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "Hi"}]}),
    "a template that raises": (CHAT, {"messages": RAISES}),
    "a template that raises, for messages": ("/v1/messages", {"max_tokens": 5, "messages": RAISES}),
    "no JSON": (CHAT, b"{"),
    "another model": chat("Hello!", model="other"),
    "a value that is wrong": chat("Hello!", temperature="hot"),
    "a field that nobody knows": chat("Hello!", nonsense=1),
    "too long a prompt": (TEXT, {"prompt": "x" * CONTEXT}),
    "too long an answer": chat("Hello!", max_tokens=CONTEXT),
    "an empty prompt": (TEXT, {"prompt": ""}),
    "a token that is none": ("/detokenize", {"tokens": [100_000]}),
}  # fmt: skip
REFUSED = list(ASKED)[list(ASKED).index("a template that raises") :]
STREAMED = [name for name, (path, body) in ASKED.items()
    if path in (CHAT, TEXT, GENERATE, "/v1/responses", "/v1/messages") and isinstance(body, dict)
    and not body.get("best_of")]  # fmt: skip
EMBEDDED: dict[str, tuple[str, dict[str, Any]]] = {
    "vectors": ("/v1/embeddings", {"input": ["Grüße", "b"]}),
    "a vector of ids": ("/v1/embeddings", {"input": [1, 2, 3], "encoding_format": "base64"}),
    "classes": ("/v1/classify", {"input": ["a", "b"]}),
    "ranks": ("/v1/rerank", {"query": "a", "documents": ["b", "c"], "return_documents": True}),
    "scores": ("/v1/score", {"query": "a", "items": ["b", "c"], "label_token_ids": []}),
    "an empty text": ("/v1/embeddings", {"input": ""}),
    "too long a text": ("/v1/embeddings", {"input": "x" * CONTEXT}),
}
# What differs between any two requests: their ids, and when they came.
VARYING = re.compile(
    r'[0-9a-f]{32}|call_[0-9A-Za-z]+|"(created|created_at|completed_at|e2e_latency)":[0-9.e-]+|sse_[0-9a-f]+'
)

GROWING = frozenset({"content", "reasoning_content", "text", "delta", "arguments", "partial_json", "thinking"})
STOPS = frozenset({"stop", "stop_sequences", "sampling_params"})
NUMBERED = frozenset({"sequence_number"})


def without_ids(said: str) -> str:
    return VARYING.sub(lambda found: f'"{found[1]}":0' if found[1] else "?", said)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene(tmp_path_factory.mktemp("model"), parsers=("qwen25", "qwen3")) as made:
        yield made


async def both(made: Scene, path: str, body: dict[str, Any] | bytes, of: Callable[[str], Any] = str) -> bool:
    """Asks both frontends, and compares status, head and what `of` says of the body. Whether it is a 200."""
    if isinstance(body, dict):
        body = {"model": MODEL} | body
    answers = [await side.post(path, body) for side in made.sides]
    own, engine = [(each.status_code, _head(each), of(without_ids(each.text))) for each in answers]
    assert engine == own
    await until(lambda: not any(side.held for side in made.sides))
    return answers[0].status_code == 200


def _head(answer: Any) -> dict[str, str]:
    return {
        name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id", "content-length")
    }


def _is_list(body: dict[str, Any]) -> bool:
    return isinstance(body.get("prompt", body.get("text")), list)


def by_choice(said: str) -> list[str]:
    """Events of several choices come in any order."""
    return sorted(said.split("\n\n"))


def merged(said: str) -> Any:
    """Of a stream what its events say together: texts and lists put one behind the other, of other fields the last.
    SGLang's own events repeat the text so far: there the last event says all."""
    if not said.startswith(("data: ", "event: ")):
        return said
    whole: dict[str, Any] = {}
    for line in said.split("\n"):
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            index = event.get("index", 0), *(choice["index"] for choice in event.get("choices", []))
            key = f"{event.get('type')} {index}"
            whole[key] = event if "meta_info" in event else _put_behind(whole.get(key), event)
    return whole


def _put_behind(before: Any, after: Any, name: str = "") -> Any:
    if isinstance(before, dict) and isinstance(after, dict):
        names = {**before, **after}
        return {each: _put_behind(before.get(each), after.get(each), each) for each in names if each not in NUMBERED}
    if isinstance(before, list) and isinstance(after, list):
        if name == "choices":
            return [_put_behind(one, other) for one, other in zip(before, after, strict=True)]
        return before + after
    if isinstance(before, str) and isinstance(after, str) and name in GROWING:
        return before + after
    return before if after is None else after


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ASKED)
async def test_whole_answers(deployment: Scene, name: str) -> None:
    assert await both(deployment, *ASKED[name]) == (name not in REFUSED)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", STREAMED)
async def test_streams(deployment: Scene, name: str) -> None:
    path, body = ASKED[name]
    more = {"stream_options": {"include_usage": True}} if path in (CHAT, TEXT) else {}
    body = body | {"stream": True} | more
    await both(deployment, path, body, by_choice if body.get("n", 1) > 1 or _is_list(body) else str)
    if not body.keys() & STOPS:  # how many tokens count behind a stop string depends on the steps
        for host in deployment.hosts:
            host.engine.per_step = 1
        try:
            await both(deployment, path, body, merged)
        finally:
            for host in deployment.hosts:
                host.engine.per_step = 1000


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_told_of_the_model(deployment: Scene) -> None:
    for path in ("/v1/models", "/model_info", "/server_info", "/health_generate"):
        own, engine = [await side.client.get(side.url + path) for side in deployment.sides]
        assert (own.status_code, without_ids(own.text)) == (engine.status_code, without_ids(engine.text))


@pytest.mark.parametrize("name", EMBEDDED)
async def test_vectors(tmp_path: Path, name: str) -> None:
    async with scene(tmp_path, Role.EMBEDDING, **SCORER) as made:
        await both(made, *EMBEDDED[name])


def test_each_endpoint_of_the_api_is_asked() -> None:
    assert {each.path for each in ENDPOINTS} <= {path for path, _ in (*ASKED.values(), *EMBEDDED.values())}


async def test_a_stream_that_moves_goes_on_with_the_right_text(tmp_path: Path) -> None:
    """Its engine is lost within a character: the next host is told what was said so far."""
    said = b"ab" + "🎾é".encode() * 4
    async with scene(tmp_path, per_step=1) as made:
        decodes = [host for host in made.hosts if host.life.startswith("decode")]
        for host in decodes:
            host.engine.tokens_max = 4  # "ab" and half of a character
        asked = asyncio.create_task(made.engine.post(CHAT, {"model": MODEL, "stream": True} | chat(said)[1]))
        await until(lambda: any(len(each.emitted_ids) == 4 for each in made.engine.coordinator.live.values()))
        ran = next(host for host in decodes if host.engine.legs)
        for host in decodes:
            host.engine.tokens_max = None
        ran.server.close()
        answer = await asked
        texts = re.findall(r'"content":"([^"]*)"', answer.text)
        assert "".join(texts) == said.decode()
        other = next(host for host in decodes if host is not ran)
        assert len(other.engine.legs) == 1, "it did not move"
