"""POST /v1/chat/completions and /v1/completions: from the body's bytes to the last byte of the answer.

Way:   Exchange -> [Generations.answer] -> Backend.generate -> pieces -> bytes
In:    one exchange; the backend, the codec
Out:   an OpenAI answer, whole or as server-sent events; errors as OpenAI error objects, also in a stream's midst
Owns:  the generator of pieces: it is closed on every way out, and its closing cancels both legs
Fails: never to its caller, but for ClientGone and a cancellation
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from disagg.coordinator.request import FinishReason, Piece, Request
from disagg.errors import RequestError
from disagg.fields import refuse
from disagg.frontend.backend import Backend
from disagg.frontend.body import check_encoding
from disagg.frontend.exchange import Exchange
from disagg.frontend.ignored import refuse_ignored
from disagg.frontend.parameters import check_headers
from disagg.frontend.readers import Readers
from disagg.frontend.request_body import CompletionRequest, refuse_too_long
from disagg.frontend.responses import DONE, Chunks, ChunksWithMore, Kind, whole
from disagg.tokenizer.codec import Codec

log = logging.getLogger(__name__)

CLIENT_ID_CHARACTERS_MAX = 128


class Generations:
    def __init__(self, backend: Backend, codec: Codec, body_limit_bytes: int) -> None:
        self._backend, self._codec, self._body_limit_bytes = backend, codec, body_limit_bytes
        self._readers = Readers(codec, backend.model_name)

    async def start_reader(self) -> None:
        await self._readers.start()

    async def stop(self) -> None:
        await self._readers.stop()

    async def answer(self, exchange: Exchange, kind: Kind, owner: bytes) -> None:
        """`owner` may see and cancel the request."""
        received_at_s = time.monotonic()
        request_id = self._backend.new_request_id()
        exchange.answer_headers.append((b"x-request-id", request_id.encode()))
        async with exchange.while_connected():
            try:
                check_headers(exchange.request_headers)
                check_encoding(exchange)
                asked = await self._read(exchange, kind)
                await self._generate(exchange, kind, asked, request_id, received_at_s, owner)
            except RequestError as error:
                await exchange.fail(error)
            except Exception:
                log.exception("request %s: an error nobody foresaw", request_id)
                unforeseen = RequestError(f"request {request_id}", "internal error", "see the frontend's log")
                await exchange.fail(unforeseen)

    async def _read(self, exchange: Exchange, kind: Kind) -> CompletionRequest:
        """The body's bytes end here: a stream that runs for minutes does not hold its 8 MiB."""
        return await self._readers.read(await exchange.body(self._body_limit_bytes), kind)

    async def _generate(
        self,
        exchange: Exchange,
        kind: Kind,
        asked: CompletionRequest,
        request_id: str,
        received_at_s: float,
        owner: bytes,
    ) -> None:
        request = self._request(asked, request_id, received_at_s)
        request.owner = owner
        if (client_id := exchange.request_header(b"x-request-id")) is not None:
            request.facts["client_request_id"] = _printable(client_id)
        model = self._backend.model_name
        async with aclosing(self._backend.generate(request)) as pieces:
            if asked.stream:
                stream = exchange.chunk_writer, kind, request_id, int(time.time()), model, asked.include_usage
                ids, usages = asked.return_token_ids, asked.continuous_usage
                chunks = (
                    ChunksWithMore(*stream, request, token_ids=ids, continuous_usage=usages)
                    if ids or usages
                    else Chunks(*stream)
                )
                await _stream(exchange, request, pieces, chunks)
            else:
                await _collect(exchange, request, pieces, kind, model, asked.return_token_ids)

    def _request(self, asked: CompletionRequest, request_id: str, received_at_s: float) -> Request:
        refuse_ignored(asked.sampling, self._backend)
        prompt_ids = asked.prompt
        assert isinstance(prompt_ids, list)
        request = Request(
            id=request_id,
            prompt_ids=prompt_ids,
            sampling=asked.sampling,
            max_tokens=_output_tokens(asked, len(prompt_ids), self._backend),
            text=self._codec.text_stream(asked.stop),
            received_at_s=received_at_s,
            end_ids=frozenset() if asked.sampling.get("ignore_eos") else self._codec.end_ids,
        )
        request.mark("tokenised", time.monotonic())
        return request


async def _collect(
    exchange: Exchange,
    request: Request,
    pieces: AsyncGenerator[Piece, None],
    kind: Kind,
    model: str,
    with_token_ids: bool,
) -> None:
    texts, reason = [], None
    async for piece in pieces:
        texts.append(piece.text)
        reason = piece.finish_reason
    reason = _must_have_ended(request, reason)
    body = whole(kind, request, int(time.time()), model, "".join(texts), reason, with_token_ids)
    await exchange.answer(200, body)


async def _stream(exchange: Exchange, request: Request, pieces: AsyncGenerator[Piece, None], chunks: Chunks) -> None:
    """One write for each piece; the role goes with the first text, the end with the last."""
    unsent, reason = chunks.opening(), None
    async for piece in pieces:
        unsent += chunks.piece(piece.text, piece.token_ids)
        reason = piece.finish_reason
        if unsent and reason is None:
            await exchange.write_events(unsent)
            unsent = b""
            request.output = chunks
    unsent += chunks.finish(_must_have_ended(request, reason))
    if chunks.include_usage:
        unsent += chunks.usage(request.usage)
    await exchange.write_events(unsent + DONE, last=True)


def _must_have_ended(request: Request, reason: FinishReason | None) -> FinishReason:
    if reason is None:
        raise RequestError(f"request {request.id}", "the answer broke off without a reason", "report this bug")
    return reason


def _output_tokens(asked: CompletionRequest, prompt_tokens: int, backend: Backend) -> int:
    """How many tokens the answer may have; what does not fit is refused before any engine sees it."""
    held = backend.request_tokens_max
    limit = min(backend.context_length, held) if held else backend.context_length
    whose = "the model's context" if limit == backend.context_length else "what the engines here can hold"
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
