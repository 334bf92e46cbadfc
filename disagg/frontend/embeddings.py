"""POST /v1/embeddings, /v1/classify, /v1/rerank and /v1/score: each input of a body is a request of its own.

A score of a model that makes tokens is the chance of each label to come next: a request for one token, and for the
logprobs of the labels in its place.

Way:   Exchange -> [Embeddings.answer] -> Backend.run for each input, AT_ONCE at a time -> vector_answers.py
In:    one exchange; the backend, the tokenizer
Out:   one answer, its entries in the order of the inputs
Owns:  the tasks that run the inputs: the first failure, or the client's leaving, ends them all
Fails: BadRequest where the deployment has no embedding engines, or its model no head for what is asked; what the first
       input that failed raised; ClientGone
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from disagg.coordinator.request import NoText, Request
from disagg.coordinator.sink import Nowhere
from disagg.errors import BadRequest, LegLost
from disagg.fields import refuse
from disagg.frontend import receiving, vector_answers
from disagg.frontend.backend import Backend
from disagg.frontend.exchange import Exchange
from disagg.frontend.inputs import InputKind, InputsRequest, check_held
from disagg.frontend.key_limits import NO_LIMITS, Meters, metered
from disagg.frontend.responses import encode
from disagg.frontend.tokenization import Tokenization, known
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
        meters: Meters = NO_LIMITS,
    ) -> None:
        """`running`: where all requests of an answer are found by its id."""
        self._meters = meters
        self._backend, self._tokenization, self._running = backend, tokenization, running
        self._body_limit_bytes = body_limit_bytes

    async def answer(self, exchange: Exchange, kind: InputKind, owner: bytes) -> None:
        """`owner` may see and cancel the request; cancelling it by its id ends all inputs."""
        if exchange.trace is not None:
            exchange.trace.model = self._backend.model_name
        received_at_s = receiving.name(exchange, self._backend)
        with exchange.while_connected(), metered(exchange, self._meters, owner) as use:
            receiving.check_head(exchange)
            await self._check_deployment(kind)
            asked = await self._tokenization.read(await exchange.body(self._body_limit_bytes), kind)
            assert isinstance(asked, InputsRequest)
            receiving.tell_ignored(exchange, asked.ignored)
            by_tokens = self._is_by_tokens(kind, asked)
            self._check(asked, by_tokens=by_tokens)
            rest = range(len(asked.prompts) - 1)
            ids = [exchange.request_id, *(self._backend.new_request_id() for _ in rest)]
            make = self._scored if by_tokens else self._embedded
            requests = [make(asked, at, ids[at], owner, received_at_s) for at in range(len(ids))]
            if use is not None:
                use.read(self._backend.model_name, asked.adapter, sum(map(len, asked.prompts)), requests)
            if exchange.trace is not None:
                for request in requests:
                    request.trace = exchange.trace.request()
            self._running[exchange.request_id] = requests
            try:
                content = await self._content(kind, asked, requests)
            finally:
                del self._running[exchange.request_id]
            await exchange.answer(200, encode(content))

    async def _content(self, kind: InputKind, asked: InputsRequest, requests: list[Request]) -> Any:
        model, tokens = asked.model, sum(map(len, asked.prompts))
        if kind == "embd":
            vectors = await self._run(requests, lambda done: vector_answers.embedding(done.embedding, asked))
            return vector_answers.embeddings(vectors, model, tokens)
        if not requests[0].embeds:
            chances = await self._run(requests, lambda done: _chances(done, asked))
            return vector_answers.scores(chances, model, tokens)
        rows = await self._run(requests, lambda done: unpack_floats(done.embedding))
        if kind == "rank":
            return vector_answers.ranks(rows, asked, [request.id for request in requests])
        if kind == "scor":
            told = [vector_answers.softmax(row) if asked.softmax else row for row in rows]
            return vector_answers.scores(told, model, tokens)
        return vector_answers.classes(rows, self._head, model, tokens, requests[0].id, int(time.time()))

    async def _run(self, requests: list[Request], shape: Callable[[Request], T]) -> list[T]:
        """`shape` of each when it has ended, in their order."""
        shaped: dict[int, T] = {}
        left = iter(enumerate(requests))

        async def work() -> None:
            for at, request in left:
                await self._backend.run(request, Nowhere())
                shaped[at] = shape(request)

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(min(AT_ONCE, len(requests))):
                    group.create_task(work(), name=f"request {requests[0].id}: inputs, {number}")
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [shaped[at] for at in range(len(requests))]

    def _scored(self, asked: InputsRequest, at: int, request_id: str, owner: bytes, received_at_s: float) -> Request:
        request = Request(
            id=request_id,
            prompt_ids=asked.prompts[at],
            sampling={"temperature": 1.0, "ignore_eos": True},  # at another temperature the chances would be others
            max_tokens=1,
            text=NoText(),
            received_at_s=received_at_s,
            owner=owner,
            asks={"return_logprob": True, "top_logprobs_num": 0, "token_ids_logprob": asked.label_ids},
            adapter=asked.adapter,
        )
        request.mark("tokenised", time.monotonic())
        return request

    def _embedded(self, asked: InputsRequest, at: int, request_id: str, owner: bytes, received_at_s: float) -> Request:
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
            adapter=asked.adapter,
        )
        request.mark("tokenised", time.monotonic())
        return request

    @property
    def _head(self) -> Head:
        return known(self._tokenization).head

    def _is_by_tokens(self, kind: InputKind, asked: InputsRequest) -> bool:
        """Whether a model that makes tokens gives the scores; of both kinds the one that has a head for it does."""
        if kind != "scor":
            return False
        backend, name = self._backend, "label_token_ids"
        has_head = backend.embeds and self._head.scores
        if not has_head and not asked.label_ids:
            refuse(name, "missing_required_parameter", f"'{name}' is missing: whose chances are the score of an item?")
        if has_head and asked.label_ids:
            what = f"'{name}' is for models that make tokens, and this one scores its own classes; leave it out"
            refuse(name, "unsupported_parameter", what)
        if not has_head and (would_do := backend.ignored.get("token_ids_logprob")):
            refuse(name, "ignored_parameter", f"engines here would ignore '{name}'; an operator would {would_do}")
        return not has_head

    async def _check_deployment(self, kind: InputKind) -> None:
        if kind == "scor" and self._backend.generates:
            return
        if not self._backend.embeds:
            what = "this model has no embedding engines; an operator would add a pool under `embedding`"
            raise BadRequest(None, "no_embedding_pool", what)
        await self._tokenization.ready()
        if kind != "embd" and not self._head.scores:
            what = f"'{self._backend.model_name}' has no head that scores (…ForSequenceClassification, …ForRewardModel)"
            raise BadRequest("model", "no_scoring_head", f"{what}; use /v1/embeddings")

    def _check(self, asked: InputsRequest, *, by_tokens: bool) -> None:
        held = self._backend.request_tokens_max if by_tokens else self._backend.embedding_tokens_max
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


def _chances(request: Request, asked: InputsRequest) -> list[float]:
    """Of each label to come next: among all ids, or with `apply_softmax` among the labels. Raises LegLost."""
    told = dict(request.logprobs[0].chosen) if request.logprobs else {}
    if any(label not in told for label in asked.label_ids):
        raise LegLost(f"request {request.id}", "an engine sent no logprobs of the labels", "try again")
    logprobs = [told[label] for label in asked.label_ids]
    return vector_answers.softmax(logprobs) if asked.softmax else [math.exp(each) for each in logprobs]
