"""POST /v1/chat/completions and /v1/completions: from the body's bytes to the last byte of the answer.

Way:   Exchange -> [Generations.answer] -> Backend.run for each sample, with sinks that bring tokens back
In:    one exchange; the backend, the codec
Out:   an OpenAI answer, whole or as server-sent events
Owns:  the task that runs the requests: it is cancelled when the client leaves, and with it all legs
Fails: BadRequest and other RequestErrors, before or after the answer's head: its caller tells the client; ClientGone
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from disagg.coordinator.request import Request
from disagg.errors import BadRequest
from disagg.fields import refuse
from disagg.frontend.backend import Backend
from disagg.frontend.body import check_encoding
from disagg.frontend.chat_form import ChatStream, ChatWhole
from disagg.frontend.choices import Stream, StreamedChoice, WholeChoice
from disagg.frontend.completion_form import Saying
from disagg.frontend.exchange import Exchange
from disagg.frontend.parameters import check_headers
from disagg.frontend.parts import ChoiceAnswer, StreamForm, WholeForm
from disagg.frontend.readers import Readers
from disagg.frontend.request_body import CompletionRequest
from disagg.frontend.responses import Kind
from disagg.frontend.samples import likeliest, requests_of, run_samples, usage_of
from disagg.frontend.sinks import Chunks
from disagg.frontend.text_form import TextCompletionStream, TextCompletionWhole
from disagg.tokenizer.codec import Codec

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
            _refuse_without_engines(self._backend)
            asked = await self._read(exchange, kind)
            _refuse_ignored(asked, self._backend)
            requests = requests_of(asked, self._backend, self._codec, exchange.request_id, owner, received_at_s)
            self._note(exchange, requests)
            if asked.stream and asked.is_plain:
                sink = Chunks(exchange, kind, requests[0], int(time.time()), self._backend.model_name, asked)
                await self._backend.run(requests[0], sink)
            elif asked.stream:
                await self._stream(exchange, kind, asked, requests)
            else:
                await self._whole(exchange, kind, asked, requests)

    async def _read(self, exchange: Exchange, kind: Kind) -> CompletionRequest:
        """Reads the body. A function of its own, so that a stream of minutes does not keep the body's 8 MiB."""
        asked = await self.readers.read(await exchange.call.body(self._body_limit_bytes), kind)
        assert isinstance(asked, CompletionRequest)
        return asked

    def _note(self, exchange: Exchange, requests: Sequence[Request]) -> None:
        tokenised_at_s = time.monotonic()
        client_id = exchange.request_header(b"x-request-id")
        for request in requests:
            request.mark("tokenised", tokenised_at_s)
            if client_id is not None:
                request.facts.client_request_id = _printable(client_id)

    async def _stream(
        self, exchange: Exchange, kind: Kind, asked: CompletionRequest, requests: Sequence[Request]
    ) -> None:
        form = _stream_form(kind, self._saying(exchange, asked, requests))
        stream = Stream(exchange, form, len(requests), lambda: usage_of(requests, asked))
        sinks = [
            StreamedChoice(stream, index, request, echo=self._echo(asked, request), is_mute=asked.max_tokens == 0)
            for index, request in enumerate(requests)
        ]
        await run_samples(self._backend, list(zip(requests, sinks, strict=True)), asked.best_of)

    async def _whole(
        self, exchange: Exchange, kind: Kind, asked: CompletionRequest, requests: Sequence[Request]
    ) -> None:
        sinks = [
            WholeChoice(index, request, echo=self._echo(asked, request) or "", is_mute=asked.max_tokens == 0)
            for index, request in enumerate(requests)
        ]
        await run_samples(self._backend, list(zip(requests, sinks, strict=True)), asked.best_of)
        answers = likeliest([_answer_of(sink) for sink in sinks], asked)
        form = _whole_form(kind, self._saying(exchange, asked, requests))
        await exchange.answer(200, form.whole(answers, usage_of(requests, asked)))

    def _saying(self, exchange: Exchange, asked: CompletionRequest, requests: Sequence[Request]) -> Saying:
        return Saying(
            id=exchange.request_id,
            created_s=int(time.time()),
            model=self._backend.model_name,
            token_text=self._codec.texts.token_text,
            include_usage=asked.include_usage,
            usage_so_far=(lambda: usage_of(requests, asked)) if asked.continuous_usage else None,
            prompt_ids=(lambda index: asked.prompts[index // asked.n]) if asked.return_token_ids else None,
        )

    def _echo(self, asked: CompletionRequest, request: Request) -> str | None:
        return self._codec.texts.tokenizer.decode(request.prompt_ids, skip_special_tokens=True) if asked.echo else None


def _answer_of(choice: WholeChoice) -> ChoiceAnswer:
    assert choice.answer is not None, "the answer broke off without a reason"
    return choice.answer


def _stream_form(kind: Kind, saying: Saying) -> StreamForm:
    return ChatStream(saying) if kind == "chat" else TextCompletionStream(saying)


def _whole_form(kind: Kind, saying: Saying) -> WholeForm:
    return ChatWhole(saying) if kind == "chat" else TextCompletionWhole(saying)


def _refuse_without_engines(backend: Backend) -> None:
    if not backend.generates:
        what = "this deployment makes vectors alone, at /v1/embeddings; "
        would_do = "an operator would add pools under prefill and decode, or aggregated"
        raise BadRequest(None, "no_generation_pool", what + would_do)


def _refuse_ignored(asked: CompletionRequest, backend: Backend) -> None:
    """Raises BadRequest for a parameter that engines would accept and ignore (disagg/sglang/ignored.py).

    Where nothing is left to chance a seed has nothing to decide, and is let through. Engines are asked only for a
    request that has such a parameter: most have none.
    """
    sampling = asked.sampling
    names: dict[str, Any] = {}
    if sampling.get("temperature") != 0 and sampling.get("top_k") != 1:
        names = {"seed": sampling.get("sampling_seed") is not None, "min_p": bool(sampling.get("min_p"))}
    names |= {"grammar": asked.constrained_by, "min_tokens": "min_new_tokens" in sampling}
    names |= {"stop_regex": "stop_regex" in sampling}
    if not any(names.values()):
        return
    ignored = backend.ignored
    for name, is_asked in names.items():
        if is_asked and name in ignored:
            field = asked.constrained_by if name == "grammar" else name
            what = f"engines here would ignore '{field}'; leave it out, or an operator would {ignored[name]}"
            refuse(field, "ignored_parameter", what)


def _printable(client_id: bytes) -> str:
    text = client_id[:CLIENT_ID_CHARACTERS_MAX].decode("latin-1")
    return "".join(character if character.isprintable() else "?" for character in text)
