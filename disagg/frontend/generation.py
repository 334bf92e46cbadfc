"""POST /v1/chat/completions, /v1/completions and their kin: from the body's bytes to the last byte of the answer.

Way:   Exchange -> [Generations.answer] -> Backend.run for each sample, with sinks that bring tokens back
In:    one exchange; the backend, the tokenizer and the model's parsers
Out:   an answer in the words of its API (forms.py), whole or as server-sent events
Owns:  the task that runs the requests: it is cancelled when the client leaves, and with it all legs; the conversations
       that `previous_response_id` may go on with
Fails: BadRequest and other RequestErrors, before or after the answer's head: its caller tells the client; ClientGone
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec

from disagg.coordinator.request import Request
from disagg.errors import BadRequest
from disagg.fields import refuse
from disagg.frontend import receiving
from disagg.frontend.answering import Answering
from disagg.frontend.backend import Backend
from disagg.frontend.body import UTF_8_MARK
from disagg.frontend.choices import Stream, StreamedChoice, WholeChoice
from disagg.frontend.exchange import Exchange
from disagg.frontend.forms import FORMS, response_head
from disagg.frontend.key_limits import NO_LIMITS, Meters, metered
from disagg.frontend.parts import ChoiceAnswer
from disagg.frontend.peers import Peers
from disagg.frontend.reading import Read, with_earlier
from disagg.frontend.receiving import bare_id
from disagg.frontend.request_body import CompletionRequest
from disagg.frontend.responses_api import ResponseStore, conversation, not_kept
from disagg.frontend.samples import likeliest, logprobs_in, requests_of, run_samples, shorten_logprobs
from disagg.frontend.sinks import Chunks
from disagg.frontend.tokenization import Tokenization
from disagg.frontend.tokenizing import Answered
from disagg.frontend.wishes import wishes_of
from disagg.sampling import GRAMMARS

SHORT_LOGPROBS = 1000  # to be said: two milliseconds
CLIENT_ID_CHARACTERS_MAX = 128
NAME_ESCAPE = rb"\u00"  # as JSON may write "_" and small letters, of names too. No client is known that does


T = TypeVar("T")


class _Previous(msgspec.Struct):
    """Of a Responses body, without a look at the rest. Of another type it ends the look, however large it is."""

    previous_response_id: str | None = None


class Generations:
    """Answers completion requests of a frontend. `body_limit_bytes`: of a request's body; a longer one gets 413.
    `peers`: frontends that may keep the conversation which a request goes on with."""

    def __init__(
        self,
        backend: Backend,
        tokenization: Tokenization,
        body_limit_bytes: int,
        peers: Peers | None = None,
        kept: ResponseStore | None = None,
        meters: Meters = NO_LIMITS,
    ) -> None:
        """`kept`: the conversations of all models, where there are several: one may go on with another's."""
        self._meters = meters
        self._backend, self._tokenization, self._peers = backend, tokenization, peers
        self._body_limit_bytes = body_limit_bytes
        self.kept = ResponseStore() if kept is None else kept
        self._long_answers: ThreadPoolExecutor | None = None  # one thread: the loop gets its half of the interpreter
        self.running: dict[str, Sequence[Request]] = {}  # answers of several samples, by the id that their clients know

    def close(self) -> None:
        """Nothing runs any more, or it is not to be waited for."""
        if self._long_answers is not None:
            self._long_answers.shutdown(wait=False, cancel_futures=True)

    def cancel(self, answer_id: str) -> bool:
        """Ends all samples of a running answer; False if there is none."""
        requests = self.running.get(answer_id)
        ids = [request.id for request in requests] if requests else [answer_id]
        return any([self._backend.cancel(each) for each in ids])

    async def answer(self, exchange: Exchange, endpoint: str, owner: bytes) -> None:
        """`endpoint`: a row of READINGS that makes a CompletionRequest. `owner` may see and cancel the request."""
        self._name_in_trace(exchange)
        received_at_s = receiving.name(exchange, self._backend)
        with exchange.while_connected(), metered(exchange, self._meters, owner) as use:
            receiving.check_head(exchange)
            _refuse_without_engines(self._backend)
            asked = await self._read(exchange, endpoint, owner)
            assert isinstance(asked, CompletionRequest)
            await self._tokenization.parsing.load(asked.tool_use)
            answering = self._answering(exchange, asked, owner, received_at_s)
            if use is not None:
                use.read(self._backend.model_name, asked.adapter, sum(map(len, asked.prompts)), answering.requests)
            self.running[answering.id] = answering.requests
            try:
                await self._run(exchange, answering)
            finally:
                del self.running[answering.id]

    def _name_in_trace(self, exchange: Exchange) -> None:
        """First: what is refused is this model's, too."""
        if exchange.trace is not None:
            exchange.trace.model = self._backend.model_name

    async def _run(self, exchange: Exchange, answering: Answering) -> None:
        if not answering.asked.stream:
            await self._whole(exchange, answering)
        elif answering.is_plain:
            request = answering.requests[0]
            chunks = Chunks(exchange, request, answering.created_s, answering.model, answering.asked)
            await self._backend.run(request, chunks)
        else:
            await self._stream(exchange, answering)

    async def answer_here(self, exchange: Exchange, endpoint: str) -> None:
        """For what no engine is asked: `endpoint` is a row of READINGS that makes an Answered."""
        self._name_in_trace(exchange)
        with exchange.while_connected():
            receiving.check_head(exchange)
            answered = await self._read(exchange, endpoint)
            assert isinstance(answered, Answered)
            await exchange.answer(200, answered.body)

    async def _read(self, exchange: Exchange, endpoint: str, owner: bytes = b"") -> Read:
        """Reads the body. A function of its own, so that a stream of minutes does not keep the body's 8 MiB."""
        body = await exchange.body(self._body_limit_bytes)
        if endpoint == "responses":
            body = with_earlier(body, await self._earlier(body, owner))
        asked = await self._tokenization.read(body, endpoint)
        receiving.tell_ignored(exchange, asked.ignored)
        return asked

    async def _earlier(self, body: bytes, owner: bytes) -> list[dict[str, Any]]:
        """The conversation that a Responses body goes on with."""
        if b"previous_response_id" not in body and (b"\\" not in body or NAME_ESCAPE not in body):
            return []
        try:
            previous = msgspec.json.decode(body.removeprefix(UTF_8_MARK), type=_Previous).previous_response_id
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return []  # its reader says what is wrong with it
        if previous is None:
            return []
        found = self.kept.find(owner, previous)
        if found is None and self._peers is not None and (number := self._peers.of(bare_id(previous))) is not None:
            found = await self._peers.conversation(number, previous, owner)
        if found is None:
            raise not_kept(previous)
        return found

    def _answering(self, exchange: Exchange, asked: CompletionRequest, owner: bytes, received_at_s: float) -> Answering:
        asking, parsing = None, self._tokenization.parsing
        if asked.tool_use.is_active or not (parsing.is_idle or asked.api in ("text", "generate")):
            asking = parsing.ask(asked.tool_use, asked.talk)
            constrains = asking.sampling.keys() & GRAMMARS
            if constrains and "min_new_tokens" in asked.sampling:
                what = "'min_tokens' beside a required call: a call that is complete could not end; leave out one"
                refuse("min_tokens", "invalid_value", what)
            asked = msgspec.structs.replace(
                asked,
                sampling={**asked.sampling, **asking.sampling},
                constrained_by=asked.constrained_by or ("tool_choice" if constrains else ""),
                shows_special=asked.shows_special or asking.keeps_special_tokens,
                stop=tuple(dict.fromkeys(asked.stop + asking.stop)),
            )
        _refuse_ignored(asked, self._backend)
        wishes = wishes_of(exchange, asked)
        requests = requests_of(
            asked, self._backend, self._tokenization, exchange.request_id, owner, received_at_s, wishes
        )
        self._note(exchange, requests)
        return Answering(
            asked,
            requests,
            self._tokenization,
            asked.model,
            owner,
            received_at_s,
            int(time.time()),
            asking,
        )

    def _note(self, exchange: Exchange, requests: Sequence[Request]) -> None:
        tokenised_at_s = time.monotonic()
        client_id = exchange.request_header(b"x-request-id")
        for request in requests:
            request.mark("tokenised", tokenised_at_s)
            if exchange.trace is not None:
                request.trace = exchange.trace.request()
            if client_id is not None:
                request.facts.client_request_id = _printable(client_id)

    async def _stream(self, exchange: Exchange, answering: Answering) -> None:
        asked, requests = answering.asked, answering.requests
        form = FORMS[asked.api].stream(answering)
        stream = Stream(
            exchange, form, len(requests), answering.usage, lambda answer: self._choice_ended(answering, answer)
        )
        sinks = [
            StreamedChoice(stream, index, request, answering.parser(), answering.echo(index), answering.is_mute)
            for index, request in enumerate(requests)
        ]
        await run_samples(self._backend, list(zip(requests, sinks, strict=True)), asked.best_of)
        for sink in sinks:
            if sink.unread is not None:
                sink.ends(*await self._beside(sink.read_end))

    async def _whole(self, exchange: Exchange, answering: Answering) -> None:
        asked, requests = answering.asked, answering.requests
        sinks = [
            WholeChoice(index, request, answering.parser, answering.echo(index) or "", answering.is_mute)
            for index, request in enumerate(requests)
        ]
        await run_samples(self._backend, list(zip(requests, sinks, strict=True)), asked.best_of)
        answers = [await self._answer_of(sink) for sink in sinks]
        for answer in answers:
            self._choice_ended(answering, answer)
        say = partial(_said, answering, answers)
        is_long = logprobs_in(answers) > SHORT_LOGPROBS
        await exchange.answer(200, await self._beside(say) if is_long else say())

    async def _answer_of(self, choice: WholeChoice) -> ChoiceAnswer:
        return await self._beside(choice.answer) if choice.is_long_to_read else choice.answer()

    async def _beside(self, work: Callable[[], T]) -> T:
        """In a thread, so that streams go on meanwhile."""
        if self._long_answers is None:
            self._long_answers = ThreadPoolExecutor(1, thread_name_prefix="answers")
        return await asyncio.get_running_loop().run_in_executor(self._long_answers, work)

    def _choice_ended(self, answering: Answering, answer: ChoiceAnswer) -> None:
        answering.note_end(answer.index)
        said = answering.asked.said
        if said.get("stores"):
            history = conversation(said["history"], answer)
            self.kept.put(answering.owner, response_head(answering).id, history)


def _said(answering: Answering, answers: list[ChoiceAnswer]) -> bytes:
    """The whole answer's body."""
    asked = answering.asked
    form, chosen = FORMS[asked.api].whole(answering), likeliest(answers, asked)
    for answer in chosen:
        shorten_logprobs(answer, asked)
    return form.whole(chosen, answering.usage())


def _refuse_without_engines(backend: Backend) -> None:
    if not backend.generates:
        what = "this model makes vectors alone, at /v1/embeddings; "
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
    names |= {"stop_regex": "stop_regex" in sampling, "token_ids_logprob": asked.chosen_ids}
    names |= {"cache_salt": asked.salt}
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
