"""POST /v1/chat/completions and /v1/completions: from the body's bytes to the last byte of the answer.

Way:   Exchange -> [Generations.answer] -> Backend.run, with a sink that brings tokens back to the exchange
In:    one exchange; the backend, the codec
Out:   an OpenAI answer, whole or as server-sent events
Owns:  the task that runs the request: it is cancelled when the client leaves, and with it both legs
Fails: BadRequest and other RequestErrors, before or after the answer's head: its caller tells the client; ClientGone
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from disagg.coordinator.request import Request
from disagg.fields import refuse
from disagg.frontend.backend import Backend
from disagg.frontend.body import check_encoding
from disagg.frontend.exchange import Exchange
from disagg.frontend.parameters import check_headers
from disagg.frontend.readers import Readers
from disagg.frontend.reading import Read
from disagg.frontend.request_body import CompletionRequest, refuse_too_long
from disagg.frontend.responses import Kind, whole
from disagg.frontend.sinks import Chunks, ChunksWithMore, WholeText
from disagg.frontend.tokenizing import Answered
from disagg.tokenizer.codec import Codec
from disagg.tokenizer.text import TextStream

CLIENT_ID_CHARACTERS_MAX = 128


class Generations:
    """Answers completion requests of a frontend. `body_limit_bytes`: of a request's body; a longer one gets 413."""

    def __init__(self, backend: Backend, codec: Codec, body_limit_bytes: int) -> None:
        self._backend, self._codec, self._body_limit_bytes = backend, codec, body_limit_bytes
        self.readers = Readers(codec, backend.model_name)

    async def answer(self, exchange: Exchange, kind: Kind, owner: bytes) -> None:
        """`owner` may see and cancel the request."""
        received_at_s = time.monotonic()
        exchange.request_id = self._backend.new_request_id()
        exchange.answer_headers.append((b"x-request-id", exchange.request_id.encode()))
        with exchange.while_connected():
            check_headers(exchange.request_headers)
            check_encoding(exchange)
            asked = await self._read(exchange, kind)
            assert isinstance(asked, CompletionRequest)
            request = self._request(exchange, asked, owner, received_at_s)
            model, created_s = self._backend.model_name, int(time.time())
            if asked.stream:
                chunks = ChunksWithMore if asked.return_token_ids or asked.continuous_usage else Chunks
                await self._backend.run(request, chunks(exchange, kind, request, created_s, model, asked))
                return
            answer = WholeText()
            await self._backend.run(request, answer)
            assert answer.finish_reason is not None, "the answer broke off without a reason"
            body = whole(kind, request, created_s, model, answer.text, answer.finish_reason, asked.return_token_ids)
            await exchange.answer(200, body)

    async def answer_here(self, exchange: Exchange, endpoint: str) -> None:
        """For what no engine is asked: `endpoint` is a row of READINGS that makes an Answered."""
        with exchange.while_connected():
            check_headers(exchange.request_headers)
            check_encoding(exchange)
            answered = await self._read(exchange, endpoint)
            assert isinstance(answered, Answered)
            await exchange.answer(200, answered.body)

    async def _read(self, exchange: Exchange, endpoint: str) -> Read:
        """Reads the body. A function of its own, so that a stream of minutes does not keep the body's 8 MiB."""
        return await self.readers.read(await exchange.call.body(self._body_limit_bytes), endpoint)

    def _request(self, exchange: Exchange, asked: CompletionRequest, owner: bytes, received_at_s: float) -> Request:
        _refuse_ignored(asked.sampling, self._backend)
        request = Request(
            id=exchange.request_id,
            prompt_ids=asked.prompt_ids,
            sampling=asked.sampling,
            max_tokens=_output_tokens(asked, self._backend.request_tokens_max, self._codec.context_length),
            text=TextStream(self._codec.texts, asked.stop),
            received_at_s=received_at_s,
            end_ids=frozenset() if asked.sampling.get("ignore_eos") else self._codec.end_ids,
            owner=owner,
        )
        request.mark("tokenised", time.monotonic())
        if (client_id := exchange.request_header(b"x-request-id")) is not None:
            request.facts.client_request_id = _printable(client_id)
        return request


def _refuse_ignored(sampling: Mapping[str, Any], backend: Backend) -> None:
    """Raises BadRequest for a parameter that engines would accept and ignore (disagg/sglang/ignored.py).

    Where nothing is left to chance a seed has nothing to decide, and is let through. Engines are asked only for a
    request that has such a parameter: most have none.
    """
    asked = {"seed": sampling.get("sampling_seed") is not None, "min_p": bool(sampling.get("min_p"))}
    if not any(asked.values()) or sampling.get("temperature") == 0 or sampling.get("top_k") == 1:
        return
    ignored = backend.ignored
    for name, is_asked in asked.items():
        if is_asked and name in ignored:
            what = f"engines here would ignore '{name}'; leave it out, or an operator would {ignored[name]}"
            refuse(name, "ignored_parameter", what)


def _output_tokens(asked: CompletionRequest, held: int, context_length: int) -> int:
    """How many tokens the answer may have. Raises BadRequest for what no engine could hold."""
    prompt_tokens = len(asked.prompt_ids)
    limit = min(context_length, held) if held else context_length
    whose = "the model's context" if limit == context_length else "what the engines here can hold"
    if prompt_tokens >= limit:
        refuse_too_long(asked.source, prompt_tokens, limit, whose)
    if asked.max_tokens is None:
        return limit - prompt_tokens
    if prompt_tokens + asked.max_tokens > limit:
        what = f"{prompt_tokens} prompt tokens and {asked.max_tokens_name} = {asked.max_tokens} are more than "
        refuse(asked.max_tokens_name, "context_length_exceeded", f"{what}{whose}, {limit}")
    return asked.max_tokens


def _printable(client_id: bytes) -> str:
    text = client_id[:CLIENT_ID_CHARACTERS_MAX].decode("latin-1")
    return "".join(character if character.isprintable() else "?" for character in text)
