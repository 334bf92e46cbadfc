"""Reads an answer of any API, streamed or whole, and forgives nothing.

In:    the bytes of a body, the API's word, and what was asked of it
Out:   what was said, in words that are the same for a stream and for a whole answer
Fails: AssertionError with the event: framing, UTF-8, JSON with a name twice or a NaN, a payload that is not its
       API's, an index out of range, an order that the API does not have, a second end, an end that is missing
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import anthropic.types
import openai.types
import openai.types.chat
import openai.types.responses
from pydantic import TypeAdapter

DONE = "[DONE]"
NAMED = ("responses", "messages")  # their events have names


@dataclass
class Choice:
    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # name, arguments
    finish_reason: str = ""
    logprobs: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


@dataclass
class Asked:
    """What the strict reader has to know of a request."""

    choices: int = 1
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: bool = False


@dataclass
class Said:
    choices: dict[int, Choice] = field(default_factory=dict)
    output_tokens: int | None = None
    error: dict[str, Any] | None = None  # in the words of its API

    def of(self, index: int) -> Choice:
        return self.choices.setdefault(index, Choice())


def json_of(data: str | bytes) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in pairs}) == len(pairs), f"a name twice: {pairs}"
        return dict(pairs)

    def never(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    text = data.decode() if isinstance(data, bytes) else data
    return json.loads(text, object_pairs_hook=once, parse_constant=never)


def events(data: bytes, *, named: bool) -> list[tuple[str, str]]:
    """(name, data) of each event: one line `data:`, before it one `event:` where events have names, then a blank."""
    text = data.decode()  # valid UTF-8
    assert text.endswith("\n\n"), text[-80:]
    assert not re.search("[\r\x85\u2028\u2029]", text), "what some readers take for a line's end"
    found = []
    for block in text[:-2].split("\n\n"):
        match = re.fullmatch(r"event: ([a-z_.]+)\ndata: (.+)" if named else r"()data: (.+)", block)
        assert match is not None, f"no event: {block[:200]!r}"
        found.append((match[1], match[2]))
    return found


def read_stream(api: str, data: bytes, asked: Asked) -> Said:
    payloads = events(data, named=api in NAMED)
    if api in NAMED:
        said = [json_of(each) for _, each in payloads]
        assert [name for name, _ in payloads] == [each["type"] for each in said]
        found = {"responses": _responses, "messages": _messages}[api](said)
        assert asked.choices == 1
        return found
    *before, (_, last) = payloads
    assert all(each != DONE for _, each in before), "something follows [DONE]"
    if last != DONE:
        before.append(("", last))
    said = [json_of(each) for _, each in before]
    errors = [each for each in said if "error" in each]
    assert errors == ([] if last == DONE else said[-1:]), "an error and [DONE], or neither, or an error in between"
    chunks = said[: len(said) - len(errors)]
    found = _generate(chunks) if api == "generate" else _chunks(api, chunks, asked, is_whole=not errors)
    found.error = errors[0]["error"] if errors else None
    assert found.choices.keys() <= set(range(asked.choices)), found.choices.keys()
    if not errors:
        assert found.choices.keys() == set(range(asked.choices))
        assert all(each.finish_reason for each in found.choices.values())
    return found


@cache
def _shape(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _valid(kind: Any, payload: Any) -> None:
    _shape(kind).validate_python(payload)


# chat and text


def _chunks(api: str, chunks: list[dict[str, Any]], asked: Asked, *, is_whole: bool) -> Said:
    said = Said()
    kind = openai.types.chat.ChatCompletionChunk if api == "chat" else openai.types.Completion
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in chunks}) <= 1
    usage_at = [at for at, chunk in enumerate(chunks) if not chunk["choices"]]
    assert usage_at == ([len(chunks) - 1] if asked.include_usage and is_whole else []), "usage: last, and once"
    for at, chunk in enumerate(chunks):
        _valid(kind, _unfinished_is_allowed(chunk))
        _usage_is_where_it_was_asked(chunk, asked, is_last=at in usage_at)
        if usage := chunk.get("usage"):
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            assert usage["completion_tokens"] >= (said.output_tokens or 0), "usage goes back"
            said.output_tokens = usage["completion_tokens"]
        for each in chunk["choices"]:
            (_chat_choice if api == "chat" else _text_choice)(said, each)
    for choice in said.choices.values():
        _calls_are_whole(choice)
    return said


def _unfinished_is_allowed(chunk: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's class of a text completion has no chunk of its own: its finish_reason is never null."""
    choices = [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in chunk["choices"]]
    return {**chunk, "choices": choices} if chunk["object"] == "text_completion" else chunk


def _usage_is_where_it_was_asked(chunk: dict[str, Any], asked: Asked, *, is_last: bool) -> None:
    if is_last or asked.continuous_usage:
        assert chunk["usage"], chunk
    elif asked.include_usage:
        assert chunk["usage"] is None, chunk
    else:
        assert "usage" not in chunk, chunk


def _chat_choice(said: Said, each: dict[str, Any]) -> None:
    is_first, choice, delta = each["index"] not in said.choices, said.of(each["index"]), each["delta"]
    assert ("role" in delta) == is_first, f"the role: first, and once: {each}"
    assert not choice.finish_reason, f"it had ended: {each}"
    assert is_first or len(delta) <= 1, each
    choice.text += delta.get("content") or ""
    choice.reasoning += delta.get("reasoning_content") or ""
    for call in delta.get("tool_calls") or ():
        begins = "id" in call
        assert call["index"] == len(choice.calls) - (not begins), f"calls come one after the other: {each}"
        if begins:
            assert call["type"] == "function"
            assert call["id"]
            choice.calls.append((call["function"]["name"], ""))
        name, arguments = choice.calls[-1]
        choice.calls[-1] = name, arguments + call["function"]["arguments"]
    for token in (each["logprobs"] or {}).get("content") or ():
        choice.logprobs.append(token["logprob"])
        assert token["bytes"] is None or bytes(token["bytes"]).decode(errors="replace") == token["token"], token
    _ends(choice, each, is_empty=not delta)


def _text_choice(said: Said, each: dict[str, Any]) -> None:
    choice = said.of(each["index"])
    assert not choice.finish_reason, f"it had ended: {each}"
    choice.text += each["text"]
    if each["logprobs"]:
        lengths = {len(each["logprobs"][name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
        assert len(lengths) == 1, each
        choice.logprobs += each["logprobs"]["token_logprobs"]
    _ends(choice, each, is_empty=not each["text"])


def _ends(choice: Choice, each: dict[str, Any], *, is_empty: bool) -> None:
    if each["finish_reason"] is not None:
        assert each["finish_reason"] in ("stop", "length", "tool_calls"), each
        assert is_empty, f"the end has no text of its own: {each}"
        choice.finish_reason = each["finish_reason"]


def _calls_are_whole(choice: Choice) -> None:
    if choice.finish_reason == "tool_calls":
        assert choice.calls
        for _, arguments in choice.calls:
            assert isinstance(json_of(arguments), dict)


# SGLang's own


def _generate(chunks: list[dict[str, Any]]) -> Said:
    """Each event holds the text so far."""
    said = Said()
    for chunk in chunks:
        choice, meta = said.of(chunk["index"]), chunk["meta_info"]
        assert not choice.finish_reason, f"it had ended: {chunk}"
        assert chunk["text"].startswith(choice.text), chunk
        assert chunk["output_ids"][: len(choice.token_ids)] == choice.token_ids, chunk
        _take_native(choice, chunk)
        assert meta["completion_tokens"] == len(choice.token_ids), chunk
    said.output_tokens = sum(len(each.token_ids) for each in said.choices.values())
    return said


def _take_native(choice: Choice, said: dict[str, Any]) -> None:
    meta = said["meta_info"]
    choice.text, choice.token_ids = said["text"], said["output_ids"]
    choice.logprobs = [each[0] for each in meta.get("output_token_logprobs", ())]
    choice.finish_reason = (meta["finish_reason"] or {}).get("type", "")


# Responses


def _responses(said: list[dict[str, Any]]) -> Said:
    assert [each["sequence_number"] for each in said] == list(range(len(said)))
    kinds = [each["type"] for each in said]
    assert kinds[:2] == ["response.created", "response.in_progress"] or kinds == ["response.failed"], kinds[:3]
    ends = [each for each in said if each["type"] in _RESPONSE_ENDS]
    assert ends == said[-1:], "one end, and last"
    items: dict[int, dict[str, Any]] = {}
    for each in said:
        _valid(openai.types.responses.ResponseStreamEvent, each)
        if "output_index" in each:
            _item_event(items, each)
    response = ends[0]["response"]
    assert response["status"] == _RESPONSE_ENDS[ends[0]["type"]]
    is_whole = response["status"] != "failed"
    if is_whole:
        assert [item["done"] for item in items.values()] == response["output"], "as it was told item by item"
    return _of_response(response)


_RESPONSE_ENDS = {f"response.{status}": status for status in ("completed", "incomplete", "failed")}


def _item_event(items: dict[int, dict[str, Any]], each: dict[str, Any]) -> None:
    """An item is added, its part is added, its text comes, text, part and item are done; then the next one."""
    at, kind = each["output_index"], each["type"]
    if kind == "response.output_item.added":
        assert at == len(items), f"items come one after the other: {each}"
        assert all("done" in item for item in items.values()), f"the last one is not done: {each}"
        items[at] = {"id": each["item"]["id"], "text": ""}
        return
    item = items[at]
    assert "done" not in item, f"it was done: {each}"
    if kind == "response.output_item.done":
        assert each["item"]["id"] == item["id"]
        assert _text_of_item(each["item"]) == item["text"], "the pieces are not the whole"
        item["done"] = each["item"]
        return
    assert each["item_id"] == item["id"], each
    if kind.endswith(".delta"):
        assert "told" not in item, f"a piece after its end: {each}"
        item["text"] += each["delta"]
    elif kind.endswith("text.done") or kind.endswith("arguments.done"):
        item["told"] = each.get("text", each.get("arguments"))
        assert item["told"] == item["text"], "the pieces are not the whole"


def _text_of_item(item: dict[str, Any]) -> str:
    if item["type"] == "function_call":
        return str(item["arguments"])
    return "".join(part["text"] for part in item["content"])


def _of_response(response: dict[str, Any]) -> Said:
    said, choice = Said(), Choice()
    for item in response["output"]:
        match item["type"]:
            case "reasoning":
                choice.reasoning += _text_of_item(item)
            case "message":
                choice.text += _text_of_item(item)
                choice.logprobs += [each["logprob"] for part in item["content"] for each in part["logprobs"] or ()]
            case "function_call":
                choice.calls.append((item["name"], item["arguments"]))
    said.choices[0] = choice
    if response["status"] == "failed":
        said.error = response["error"]
        return said
    choice.finish_reason = "length" if response["status"] == "incomplete" else "tool_calls" if choice.calls else "stop"
    _calls_are_whole(choice)
    usage = response["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    said.output_tokens = usage["output_tokens"]
    return said


# Messages

_STOPS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "stop_sequence": "stop"}


def _messages(said: list[dict[str, Any]]) -> Said:
    found, choice = Said(), Choice()
    is_whole = said[-1]["type"] != "error"
    if not is_whole:
        found.error = said.pop()["error"]
    blocks: list[dict[str, Any]] = []
    kinds = [each["type"] for each in said]
    if is_whole or said:
        assert kinds[:2] == ["message_start", "ping"], kinds[:3]
    assert kinds[-2:] == ["message_delta", "message_stop"] or not is_whole, kinds[-3:]
    assert not {"message_start", "ping"} & set(kinds[2:]), "once"
    assert not {"message_delta", "message_stop"} & set(kinds[: -2 if is_whole else None]), "once, and last"
    for each in said:
        if each["type"] != "ping":
            _valid(anthropic.types.RawMessageStreamEvent, each)
        if each["type"].startswith("content_block"):
            _block_event(blocks, each)
    assert all("is_done" in block for block in blocks) or not is_whole
    for block in blocks:
        _take_block(choice, block)
    found.choices[0] = choice
    if is_whole:
        _take_stop(found, said[-2]["delta"], said[-2]["usage"])
    return found


def _block_event(blocks: list[dict[str, Any]], each: dict[str, Any]) -> None:
    if each["type"] == "content_block_start":
        assert each["index"] == len(blocks), each
        assert not blocks or "is_done" in blocks[-1], f"the last block is open: {each}"
        blocks.append({**each["content_block"], "said": ""})
        return
    assert each["index"] == len(blocks) - 1, f"not the newest block: {each}"
    assert "is_done" not in blocks[-1], f"it was done: {each}"
    if each["type"] == "content_block_stop":
        blocks[-1]["is_done"] = True
        return
    kinds = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
    delta = each["delta"]
    if delta["type"] != "signature_delta":
        assert delta["type"] == kinds[blocks[-1]["type"]], each
        blocks[-1]["said"] += delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""


def _take_block(choice: Choice, block: dict[str, Any]) -> None:
    match block["type"]:
        case "thinking":
            choice.reasoning += block["said"]
        case "text":
            choice.text += block["said"]
        case "tool_use":
            choice.calls.append((block["name"], block["said"]))


def _take_stop(said: Said, stop: dict[str, Any], usage: dict[str, Any]) -> None:
    choice = said.choices[0]
    choice.finish_reason = _STOPS[stop["stop_reason"]]
    assert (stop["stop_reason"] == "stop_sequence") == (stop["stop_sequence"] is not None)
    _calls_are_whole(choice)
    said.output_tokens = usage["output_tokens"]


# whole answers


def read_whole(api: str, data: bytes, asked: Asked) -> Said:
    said = json_of(data)
    match api:
        case "chat":
            _valid(openai.types.chat.ChatCompletion, said)
            found = _of_completion(said, _of_message)
        case "text":
            _valid(openai.types.Completion, said)
            found = _of_completion(said, _of_text)
        case "generate":
            found = Said()
            for index, each in enumerate(said if isinstance(said, list) else [said]):
                _take_native(found.of(index), each)
            found.output_tokens = sum(len(each.token_ids) for each in found.choices.values())
        case "responses":
            _valid(openai.types.responses.Response, said)
            found = _of_response(said)
        case "messages":
            _valid(anthropic.types.Message, said)
            found = Said({0: Choice()})
            for block in said["content"]:
                text = block.get("text") or block.get("thinking") or json.dumps(block.get("input"))
                _take_block(found.choices[0], {**block, "said": text})
            _take_stop(found, said, said["usage"])
    assert found.choices.keys() == set(range(asked.choices))
    return found


def _of_completion(said: dict[str, Any], read: Any) -> Said:
    found = Said(output_tokens=said["usage"]["completion_tokens"])
    for each in said["choices"]:
        choice = found.of(each["index"])
        read(choice, each)
        choice.finish_reason = each["finish_reason"]
        _calls_are_whole(choice)
    return found


def _of_message(choice: Choice, each: dict[str, Any]) -> None:
    message = each["message"]
    choice.text, choice.reasoning = message["content"] or "", message.get("reasoning_content") or ""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    choice.calls = [(call["name"], call["arguments"]) for call in calls]
    choice.logprobs = [token["logprob"] for token in (each["logprobs"] or {}).get("content") or ()]


def _of_text(choice: Choice, each: dict[str, Any]) -> None:
    choice.text = each["text"]
    choice.logprobs = (each["logprobs"] or {}).get("token_logprobs") or []


def read_error(api: str, data: bytes) -> dict[str, Any]:
    """The error of a body that is nothing else, in the words of its API: each says what is wrong."""
    said = json_of(data)
    error = said["error"]
    if "success" in said:  # SGLang's word, beside the error object that all have
        assert (said.pop("success"), said.pop("error_message")) == (False, error["message"])
    if api == "messages":
        assert (said.keys(), error.keys(), said["type"]) == ({"type", "error"}, {"type", "message"}, "error")
    else:
        assert (said.keys(), error.keys()) == ({"error"}, {"message", "type", "param", "code"}), said
        assert error["code"] is None or isinstance(error["code"], str)
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"]
    return dict(error)
