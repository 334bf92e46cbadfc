"""The samples of one answer: each prompt as often as asked, each sample a request of its own with a room of its own.

Way:   CompletionRequest -> [requests_of] -> Requests -> [run_samples] -> Backend.run, each with its sink
Out:   when all have ended; the first error, when one fails, after the others were cancelled
Owns:  the samples' tasks
Why:   a lost sample is tried again alone, and each goes where there is room. The samples of a long prompt follow the
       first one to the engine that has read it, so that its prefix cache spares them the reading
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from disagg.coordinator.request import Request
from disagg.coordinator.sink import Sink
from disagg.coordinator.wishes import Wishes
from disagg.errors import RequestError
from disagg.fields import refuse
from disagg.frontend.backend import Backend
from disagg.frontend.parts import ChoiceAnswer, TokenLogprobs
from disagg.frontend.request_body import SAMPLES_MAX, CompletionRequest, refuse_too_long
from disagg.frontend.text_facts import TextFacts
from disagg.frontend.tokenization import Tokenization, known
from disagg.token_ids import TokenIds

FOLLOWS_TOKENS = 256  # of a prompt this long the further samples wait until the first one has read it
PROMPT_LOGPROBS_MAX = 1 << 19  # of all samples: some 7 MB, and half a second of the event loop
CHOSEN_LOGPROBS_MAX = 1 << 20  # of an answer's tokens, the logprobs of chosen ids among them
OUTPUT_TOKENS_MAX = 1 << 20  # of all samples of an answer together
TEXT_TOKENS = 16  # of a completion that does not say how many: as with OpenAI, SGLang and vLLM


class Begins(Sink, Protocol):
    began: asyncio.Event  # its first token has come


def requests_of(
    asked: CompletionRequest,
    backend: Backend,
    tokenization: Tokenization,
    request_id: str,
    owner: bytes,
    received_at_s: float,
    wishes: Wishes,
) -> list[Request]:
    """`best_of` requests for each prompt, prompt by prompt; the first one has `request_id`. Raises BadRequest."""
    count, facts = len(asked.prompts) * asked.best_of, known(tokenization)
    if count > SAMPLES_MAX:
        what = f"{len(asked.prompts)} prompts, each {asked.best_of} times, are {count} samples; at most {SAMPLES_MAX}"
        refuse(asked.source, "too_many_samples", f"{what} are allowed in a request")
    lengths = [_output_tokens(asked, prompt_ids, backend, facts) for prompt_ids in asked.prompts]
    if count > 1 and sum(lengths) * asked.best_of > OUTPUT_TOKENS_MAX:
        what = (
            f"{count} samples may have {sum(lengths) * asked.best_of} tokens together; {OUTPUT_TOKENS_MAX} are allowed"
        )
        refuse(asked.max_tokens_name, "too_many_tokens", f"{what}: send a smaller '{asked.max_tokens_name}'")
    _check_logprobs(asked, sum(lengths) * asked.best_of)
    if (least := asked.sampling.get("min_new_tokens", 0)) > min(lengths):
        what = f"'min_tokens' is {least}, and the answer may have {min(lengths)} tokens at most"
        refuse("min_tokens", "integer_above_max_value", what)
    # SGLang looks for no stop token at all where end tokens are ignored.
    ignores_ends = bool(asked.sampling.get("ignore_eos"))
    end_ids = frozenset() if ignores_ends else facts.end_ids.union(asked.sampling.get("stop_token_ids", ()))
    requests: list[Request] = []
    for prompt_ids, max_tokens in zip(asked.prompts, lengths, strict=True):
        for sample in range(asked.best_of):
            text = tokenization.answer_text(
                asked.stop, end_ids, shows_stop=asked.shows_stop, shows_special=asked.shows_special
            )
            requests.append(
                Request(
                    id=backend.new_request_id() if requests else request_id,
                    prompt_ids=prompt_ids,
                    sampling=_sampling(asked.sampling, sample),
                    max_tokens=max_tokens,
                    text=text,
                    received_at_s=received_at_s,
                    end_ids=end_ids,
                    owner=owner,
                    asks=_asks(asked, len(prompt_ids)),
                    adapter=asked.adapter,
                    salt=asked.salt,
                    wishes=wishes,
                )
            )
    return requests


def _check_logprobs(asked: CompletionRequest, output_tokens: int) -> None:
    each = 1 + max(asked.logprobs or 0, asked.prompt_logprobs or 0) + len(asked.chosen_ids)
    if (start := asked.prompt_logprobs_from) is not None:
        rows = sum(max(0, len(prompt_ids) - start) for prompt_ids in asked.prompts) * asked.best_of
        if rows * each > PROMPT_LOGPROBS_MAX:
            what = f"{rows} prompt tokens with {each} logprobs each are more than {PROMPT_LOGPROBS_MAX}"
            refuse(asked.source, "too_many_logprobs", f"{what}: ask for fewer of them, or of a shorter prompt")
    if asked.chosen_ids and output_tokens * each > CHOSEN_LOGPROBS_MAX:
        what = f"{output_tokens} tokens with {each} logprobs each may be more than {CHOSEN_LOGPROBS_MAX}"
        refuse("token_ids_logprob", "too_many_logprobs", f"{what}: name fewer ids, or a smaller limit of tokens")


async def run_samples(backend: Backend, samples: Sequence[tuple[Request, Begins]], per_prompt: int) -> None:
    """Returns when each sink has its end. `samples` are in the order of `requests_of`."""
    if len(samples) == 1:
        await backend.run(*samples[0])
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            for at in range(0, len(samples), per_prompt):
                first, *others = samples[at : at + per_prompt]
                tasks.create_task(_run_first(backend, *first))
                for request, sink in others:
                    tasks.create_task(_run_after(backend, first, request, sink))
    except ExceptionGroup as group:
        raise _first(group.exceptions) from None


def likeliest(answers: list[ChoiceAnswer], asked: CompletionRequest) -> list[ChoiceAnswer]:
    """Of each prompt's `best_of` answers the `n` with the highest logprob a token, numbered anew."""
    if asked.best_of == asked.n:
        return answers
    chosen: list[ChoiceAnswer] = []
    for at in range(0, len(answers), asked.best_of):
        chosen += sorted(answers[at : at + asked.best_of], key=_mean_logprob, reverse=True)[: asked.n]
    for index, answer in enumerate(chosen):
        answer.index = index
        if asked.logprobs is None:  # they were for this alone
            answer.logprobs = []
    return chosen


def logprobs_in(answers: Sequence[ChoiceAnswer]) -> int:
    """How many numbers there are to be said, about: of each token as many as of the last one."""
    given = [each for answer in answers for each in (answer.logprobs, answer.prompt_logprobs) if each]
    return sum(len(each) * (1 + len(each[-1].top) + len(each[-1].chosen)) for each in given)


def shorten_logprobs(answer: ChoiceAnswer, asked: CompletionRequest) -> None:
    """An engine is asked for as many of a prompt's likeliest as of the answer's. Called once they were compared."""
    if asked.prompt_logprobs is not None:
        answer.logprobs = [] if asked.logprobs is None else _shortened(answer.logprobs, asked.logprobs)
        answer.prompt_logprobs = _shortened(answer.prompt_logprobs, asked.prompt_logprobs)


def _shortened(logprobs: list[TokenLogprobs], top: int) -> list[TokenLogprobs]:
    if all(len(each.top) <= top for each in logprobs):
        return logprobs
    return [msgspec.structs.replace(each, top=each.top[:top]) for each in logprobs]


def _mean_logprob(answer: ChoiceAnswer) -> float:
    return sum(each.logprob or 0.0 for each in answer.logprobs) / max(1, len(answer.logprobs))


async def _run_first(backend: Backend, request: Request, sink: Begins) -> None:
    try:
        await backend.run(request, sink)
    finally:
        sink.began.set()


async def _run_after(backend: Backend, first: tuple[Request, Begins], request: Request, sink: Begins) -> None:
    if len(request.prompt_ids) >= FOLLOWS_TOKENS:
        first_request, first_sink = first
        await first_sink.began.wait()
        request.prefix_on = first_request.facts.prefill or first_request.facts.decode
    await backend.run(request, sink)


def _first(errors: Sequence[Exception]) -> Exception:
    """Of several errors one that nobody foresaw, if there is one: it is the one to be mended."""
    return next((error for error in errors if not isinstance(error, RequestError)), errors[0])


def _sampling(sampling: dict[str, Any], sample: int) -> dict[str, Any]:
    """With one seed all samples would be the same: the further ones count on from it."""
    seed = sampling.get("sampling_seed")
    return sampling if seed is None or not sample else sampling | {"sampling_seed": (seed + sample) % (1 << 63)}


def _asks(asked: CompletionRequest, prompt_tokens: int) -> dict[str, Any]:
    if asked.logprobs is None and asked.prompt_logprobs is None:
        # To tell the likeliest answers from others.
        return {"return_logprob": True, "top_logprobs_num": 0} if asked.best_of > asked.n else {}
    most = max(asked.logprobs or 0, asked.prompt_logprobs or 0)
    asks: dict[str, Any] = {"return_logprob": True, "top_logprobs_num": most}
    if asked.chosen_ids:
        asks["token_ids_logprob"] = asked.chosen_ids
    if asked.prompt_logprobs_from is not None and asked.prompt_logprobs_from < prompt_tokens:
        asks["logprob_start_len"] = asked.prompt_logprobs_from
    return asks


def _output_tokens(asked: CompletionRequest, prompt_ids: TokenIds, backend: Backend, facts: TextFacts) -> int:
    """How many tokens the answer may have. Raises BadRequest for what no engine could hold."""
    prompt_tokens, held = len(prompt_ids), backend.request_tokens_max
    limit = min(facts.context_length, held) if held else facts.context_length
    whose = "the model's context" if limit == facts.context_length else "what the engines here can hold"
    if prompt_tokens >= limit:
        refuse_too_long(asked.source, prompt_tokens, limit, whose)
    if asked.max_tokens is None:
        left = limit - prompt_tokens
        return min(TEXT_TOKENS, left) if asked.api == "text" else left
    if prompt_tokens + asked.max_tokens > limit:
        what = f"{prompt_tokens} prompt tokens and {asked.max_tokens_name} = {asked.max_tokens} are more than "
        refuse(asked.max_tokens_name, "context_length_exceeded", f"{what}{whose}, {limit}")
    return max(1, asked.max_tokens)  # 0: an engine makes one, which nobody is told
