"""Answers of chats and of text completions from parts: today's bytes where they are plain, OpenAI's words for more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from answers import CALLS, ERROR, USAGE, Case, cases, openai_client, streamed, whole
from hypothesis import given, settings
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from disagg.frontend.chat_form import ChatStream, ChatWhole
from disagg.frontend.completion_form import Saying
from disagg.frontend.parts import CallArguments, CallBegins, ChoiceAnswer, Content, StreamForm, TokenLogprobs
from disagg.frontend.text_form import TextCompletionStream, TextCompletionWhole

GOLDEN = Path(__file__).parent / "golden"
ID = "0001" + "0" * 28
CHAT_PROMPT = [257, 84, 82, 68, 81, 198, 39, 72, 258, 198, 257, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198]
PROMPTS = {"chat": CHAT_PROMPT, "text": [39, 72]}
TEXTS = ['He"l\n', "", "lo 🎾"]
TOKENS = {0: ("H", b"H"), 1: ("\ufffd", b"\xf0\x9f"), 2: ("\ufffd", b"\x8e\xbe"), 3: ("!", b"!")}
LOGPROBS = [TokenLogprobs(each, -0.5, [(each, -0.5), (3, -2.0)]) for each in range(3)]


def form(kind: str, **more: Any) -> StreamForm:
    saying = Saying(ID, 0, "scripted", **more)
    return ChatStream(saying) if kind == "chat" else TextCompletionStream(saying)


def said(form: StreamForm, usage: dict[str, Any], texts: list[str] = TEXTS) -> bytes:
    data = form.begins(0)
    for token_id, text in enumerate(texts):
        data += form.piece(0, [Content(text)] if text else [], [token_id], [])
    return data + form.choice_ends(ChoiceAnswer(0, "".join(texts))) + form.ends(usage)


def chunks_of(data: bytes) -> list[Any]:
    *events, done, rest = data.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def usage_of(kind: str, output_tokens: int = 3) -> dict[str, Any]:
    prompt_tokens = len(PROMPTS[kind])
    told = {"prompt_tokens": prompt_tokens, "completion_tokens": output_tokens}
    return {**told, "total_tokens": prompt_tokens + output_tokens, "prompt_tokens_details": {"cached_tokens": 0}}


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("variant", ["", "_usage", "_ids"])
def test_plain_streams_have_the_golden_bytes(kind: str, variant: str) -> None:
    more: dict[str, Any] = {"include_usage": variant == "_usage"}
    if variant == "_ids":
        more["prompt_ids"] = lambda _: PROMPTS[kind]
    assert said(form(kind, **more), usage_of(kind)) == (GOLDEN / f"{kind}{variant}.sse").read_bytes()


WHOLES = {
    "chat": '{"id":"chatcmpl-ID","object":"chat.completion","created":0,"model":"scripted","choices":[{"index":0,'
    '"message":{"role":"assistant","content":"TEXT","refusal":null},"logprobs":null,"finish_reason":"stop","matched_stop":nullIDS}]PROMPT,'
    '"usage":USAGE}',
    "text": '{"id":"cmpl-ID","object":"text_completion","created":0,"model":"scripted","choices":[{"index":0,'
    '"text":"TEXT","logprobs":null,"finish_reason":"stop","matched_stop":nullPROMPTIDS}],"usage":USAGE}',
}


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("with_ids", [True, False])
def test_plain_wholes_have_these_bytes(kind: str, with_ids: bool) -> None:
    usage = json.dumps(usage_of(kind), separators=(",", ":"))
    prompt = ',"prompt_token_ids":' + json.dumps(PROMPTS[kind], separators=(",", ":")) if with_ids else ""
    want = WHOLES[kind].replace("PROMPT", prompt).replace("IDS", ',"token_ids":[0,1,2]' if with_ids else "")
    want = want.replace("ID", ID).replace("TEXT", 'He\\"l\\nlo 🎾').replace("USAGE", usage)
    saying = Saying(ID, 0, "scripted", prompt_ids=(lambda _: PROMPTS[kind]) if with_ids else None)
    whole_form = ChatWhole(saying) if kind == "chat" else TextCompletionWhole(saying)
    answer = ChoiceAnswer(0, "".join(TEXTS), token_ids=[0, 1, 2])
    assert whole_form.whole([answer], usage_of(kind)).decode() == want


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("include_usage", [True, False])
def test_each_chunk_tells_the_usage_so_far(kind: str, include_usage: bool) -> None:
    counts = iter(range(99))
    more = {"usage_so_far": lambda: usage_of(kind, next(counts)), "include_usage": include_usage}
    found = chunks_of(said(form(kind, **more), usage_of(kind)))
    told = [chunk["usage"]["completion_tokens"] for chunk in found]
    chunks = 4 if kind == "chat" else 3
    assert told == [*range(chunks), *([3] if include_usage else [])]
    assert (found[-1]["choices"] == []) is include_usage


def collected(found: list[Any]) -> dict[int, dict[str, Any]]:
    """Chunks as an OpenAI client adds them up, by choice."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in found:
        ChatCompletionChunk.model_validate(chunk)
        for choice in chunk["choices"]:
            message = choices.setdefault(choice["index"], {"content": "", "reasoning_content": "", "tool_calls": []})
            for name, value in choice["delta"].items():
                if name == "tool_calls":
                    (call,) = value
                    if "id" in call:
                        assert call["index"] == len(message["tool_calls"])
                        message["tool_calls"].append(
                            {"id": call["id"], "type": call["type"], "function": {**call["function"]}}
                        )
                    else:
                        message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
                elif name == "role":
                    assert message["content"] == ""
                else:
                    message[name] += value
            message["finish_reason"] = choice["finish_reason"]
    return choices


@settings(max_examples=100, deadline=None)
@given(cases())
def test_a_chats_stream_comes_to_its_whole_answer(case: Case) -> None:
    found = collected(chunks_of(streamed(form("chat"), case)))[0]
    answer = whole(ChatWhole(Saying(ID, 0, "scripted")), case)
    message = answer["choices"][0]["message"]
    ChatCompletion.model_validate(answer)
    assert found["content"] == (message["content"] or "") == case.answer.text
    assert found["reasoning_content"] == message.get("reasoning_content", "") == case.answer.reasoning
    assert found["tool_calls"] == message.get("tool_calls", [])
    assert found["finish_reason"] == answer["choices"][0]["finish_reason"] == case.finish_reason
    assert (message["content"] is None) is (bool(case.answer.calls) and not case.answer.text)


def test_the_clients_helper_adds_calls_up() -> None:
    data = streamed(form("chat", include_usage=True), CALLS)
    asked: Any = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    with openai_client(data).chat.completions.stream(**asked) as stream:
        completion = stream.get_final_completion()
    calls = completion.choices[0].message.tool_calls or []
    assert [(call.id, call.function.name, call.function.arguments) for call in calls] == [
        (call.id, call.name, call.arguments) for call in CALLS.answer.calls
    ]
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.usage is not None
    assert completion.usage.total_tokens == USAGE["total_tokens"]


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_choices_interleave_each_with_its_index_and_its_prompt(kind: str) -> None:
    prompts = [[1], [2]]
    stream = form(kind, prompt_ids=lambda index: prompts[index if kind == "text" else 0])
    data = stream.begins(0) + stream.begins(1) + stream.piece(1, [Content("b")], [5], [])
    data += stream.piece(0, [Content("a")], [4], []) + stream.choice_ends(ChoiceAnswer(1, "b"))
    found = chunks_of(
        data + stream.piece(0, [Content("A")], [6], []) + stream.choice_ends(ChoiceAnswer(0, "aA")) + stream.ends({})
    )
    texts: dict[int, str] = {0: "", 1: ""}
    said_prompts = []
    for chunk in found:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "") if kind == "chat" else choice["text"]
        said_prompts += [place["prompt_token_ids"] for place in (chunk, choice) if "prompt_token_ids" in place]
    assert texts == {0: "aA", 1: "b"}
    assert said_prompts == ([[1]] if kind == "chat" else [[2], [1]])


def test_logprobs_of_a_chat() -> None:
    case = Case([[Content("H")], [], [Content("🎾")]], logprobs=[[each] for each in LOGPROBS])
    found = chunks_of(streamed(form("chat", token_text=TOKENS.__getitem__), case))
    told = [chunk["choices"][0]["logprobs"] for chunk in found]
    answer = whole(ChatWhole(Saying(ID, 0, "scripted", token_text=TOKENS.__getitem__)), case)
    ChatCompletion.model_validate(answer)
    assert (told[0], told[-1]) == (None, None)
    assert [each for some in told[1:-1] for each in some["content"]] == answer["choices"][0]["logprobs"]["content"]
    assert answer["choices"][0]["logprobs"]["content"][1] == {
        "token": "\ufffd",
        "logprob": -0.5,
        "bytes": [0xF0, 0x9F],  # its own, though its text is half a character
        "top_logprobs": [
            {"token": "\ufffd", "logprob": -0.5, "bytes": [0xF0, 0x9F]},
            {"token": "!", "logprob": -2.0, "bytes": [0x21]},
        ],
    }


def test_logprobs_of_a_text_say_where_each_token_begins() -> None:
    logprobs = [*LOGPROBS, TokenLogprobs(3, float("-inf"))]
    case = Case([[Content("H")], [], [Content("🎾!")]], logprobs=[[logprobs[0]], [logprobs[1]], logprobs[2:]])
    found = chunks_of(streamed(form("text", token_text=TOKENS.__getitem__), case))
    told = [chunk["choices"][0]["logprobs"] for chunk in found[:-1]]
    answer = whole(TextCompletionWhole(Saying(ID, 0, "scripted", token_text=TOKENS.__getitem__)), case)
    Completion.model_validate({**answer, "choices": [{**answer["choices"][0], "logprobs": None}]})
    want = answer["choices"][0]["logprobs"]
    assert want == {
        "tokens": ["H", "\ufffd", "\ufffd", "!"],
        "token_logprobs": [-0.5, -0.5, -0.5, -9999.0],
        "top_logprobs": [{"H": -0.5, "!": -2.0}, {"\ufffd": -0.5, "!": -2.0}, {"\ufffd": -0.5, "!": -2.0}, None],
        "text_offset": [0, 1, 1, 2],
    }
    assert {name: [each for some in told for each in some[name]] for name in want} == want


def test_an_echo_begins_with_the_prompt_and_its_logprobs() -> None:
    prompt = [TokenLogprobs(0, None), TokenLogprobs(3, -1.0)]
    stream = form("text", token_text=TOKENS.__getitem__)
    data = (
        stream.begins(0)
        + stream.piece(0, [Content("H!")], [], prompt)
        + stream.piece(0, [Content("H")], [0], LOGPROBS[:1])
    )
    answer = ChoiceAnswer(0, "H!H", logprobs=LOGPROBS[:1], prompt_logprobs=prompt)
    first, second, _ = chunks_of(data + stream.choice_ends(answer) + stream.ends({}))
    (choice,) = whole_text(answer)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -0.5]
    assert choice["logprobs"]["top_logprobs"] == [None, None, {"H": -0.5, "!": -2.0}]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert first["choices"][0]["logprobs"]["text_offset"] == [0, 1]
    assert second["choices"][0]["logprobs"]["text_offset"] == [2]


def whole_text(answer: ChoiceAnswer) -> Any:
    form = TextCompletionWhole(Saying(ID, 0, "scripted", token_text=TOKENS.__getitem__))
    return json.loads(form.whole([answer], USAGE))


@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize("matched", ["###", 2, None])
def test_the_stop_that_was_met_stands_in_a_choice_that_ended(kind: str, matched: str | int | None) -> None:
    case = Case([[Content("Hi")]], "stop" if matched else "length", matched)
    found = chunks_of(streamed(form(kind), case))
    told = [chunk["choices"][0].get("matched_stop", "absent") for chunk in found]
    assert told == ["absent"] * (len(found) - 1) + [matched]
    saying = Saying(ID, 0, "scripted")
    answer = whole(ChatWhole(saying) if kind == "chat" else TextCompletionWhole(saying), case)
    assert answer["choices"][0]["matched_stop"] == matched


def test_ids_and_logprobs_of_a_piece_of_several_parts_are_told_once() -> None:
    stream = form("chat", prompt_ids=lambda _: [1], token_text=TOKENS.__getitem__)
    stream.begins(0)
    data = stream.piece(0, [Content(""), CallBegins(0, "a", "b"), CallArguments(0, "{}")], [0], LOGPROBS[:1])
    first, second = (json.loads(each.removeprefix(b"data: "))["choices"][0] for each in data.split(b"\n\n")[:-1])
    assert (first["token_ids"], len(first["logprobs"]["content"])) == ([0], 1)
    assert (second["token_ids"], second["logprobs"]) == ([], None)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_that_breaks_ends_without_done(kind: str) -> None:
    assert form(kind).fails(ERROR) == b"data: " + ERROR + b"\n\n"
