"""What clients ask beside plain text, on the card: prefill and decode give what one aggregated engine gives.

Way:   two deployments of one model, PD and aggregated -> each question alone, to both -> compared; then all of them
       together, over and over, to the pair: every answer is well formed, and no engine is in another life afterwards
Out:   results/features.json: a row a question: what was compared, what differs (first difference), the largest
       difference of two logprobs
Fails: status 1 where an answer is no 200, is not what its constraint wants, or an engine died. Different tokens are
       told and do not fail: on a card two batches may round otherwise

Run:   python3 -m benchmarks.gpu.features
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.gpu.places import aggregated_config, profile, write_result
from benchmarks.gpu.servers import Server, incarnations, only, ours, until_ready

START_S, ANSWER_S = 240.0, 120.0
TOGETHER, ROUNDS = 24, 8
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = "The capital of France is"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "sports": {"type": "array", "items": {"enum": ["tennis", "golf"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "sports"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}
THINKS = {"type": "tag", "begin": "<think>", "content": {"type": "regex", "pattern": "[a-z ]{3,12}"}, "end": "</think>"}
SEEDED = {"temperature": 0.7, "seed": 5}
Check = Callable[[str], bool]


@dataclass(frozen=True)
class Question:
    name: str
    path: str
    fields: dict[str, Any]
    holds: Check = bool  # of the text of each choice


def _is_person(text: str) -> bool:
    said = json.loads(text)
    return list(said) == ["name", "sports"] and set(said["sports"]) <= {"tennis", "golf"}


def _matches(pattern: str) -> Check:
    return lambda text: re.fullmatch(pattern, text) is not None


QUESTIONS = (
    Question("json_schema", CHAT, {"response_format": STRICT}, _is_person),
    Question("json_schema, seeded", CHAT, {"response_format": STRICT, **SEEDED}, _is_person),
    Question("json_schema, logprobs", CHAT, {"response_format": STRICT, "logprobs": True}, _is_person),
    Question("json_schema, n=4", CHAT, {"response_format": STRICT, "n": 4, **SEEDED}, _is_person),
    Question(
        "regex", CHAT, {"regex": r"(red|green) and (blue|yellow)\."}, _matches(r"(red|green) and (blue|yellow)\.")
    ),
    Question("ebnf", CHAT, {"ebnf": 'root ::= "Hello " ("Bob" | "Eve") "!"'}, _matches("Hello (Bob|Eve)!")),
    Question(
        "structural_tag",
        CHAT,
        {"response_format": {"type": "structural_tag", "format": THINKS}},
        _matches("<think>[a-z ]{3,12}</think>"),
    ),
    Question("guided_choice", COMPLETIONS, {"guided_choice": ["not yet.", "never!"]}, _matches(r"not yet\.|never!")),
    Question("logprobs of a chat", CHAT, {"logprobs": True, "top_logprobs": 20}),
    Question("logprobs, seeded", COMPLETIONS, {"logprobs": 5, **SEEDED}),
    Question("echo and logprobs", COMPLETIONS, {"echo": True, "logprobs": 3}),
    Question("echo alone, no token", COMPLETIONS, {"echo": True, "logprobs": 1, "max_tokens": 0}),
    Question("n=4, seeded", COMPLETIONS, {"n": 4, **SEEDED}),
    Question("best_of", COMPLETIONS, {"n": 2, "best_of": 4, **SEEDED}),
    Question("sixteen prompts", COMPLETIONS, {"prompt": [f"{PROMPT} {number}" for number in range(16)]}),
    Question("min_tokens", COMPLETIONS, {"min_tokens": 30}),
    Question("stop_regex", COMPLETIONS, {"stop_regex": r"[.!?]\s*$", "max_tokens": 60}),
    Question("logit_bias", COMPLETIONS, {"logit_bias": {"260": 100}, "max_tokens": 4}),
    Question("penalties", COMPLETIONS, {"frequency_penalty": 1.2, "presence_penalty": 0.5, "repetition_penalty": 1.1}),
)


def main() -> int:
    it = profile()
    model = it.token_models[0]
    pd, one = only([ours(f"pd-{model}", it.config, model), ours(f"agg-{model}", aggregated_config(it.config), model)])
    until_ready([pd, one], START_S)
    result = asyncio.run(_ask_all(pd, one))
    write_result("features", result)
    for row in result["alone"]:
        print(f"{row['question']:<24}{row['found']}", flush=True)
    print(json.dumps(result["together"]))
    failed = [row for row in result["alone"] if row["wrong"]]
    return 1 if failed or result["together"]["wrong"] or result["together"]["died"] else 0


async def _ask_all(pd: Server, one: Server) -> dict[str, Any]:
    before = incarnations(pd, one)
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S, limits=httpx.Limits(max_connections=64)) as client:
        alone = [_compared(each, await _ask(client, pd, each), await _ask(client, one, each)) for each in QUESTIONS]
        places = asyncio.Semaphore(TOGETHER)

        async def ask_among_others(question: Question) -> str:
            async with places:
                answer = await _ask(client, pd, question)
            return f"{question.name}: {wrong}" if (wrong := _wrong(question, answer)) else ""

        asked = [ask_among_others(question) for _ in range(ROUNDS) for question in QUESTIONS]
        wrong = [each for each in await asyncio.gather(*asked) if each]
    after = incarnations(pd, one)
    died = [name for name, life in before.items() if after.get(name) != life]
    return {"alone": alone, "together": {"asked": len(asked), "wrong": wrong, "died": died}}


async def _ask(client: httpx.AsyncClient, server: Server, question: Question) -> Any:
    words = {"prompt": PROMPT} if question.path == COMPLETIONS else {}
    chat = {} if words else {"messages": [{"role": "user", "content": "Describe Roger Federer."}]}
    body = {"model": "bench", "temperature": 0, "max_tokens": 100, "return_token_ids": True} | words | chat
    answer = await client.post(server.url + question.path, json=body | question.fields)
    if answer.status_code != httpx.codes.OK:
        return {"error": f"{answer.status_code}: {answer.text[:300]}"}
    return answer.json()


def _wrong(question: Question, answer: Any) -> str:
    """What is wrong with it; empty: nothing."""
    if "error" in answer:
        return str(answer["error"])
    for text in _texts(answer):
        try:
            if not question.holds(text):
                return f"not what was asked for: {text[:200]!r}"
        except ValueError as error:
            return f"{error}: {text[:200]!r}"
    return ""


def _texts(answer: Any) -> list[str]:
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in answer["choices"]]


def _compared(question: Question, joined: Any, single: Any) -> dict[str, Any]:
    wrong = _wrong(question, joined) or _wrong(question, single)
    if wrong:
        return {"question": question.name, "wrong": wrong, "found": f"WRONG: {wrong}"}
    same = [a["token_ids"] == b["token_ids"] for a, b in zip(joined["choices"], single["choices"], strict=True)]
    found = f"{sum(same)} of {len(same)} choices have the same tokens"
    row: dict[str, Any] = {"question": question.name, "wrong": "", "same": sum(same), "choices": len(same)}
    if all(same) and (gaps := [abs(a - b) for a, b in zip(_numbers(joined), _numbers(single), strict=True)]):
        row["logprobs"], row["logprob_gap"] = len(gaps), max(gaps)
        found += f", {len(gaps)} logprobs at most {max(gaps):.1e} apart"
    if not all(same):
        at = same.index(False)
        row["texts"] = [_texts(answer)[at][:300] for answer in (joined, single)]
    return {**row, "found": found}


def _numbers(answer: Any) -> list[float]:
    """Every logprob in it, in order."""
    return [number for choice in answer["choices"] for number in _floats(choice.get("logprobs"))]


def _floats(value: Any) -> Iterator[float]:
    """Those under a key that says logprob, or in a map of a token to its logprob."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _floats(each)
    elif isinstance(value, list):
        for each in value:
            yield from _floats(each)


if __name__ == "__main__":
    sys.exit(main())
