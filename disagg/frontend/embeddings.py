"""POST /v1/embeddings, /v1/classify, /v1/rerank and /v1/score: each input of a body is a request of its own.

Way:   Exchange -> [Embeddings.answer] -> Backend.run for each input, AT_ONCE at a time -> vector_answers.py
In:    one exchange; the backend, the tokenizer
Out:   one answer, its entries in the order of the inputs
Owns:  the tasks that run the inputs: the first failure, or the client's leaving, ends them all
Fails: BadRequest where the deployment has no embedding engines, or its model no head for what is asked; what the first
       input that failed raised; ClientGone
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from disagg.coordinator.request import NoText, Request
from disagg.coordinator.sink import Nowhere
from disagg.errors import BadRequest
from disagg.fields import refuse
from disagg.frontend import vector_answers
from disagg.frontend.backend import Backend
from disagg.frontend.body import check_encoding
from disagg.frontend.exchange import Exchange
from disagg.frontend.inputs import InputKind, InputsRequest, check_held
from disagg.frontend.parameters import check_headers
from disagg.frontend.responses import encode
from disagg.frontend.tokenization import Tokenization, known
from disagg.frontend.unknown_fields import HEADER, header_of
from disagg.models.heads import Head
from disagg.plane.messages import unpack_floats

AT_ONCE = 64  # inputs of one body: engines have full batches, and a large body leaves room in the queue to others
T = TypeVar("T")


class Embeddings:
    """Answers requests for vectors and scores. `body_limit_bytes`: of a request's body; a longer one gets 413."""

    def __init__(
        self,
        backend: Backend,
        tokenization: Tokenization,
        body_limit_bytes: int,
        running: dict[str, Sequence[Request]],
    ) -> None:
        """`running`: where all requests of an answer are found by its id."""
        self._backend, self._tokenization, self._running = backend, tokenization, running
        self._body_limit_bytes = body_limit_bytes

    async def answer(self, exchange: Exchange, kind: InputKind, owner: bytes) -> None:
        """`owner` may see and cancel the request; cancelling it by its id ends all inputs."""
        received_at_s = time.monotonic()
        exchange.request_id = self._backend.new_request_id()
        exchange.answer_headers.append((b"x-request-id", exchange.request_id.encode()))
        with exchange.while_connected():
            check_headers(exchange.request_headers)
            check_encoding(exchange)
            await self._check_deployment(kind)
            asked = await self._tokenization.read(await exchange.call.body(self._body_limit_bytes), kind)
            assert isinstance(asked, InputsRequest)
            if asked.ignored:
                exchange.answer_headers.append((HEADER, header_of(asked.ignored)))
            self._check(asked)
            rest = range(len(asked.prompts) - 1)
            ids = [exchange.request_id, *(self._backend.new_request_id() for _ in rest)]
            requests = [self._request(asked, at, ids[at], owner, received_at_s) for at in range(len(ids))]
            self._running[exchange.request_id] = requests
            try:
                content = await self._content(kind, asked, requests)
            finally:
                del self._running[exchange.request_id]
            await exchange.answer(200, encode(content))

    async def _content(self, kind: InputKind, asked: InputsRequest, requests: list[Request]) -> Any:
        model, tokens = self._backend.model_name, sum(map(len, asked.prompts))
        if kind == "embd":
            vectors = await self._run(requests, lambda packed: vector_answers.embedding(packed, asked))
            return vector_answers.embeddings(vectors, model, tokens)
        rows = await self._run(requests, unpack_floats)
        if kind == "rank":
            return vector_answers.ranks(rows, asked, [request.id for request in requests])
        if kind == "scor":
            return vector_answers.scores(rows, asked, model, tokens)
        return vector_answers.classes(rows, self._head, model, tokens, requests[0].id, int(time.time()))

    async def _run(self, requests: list[Request], shape: Callable[[bytes], T]) -> list[T]:
        """`shape` of what came for each, in their order."""
        shaped: dict[int, T] = {}
        left = iter(enumerate(requests))

        async def work() -> None:
            for at, request in left:
                await self._backend.run(request, Nowhere())
                shaped[at] = shape(request.embedding)

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(AT_ONCE, len(requests))):
                    group.create_task(work(), name=f"request {requests[0].id}: inputs, {number}")
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [shaped[at] for at in range(len(requests))]

    def _request(self, asked: InputsRequest, at: int, request_id: str, owner: bytes, received_at_s: float) -> Request:
        request = Request(
            id=request_id,
            prompt_ids=asked.prompts[at],
            sampling={},
            max_tokens=1,  # none is made; with 0 left, an answer would count as whole before its vector came
            text=NoText(),
            received_at_s=received_at_s,
            owner=owner,
            embeds=True,
            second_at=asked.seconds_at[at] if asked.seconds_at else 0,
        )
        request.mark("tokenised", time.monotonic())
        return request

    @property
    def _head(self) -> Head:
        return known(self._tokenization).head

    async def _check_deployment(self, kind: InputKind) -> None:
        if not self._backend.embeds:
            what = "this deployment has no embedding engines; an operator would add a pool under `embedding`"
            raise BadRequest(None, "no_embedding_pool", what)
        await self._tokenization.ready()
        if kind != "embd" and not self._head.scores:
            what = f"'{self._backend.model_name}' has no head that scores (…ForSequenceClassification, …ForRewardModel)"
            raise BadRequest("model", "no_scoring_head", f"{what}; use /v1/embeddings")

    def _check(self, asked: InputsRequest) -> None:
        held = self._backend.embedding_tokens_max
        if held:
            check_held(asked, held - 1, "what the engines here can hold")
        head, dimensions = self._head, asked.dimensions
        if dimensions is None:
            return
        if not head.can_be_cut:
            what = "'dimensions': vectors of this model cannot be cut (its config.json names no Matryoshka)"
            refuse("dimensions", "unsupported_parameter", f"{what}; leave it out")
        if head.lengths and dimensions not in head.lengths:
            lengths = ", ".join(map(str, head.lengths))
            refuse("dimensions", "invalid_value", f"'dimensions' is {dimensions}; this model was trained for {lengths}")
        if head.hidden and dimensions > head.hidden:
            what = f"'dimensions' is {dimensions}; vectors of this model have {head.hidden}"
            refuse("dimensions", "integer_above_max_value", what)
