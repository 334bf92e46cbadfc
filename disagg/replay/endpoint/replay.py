"""Drives a running endpoint with a plan, in real time.

Way:   Plan -> [replay_on] -> a task a request, at its time -> Measures
In:    the URL of any endpoint with OpenAI's completions that takes token ids as prompts
Fails: a request without an answer is counted, and the first of them is told; the others go on. EndpointLost where
       there is no endpoint at all
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from disagg.errors import DisaggError
from disagg.replay.endpoint.prompts import prompt_ids
from disagg.replay.endpoint.stream import NoAnswer, Timed, ask
from disagg.replay.measures import Answered, Measures, Slo, Told, measures
from disagg.replay.traces.trace import NOBODY
from disagg.replay.workload import Plan, Planned


class EndpointLost(DisaggError):
    """It cannot be reached, or serves no model."""


@dataclass(frozen=True)
class Endpoint:
    """`vocabulary`: ids below it are its model's. `request_s`: the longest that an answer may take."""

    url: str
    model: str = ""  # empty: the first that it names
    key: str = ""
    vocabulary: int = 32_000
    request_s: float = 600.0

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass
class _Replay:
    endpoint: Endpoint
    model: str
    block_tokens: int
    session: aiohttp.ClientSession
    followers: dict[int, list[Planned]]
    answered: list[Answered] = field(default_factory=list)
    gaps: list[tuple[float, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def one(self, planned: Planned, due_s: float) -> None:
        """At its time, and then those that come after it, at theirs."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(due_s - loop.time())
        body = {
            "model": self.model,
            "prompt": prompt_ids(planned, self.block_tokens, self.endpoint.vocabulary),
            "max_tokens": planned.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = self.endpoint.headers | ({"x-session-id": planned.session} if planned.session else {})
        due_s = max(due_s, loop.time())  # making the prompt is not the endpoint's work
        try:
            timed = await ask(self.session, self.endpoint.url, body, headers)
            self._note(planned, due_s, timed)
        except NoAnswer as error:
            self.failures.append(str(error))
        after = [self.one(each, loop.time() + each.at_s) for each in self.followers.get(planned.number, ())]
        await asyncio.gather(*after)

    def _note(self, planned: Planned, due_s: float, timed: Timed) -> None:
        self.gaps += timed.gaps
        self.answered.append(
            Answered(
                due_s,
                timed.first_s,
                timed.ended_s,
                planned.prompt_tokens,
                timed.output_tokens or planned.output_tokens,
                timed.cached_tokens,
                planned.ideal_tokens,
            )
        )


async def replay_on(endpoint: Endpoint, plan: Plan, block_tokens: int, slo: Slo) -> tuple[Measures, Sequence[str]]:
    """Returns also what became of requests without an answer. Raises EndpointLost."""
    followers: dict[int, list[Planned]] = defaultdict(list)
    for each in plan.requests:
        if each.after != NOBODY:
            followers[each.after].append(each)
    limit = aiohttp.ClientTimeout(total=endpoint.request_s)
    async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:
        model = endpoint.model or await _model_of(endpoint, session)
        replay = _Replay(endpoint, model, block_tokens, session, followers)
        start_s = asyncio.get_running_loop().time()
        first = [replay.one(each, start_s + each.at_s) for each in plan.requests if each.after == NOBODY]
        await asyncio.gather(*first)
    return measures(replay.answered, replay.gaps, slo, len(replay.failures), Told()), replay.failures


async def _model_of(endpoint: Endpoint, session: aiohttp.ClientSession) -> str:
    try:
        async with session.get(f"{endpoint.url}/v1/models", headers=endpoint.headers) as response:
            models = (await response.json())["data"]
            return str(models[0]["id"])
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
        what = f"names no model: {type(error).__name__}: {error}"
        raise EndpointLost(endpoint.url, what, "see that it serves, or say --model") from error
