"""Two servers' answers to one request, field by field.

In:    a path, a body, a base URL; out: the answer as field -> value, of a stream what its events add up to
       ("choices[0].delta.content": the whole text), then which fields differ
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import httpx

from disagg.frontend.differences import ABSENT

LIMIT_S = 400  # on a busy machine
# Text that a stream gives in pieces: how many, is a matter of time.
PIECES = {"content", "text", "arguments", "reasoning_content", "partial_json", "delta", "thinking"}
# Never equal, or what ran before decides it: of these the type is compared alone.
NEVER_EQUAL = re.compile(
    r"(^|[.])(id|item_id|response_id|call_id|created|created_at|completed_at|e2e_latency|sequence_number"
    r"|cached_tokens|cache_read_input_tokens)$"
)
OF_XGRAMMAR = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: |\n$")  # when and where it says so: ours tells the reason alone
NEAR = 1e-4  # of logprobs
LIKELIEST = ".top_logprobs[0].token"


@dataclass(frozen=True)
class Differing:
    field: str
    theirs: Any
    ours: Any

    def __str__(self) -> str:
        return f"{self.field}: SGLang {_short(self.theirs)}, ours {_short(self.ours)}"


def asked(client: httpx.Client, url: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """The answer's fields. `status` and `media` are fields, too; `failed` is the one of none."""
    method = "GET" if body is None else "POST"
    try:
        answer = client.request(method, url + path, json=body, timeout=LIMIT_S)
    except httpx.HTTPError as error:
        return {"failed": repr(error)}
    media = answer.headers.get("content-type", "").partition(";")[0]
    fields: dict[str, Any] = {"status": answer.status_code, "media": media if answer.content else ""}
    if media == "text/event-stream":
        _flatten("", _sum_of(answer.text, path), fields)
    elif media == "application/json" and answer.content:
        _flatten("", answer.json(), fields)
    return fields


def has_chunks_of_several_tokens(theirs: dict[str, Any]) -> bool:
    """Of a chat's stream at temperature 0, as a busy SGLang sends them: it then says the `top_logprobs` of a chunk's
    first token for all its tokens (its OpenAIServingChat, use_token_index)."""
    tops = [name for name in theirs if name.startswith("choices[0].logprobs.content[") and name.endswith(LIKELIEST)]
    return any(theirs[name] != theirs[name.removesuffix(LIKELIEST) + ".token"] for name in tops)


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> list[Differing]:
    names = [*theirs, *(name for name in ours if name not in theirs)]
    pairs = [Differing(name, theirs.get(name, ABSENT), ours.get(name, ABSENT)) for name in names]
    return [each for each in pairs if not _same(each.theirs, each.ours)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, abs_tol=NEAR)
    return type(one) is type(other) and bool(one == other)


def _flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict) and value:
        if "cache_read_input_tokens" in value and "input_tokens" in value:  # Anthropic's tell what was not cached apart
            value = value | {"input_tokens": value["input_tokens"] + value["cache_read_input_tokens"]}
        for key, each in value.items():
            _flatten(f"{name}.{key}" if name else key, each, into)
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            _flatten(f"{name}[{index}]", each, into)
    elif NEVER_EQUAL.search(name) and value is not None:
        into[name] = type(value).__name__
    else:
        into[name] = OF_XGRAMMAR.sub("", value) if isinstance(value, str) else value


def _sum_of(stream: str, path: str) -> dict[str, Any]:
    lines = [line[6:] for line in stream.splitlines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    total: dict[str, Any] = {"done": lines[-1:] == ["[DONE]"]}
    if path == "/generate":  # each event holds all that was so far
        for event in events:
            total[f"index {event.get('index', 0)}"] = event
        return total
    if not any("type" in event for event in events):
        for event in events:
            _add(total, event)
        return total
    total["order"] = " ".join(dict.fromkeys(event["type"] for event in events if event["type"] != "ping"))
    for event in events:
        _add(total.setdefault(event["type"], {}), event)
    return total


def _add(total: dict[str, Any], event: dict[str, Any]) -> None:
    """Adds an event to what the ones before it say."""
    for name, value in event.items():
        have = total.get(name)
        if isinstance(value, dict) and isinstance(have, dict):
            _add(have, value)
        elif isinstance(value, list) and isinstance(have, list) and value and "index" in _dict(value[0]):
            by_index = {each["index"]: each for each in have}
            for each in value:
                _add(by_index.setdefault(each["index"], {}), each)
            total[name] = [by_index[index] for index in sorted(by_index)]
        elif _are(list, have, value) or (name in PIECES and _are(str, have, value)):
            total[name] = have + value
        elif value is not None or name not in total:
            total[name] = value


def _are(kind: type, *values: Any) -> bool:
    return all(isinstance(value, kind) for value in values)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _short(value: Any) -> str:
    said = value if value == ABSENT else repr(value)
    return said if len(said) < 120 else f"{said[:110]}…"
