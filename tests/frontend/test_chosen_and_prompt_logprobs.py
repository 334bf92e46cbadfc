"""prompt_logprobs as vLLM has it, token_ids_logprob as SGLang's /generate has it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from disagg.plane.messages import TokenLogprobs
from disagg.tokenizer.codec import Codec
from tests.frontend.scripted import MODEL, Running, ScriptedBackend, ask, exchange, http_request, serving

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"


async def tells(running: Running) -> None:
    """What an engine would, of all that is asked for."""
    request, asks = running.request, running.request.asks

    def of(token_id: int, *, is_first: bool = False) -> TokenLogprobs:
        top = [(65 + at, -1.0 - at) for at in range(asks["top_logprobs_num"])]
        chosen = [(each, -float(each)) for each in asks.get("token_ids_logprob", ())]
        return TokenLogprobs(token_id, None, [], []) if is_first else TokenLogprobs(token_id, -9.0, top, chosen)

    if "logprob_start_len" in asks:
        request.prompt_logprobs = [of(each, is_first=not at) for at, each in enumerate(request.prompt_ids)]
    if "return_logprob" in asks:
        request.logprobs += [of(65), of(66)]
    await running.say("A", [65])
    await running.say("B", [66])
    await running.say("", [], "length")


async def asked(codec: Codec, path: str, **body: Any) -> Any:
    backend = ScriptedBackend(tells)
    async with serving(backend, codec) as frontend:
        if path == "/generate":
            data = json.dumps({"model": MODEL, **body}).encode()
            answer = await exchange(frontend.port, http_request("POST", path, data))
        else:
            answer = await exchange(frontend.port, ask(path, **body))
    return answer


@pytest.mark.parametrize("count", [0, 2])
async def test_the_prompts_logprobs_by_id(codec: Codec, count: int) -> None:
    text = (await asked(codec, TEXT, prompt=[65, 72], prompt_logprobs=count)).json["choices"][0]
    likeliest = {str(65 + at): (-1.0 - at, at + 1) for at in range(count)}
    found = text["prompt_logprobs"]
    assert found[0] is None
    assert {each: (said["logprob"], said["rank"]) for each, said in found[1].items()} == likeliest | {
        "72": (-9.0, None)
    }
    assert found[1]["72"]["decoded_token"] == codec.texts.token_text(72)[0]
    assert (text["logprobs"], text["text"]) == (None, "AB")


async def test_of_a_chat_they_stand_beside_its_choices(codec: Codec) -> None:
    answer = (await asked(codec, CHAT, prompt_logprobs=1)).json
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["choices"][0]["logprobs"] is None
    both = (await asked(codec, CHAT, prompt_logprobs=3, logprobs=True, top_logprobs=1)).json
    assert [len(each["top_logprobs"]) for each in both["choices"][0]["logprobs"]["content"]] == [1, 1]
    assert len(both["prompt_logprobs"][-1]) == 4
    assert "prompt_logprobs" not in (await asked(codec, CHAT)).json


@pytest.mark.parametrize(
    "body", [{"prompt_logprobs": 1, "stream": True}, {"prompt_logprobs": 21}, {"prompt_logprobs": -1}]
)
async def test_where_they_cannot_be_had(codec: Codec, body: dict[str, Any]) -> None:
    answer = await asked(codec, CHAT, **body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "prompt_logprobs")


@pytest.mark.parametrize("stream", [False, True])
async def test_chosen_ids_in_the_place_of_each_token(codec: Codec, stream: bool) -> None:
    body = {"input_ids": [1, 2], "token_ids_logprob": [5, 7], "return_logprob": True, "stream": stream}
    answer = await asked(codec, "/generate", **body)
    meta = (json.loads(answer.events[-2]) if stream else answer.json)["meta_info"]
    assert meta["output_token_ids_logprobs"] == [[[-5.0, 5, None], [-7.0, 7, None]]] * 2
    assert meta["input_token_ids_logprobs"] == []  # as SGLang says it


async def test_chosen_ids_of_the_prompt_and_with_texts(codec: Codec) -> None:
    body = {"input_ids": [1, 2], "token_ids_logprob": [65], "return_logprob": True, "logprob_start_len": 0}
    meta = (await asked(codec, "/generate", **body, return_text_in_logprobs=True)).json["meta_info"]
    assert meta["input_token_ids_logprobs"] == [None, [[-65.0, 65, codec.texts.token_text(65)[0]]]]


async def test_without_return_logprob_they_ask_for_nothing(codec: Codec) -> None:
    meta = (await asked(codec, "/generate", input_ids=[1, 2], token_ids_logprob=[5])).json["meta_info"]
    assert "output_token_ids_logprobs" not in meta


@pytest.mark.parametrize("ids", [[259], [-1], ["x"], 5, [[5]], [1] * 129])
async def test_ids_that_would_end_a_scheduler(codec: Codec, ids: Any) -> None:
    answer = await asked(codec, "/generate", input_ids=[1, 2], token_ids_logprob=ids, return_logprob=True)
    assert (answer.status, answer.json["error"]["param"][:17]) == (400, "token_ids_logprob")
