"""What clients ask beside plain text: prefill + decode gives the answer of one engine, and what was asked for.

And the whole API, endpoint by endpoint (asked_three_ways.py), beside SGLang's own server: what differs from its answers
is what disagg/frontend/differences.py names.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from asked_three_ways import ROWS, Row
from chat_styles import QWEN
from compared import asked, differing, has_chunks_of_several_tokens
from deployment import Deployment, serving
from own_server import OwnServer, starting
from random_schemas import random_schema
from refused_three_ways import REFUSED

from benchmarks.gpu.features import PROMPT, SCHEMA, SEEDED, STRICT, THINKS
from disagg.frontend.differences import DIFFERENCES
from tests.todays import todays

# What is asked, and what the whole text then matches ("" where it must be JSON of SCHEMA).
CONSTRAINED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": STRICT}, ""),
    ({"response_format": STRICT, **SEEDED}, ""),
    ({"guided_json": SCHEMA}, ""),
    ({"regex": r"(red|green) and (blue|yellow)\."}, r"(red|green) and (blue|yellow)\."),
    ({"guided_choice": ["not yet.", "never!"]}, r"not yet\.|never!"),
    ({"ebnf": 'root ::= "Hello " name "!"\nname ::= "Bob" | "Eve"'}, "Hello (Bob|Eve)!"),
    ({"response_format": {"type": "structural_tag", "format": THINKS}}, "<think>[a-z ]{3,12}</think>"),
]


pytestmark = pytest.mark.timeout(1500)  # three servers start, and answer some 100 requests each; on busy cores
TOOL_PARSER = "hermes"
QUEUE = "deadlines.queue_s=300"
ALL_ROWS = [*ROWS, *REFUSED]
TODAYS = todays(ALL_ROWS, len(ALL_ROWS) // 2)
SCHEMAS, SCHEMAS_A_DAY = 200, 50
AT_ONCE = 4  # rows, each of three servers
AGAIN = 5


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's own shows no tools."""
    file = tmp_path_factory.mktemp("template") / "tools.jinja"
    file.write_text(QWEN)
    return file


@pytest.fixture(scope="module")
def own_starting(template: Path) -> Iterator[OwnServer]:
    more = ("--chat-template", str(template), "--tool-call-parser", TOOL_PARSER, "--enable-cache-report")
    with starting("smollm2", *more) as server:
        yield server


@pytest.fixture(scope="module")
def sets(template: Path, own_starting: OwnServer) -> list[str]:
    """What both deployments are started with, while SGLang's own server starts. A queue as patient as its own."""
    return ["ray.address=local", f"model.tool_call_parser={TOOL_PARSER}", f"model.chat_template={template}", QUEUE]


@pytest.fixture(scope="module")
def pair(sets: list[str]) -> Iterator[Deployment]:
    """Its engines' hosts have the tokenizer, and those of `aggregated` have none: that is to make no difference."""
    with serving("local-cpu", *sets, "model.tokenization=engine") as deployment:
        yield deployment


@pytest.fixture(scope="module")
def aggregated(sets: list[str]) -> Iterator[Deployment]:
    with serving("local-cpu-aggregated", *sets) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def answered(pair: Deployment, aggregated: Deployment, own_starting: OwnServer) -> dict[str, list[dict[str, Any]]]:
    """Each row's answer: of SGLang's own server, of one engine, of prefill + decode."""
    urls = [own_starting.wait_until_ready().url, aggregated.url, pair.url]
    each_its_own = httpx.Limits(max_keepalive_connections=0)  # uvicorn ends an idle one as its next request leaves
    with (
        httpx.Client(trust_env=False, limits=each_its_own) as client,
        ThreadPoolExecutor(AT_ONCE * len(urls)) as threads,
    ):
        asking = [[threads.submit(asked, client, url, row.path, row.body) for url in urls] for row in TODAYS]
        answers = [[each.result() for each in of_row] for of_row in asking]
        for row, of_row in zip(TODAYS, answers, strict=True):
            for _ in range(AGAIN):
                if has_chunks_of_several_tokens(of_row[0]):
                    of_row[0] = asked(client, urls[0], row.path, row.body)
        return {row.id: of_row for row, of_row in zip(TODAYS, answers, strict=True)}


def chat(deployment: Deployment, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Describe Roger Federer."}]
    body = {"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 60, "return_token_ids": True}
    answer = httpx.post(f"{deployment.url}/v1/chat/completions", json=body | fields, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return {"text": choice["message"]["content"], "ids": choice["token_ids"], "reason": choice["finish_reason"]}


@pytest.mark.parametrize(("fields", "pattern"), CONSTRAINED, ids=lambda value: str(value)[:40])
def test_a_constrained_answer_is_what_was_asked_for_and_that_of_one_engine(
    pair: Deployment, aggregated: Deployment, fields: dict[str, Any], pattern: str
) -> None:
    answer = chat(pair, **fields)
    assert answer["reason"] == "stop"
    if pattern:
        assert re.fullmatch(pattern, answer["text"]), answer
    else:
        said = json.loads(answer["text"])
        assert list(said) == ["name", "sports"]
        assert set(said["sports"]) <= {"tennis", "golf"}
    assert answer == chat(aggregated, **fields)


def test_constrained_and_plain_answers_side_by_side_are_those_that_each_gets_alone(pair: Deployment) -> None:
    asked = [*todays([fields for fields, _ in CONSTRAINED], 3), {"max_tokens": 20}]
    alone = [chat(pair, **fields) for fields in asked]
    with ThreadPoolExecutor(len(asked)) as together:
        assert list(together.map(lambda fields: chat(pair, **fields), asked)) == alone


@pytest.mark.parametrize(
    ("fields", "why"),
    [({"regex": "(?=a)b"}, "Lookahead"), ({"json_schema": {"type": "nonsense"}}, "nonsense"), ({"ebnf": "["}, "ebnf")],
)
def test_a_grammar_that_is_none_is_the_clients_400_at_once(
    pair: Deployment, aggregated: Deployment, fields: dict[str, Any], why: str
) -> None:
    for deployment in (pair, aggregated):
        body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": 5, **fields}
        answer = httpx.post(f"{deployment.url}/v1/completions", json=body, timeout=20, trust_env=False)
        assert answer.status_code == 400
        said = answer.json()["error"]["message"]
        assert why in said
        assert not re.search(r"\d\d:\d\d:\d\d|[.]cc:|\n", said), "the reason alone"
    assert pair.complete(PROMPT, max_tokens=3)["choices"][0]["finish_reason"] == "length"


def test_single_tokens_are_steered_as_by_one_engine(pair: Deployment, aggregated: Deployment) -> None:
    def ask(deployment: Deployment, **fields: Any) -> dict[str, Any]:
        fields = {"max_tokens": 12, "return_token_ids": True, **fields}
        choice: dict[str, Any] = deployment.complete(PROMPT, **fields)["choices"][0]
        return {name: choice[name] for name in ("text", "token_ids", "finish_reason")}

    plain = ask(pair)
    first, fifth = plain["token_ids"][0], plain["token_ids"][4]
    asked: list[dict[str, Any]] = [
        {"stop_token_ids": [fifth]},
        {"stop_token_ids": [first]},
        {"stop_token_ids": [fifth], "no_stop_trim": True},
        {"stop_token_ids": [fifth], "min_tokens": 8},
        {"stop_token_ids": [first], "min_tokens": 8},
        {"stop_token_ids": [fifth], "ignore_eos": True},
        {"stop_regex": r"[.!?]\s*$"},
        {"logit_bias": {str(first): -100}},
        {"logit_bias": {str(fifth): 100}, "max_tokens": 3},
    ]
    answers = [ask(pair, **fields) for fields in asked]
    assert answers == [ask(aggregated, **fields) for fields in asked]
    ends = [(answer["finish_reason"], len(answer["token_ids"])) for answer in answers]
    assert ends[:3] == [("stop", 5), ("stop", 1), ("stop", 5)]
    assert all(end == ("length", 12) or (end[0] == "stop" and end[1] > 8) for end in ends[3:5])
    assert ends[5] == ("length", 12), "ignore_eos: SGLang then looks for no stop token"
    assert ends[6][0] == "stop"
    assert answers[6]["text"].rstrip()[-1] in ".!?"
    assert answers[0]["text"] == answers[2]["text"][: len(answers[0]["text"])] != answers[2]["text"]
    assert answers[7]["token_ids"][0] != first
    assert answers[8]["token_ids"] == [fifth] * 3


def ask(deployment: Deployment, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{deployment.url}{path}", json={"model": "smollm2"} | body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def numbers(logprobs: dict[str, Any]) -> list[float | None]:
    return [
        *logprobs["token_logprobs"],
        *(each for top in logprobs["top_logprobs"] if top for each in sorted(top.values(), reverse=True)),
    ]


def test_echo_and_logprobs_are_those_of_one_engine(pair: Deployment, aggregated: Deployment) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "echo": True, "logprobs": 3}
    joined, one = (ask(each, "/v1/completions", **fields)["choices"][0] for each in (pair, aggregated))
    assert joined["text"] == one["text"]
    assert joined["text"].startswith(PROMPT)
    assert joined["logprobs"]["tokens"] == one["logprobs"]["tokens"]
    assert len(joined["logprobs"]["tokens"]) == 5 + 12
    assert numbers(joined["logprobs"]) == pytest.approx(numbers(one["logprobs"]), abs=1e-5)
    assert joined["logprobs"]["token_logprobs"][0] is None


def test_a_streams_logprobs_are_those_of_the_whole(pair: Deployment) -> None:
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
    fields |= {"logprobs": True, "top_logprobs": 2}
    whole = ask(pair, "/v1/chat/completions", **fields)["choices"][0]["logprobs"]["content"]
    body = {"model": "smollm2", "stream": True} | fields
    answer = httpx.post(f"{pair.url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    told = [each for chunk in chunks for each in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert [each["token"] for each in told] == [each["token"] for each in whole]
    assert [each["logprob"] for each in told] == pytest.approx([each["logprob"] for each in whole], abs=1e-5)


def test_many_samples_of_many_prompts(pair: Deployment, aggregated: Deployment) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(16)]
    greedy = {"prompt": prompts, "max_tokens": 8, "temperature": 0}
    joined, one = (ask(each, "/v1/completions", **greedy) for each in (pair, aggregated))
    assert [each["text"] for each in joined["choices"]] == [each["text"] for each in one["choices"]]
    assert joined["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    seeded = {"prompt": PROMPT, "max_tokens": 8, "n": 4, "seed": 11, "temperature": 0.9}
    four, again, others = (ask(each, "/v1/completions", **seeded) for each in (pair, pair, aggregated))
    texts = [each["text"] for each in four["choices"]]
    assert texts == [each["text"] for each in again["choices"]] == [each["text"] for each in others["choices"]]
    assert len(set(texts)) > 1
    assert [each["index"] for each in four["choices"]] == [0, 1, 2, 3]
    assert four["usage"]["prompt_tokens"] == 5


def test_all_apis_say_the_same_words(pair: Deployment) -> None:
    messages = [{"role": "user", "content": "Say hi"}]
    chat_text = chat(pair, messages=messages, max_tokens=10)["text"]
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", http_client=httpx.Client(trust_env=False)) as client:
        response = client.responses.create(model="smollm2", input="Say hi", max_output_tokens=10, temperature=0)
        going_on = client.responses.create(
            model="smollm2", input="And?", max_output_tokens=4, previous_response_id=response.id
        )
    assert (response.output_text, response.status) == (chat_text, "incomplete")
    assert response.usage is not None
    assert going_on.usage is not None
    assert going_on.usage.input_tokens > response.usage.input_tokens
    body = {"messages": messages, "max_tokens": 10, "temperature": 0}
    message = ask(pair, "/v1/messages", **body)
    assert (message["content"][0]["text"], message["stop_reason"]) == (chat_text, "max_tokens")
    counted = ask(pair, "/v1/messages/count_tokens", messages=messages)
    assert counted["input_tokens"] == response.usage.input_tokens
    native = {"text": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 6}, "return_logprob": True}
    generated = ask(pair, "/generate", **native)
    assert generated["text"] == pair.complete(PROMPT, max_tokens=6, temperature=0)["choices"][0]["text"]
    assert len(generated["meta_info"]["output_token_logprobs"]) == 6
    assert httpx.get(f"{pair.url}/health_generate", timeout=60, trust_env=False).status_code == 200


def test_strict_schemas_give_valid_json_each_time(pair: Deployment) -> None:
    chance = random.Random(7)
    schemas = todays([random_schema(chance) for _ in range(SCHEMAS)], SCHEMAS_A_DAY)

    def ask_for(schema: dict[str, Any]) -> dict[str, Any]:
        form = {"type": "json_schema", "json_schema": {"name": "made", "strict": True, "schema": schema}}
        return chat(pair, response_format=form, max_tokens=100)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(ask_for, schemas))
    for schema, answer in zip(schemas, answers, strict=True):
        assert answer["reason"] == "stop", (schema, answer)
        jsonschema.validate(json.loads(answer["text"]), schema)


@pytest.mark.parametrize("row", TODAYS, ids=lambda row: row.id)
def test_prefill_and_decode_answer_as_one_engine_and_as_sglangs_server_but_for_what_is_told(
    answered: dict[str, list[dict[str, Any]]], row: Row
) -> None:
    theirs, one, joined = answered[row.id]
    assert [each["failed"] for each in (theirs, one, joined) if "failed" in each] == []
    assert [str(each) for each in differing(one, joined)] == []
    told = [each for each in DIFFERENCES if each.rows]
    unexplained = [
        str(each)
        for each in differing(theirs, joined)
        if not any(difference.explains(row.id, each.field, each.theirs) for difference in told)
    ]
    assert unexplained == [], f"{row.body}"


def test_no_difference_is_told_that_is_none(answered: dict[str, list[dict[str, Any]]]) -> None:
    seen = [(row, each) for row, (theirs, _, joined) in answered.items() for each in differing(theirs, joined)]
    others = [row.id for row in ALL_ROWS if row not in TODAYS]  # one of them may be what shows it
    told = [
        difference
        for difference in DIFFERENCES
        if difference.rows and difference.is_always_seen and not any(re.search(difference.rows, row) for row in others)
    ]
    assert [
        difference.what
        for difference in told
        if not any(difference.explains(row, each.field, each.theirs) for row, each in seen)
    ] == []
