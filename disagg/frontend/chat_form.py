"""A chat's answer from its parts, in OpenAI's words: chat.completion.chunk, and chat.completion.

Way:   parts of each choice -> [ChatStream, ChatWhole] -> bytes
Out:   what the `openai` clients expect, field for field; beside it `reasoning_content` as SGLang has it, and token ids
       where vLLM has them. An answer of text alone has the bytes that sinks.py gives it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disagg.frontend.completion_form import UNFINISHED, CompletionStream, Saying
from disagg.frontend.logprobs import chat_logprobs
from disagg.frontend.parts import CallArguments, CallBegins, ChoiceAnswer, Content, Part, Reasoning, TokenLogprobs
from disagg.frontend.responses import encode

_ROLE = b'"delta":{"role":"assistant","content":""}' + UNFINISHED


class ChatStream(CompletionStream):
    """One chunk for each part. The token ids and logprobs of a piece stand in its first one."""

    def __init__(self, saying: Saying) -> None:
        super().__init__("chat", saying)
        self._has_begun = False

    def begins(self, index: int) -> bytes:
        """The chunk that names the role. The first of a stream holds the prompt's token ids."""
        prompt = b"" if self._has_begun else self._prompt(index)
        self._has_begun = True
        return self._chunk(index, _ROLE, prompt)

    def piece(self, index: int, parts: Sequence[Part], token_ids: list[int], logprobs: list[TokenLogprobs]) -> bytes:
        parts = [part for part in parts if isinstance(part, CallBegins) or part.text]
        if not parts:
            if not logprobs and not (token_ids and self._saying.prompt_ids):
                return b""
            parts = [Content("")]
        if not logprobs and self._saying.prompt_ids is None:
            return b"".join([self._chunk(index, _delta(part) + UNFINISHED) for part in parts])
        first = self._chunk(index, _delta(parts[0]) + self._unfinished(logprobs) + self._ids(token_ids))
        rest = [self._chunk(index, _delta(part) + UNFINISHED + self._ids([])) for part in parts[1:]]
        return first + b"".join(rest)

    def choice_ends(self, answer: ChoiceAnswer) -> bytes:
        return self._chunk(answer.index, b'"delta":{}' + self._ended(answer) + self._ids([]))

    def _unfinished(self, logprobs: list[TokenLogprobs]) -> bytes:
        if not logprobs:
            return UNFINISHED
        assert self._saying.token_text is not None, "logprobs came, and nothing says their texts"
        said = chat_logprobs(logprobs, self._saying.token_text)
        return b',"logprobs":' + encode(said) + b',"finish_reason":null'


def _delta(part: Part) -> bytes:
    match part:
        case Content():
            return b'"delta":{"content":' + encode(part.text) + b"}"
        case Reasoning():
            return b'"delta":{"reasoning_content":' + encode(part.text) + b"}"
        case CallBegins():
            call: dict[str, Any] = {"index": part.index, **_call(part.id, part.name, "")}
        case CallArguments():
            call = {"index": part.index, "function": {"arguments": part.text}}
    return b'"delta":{"tool_calls":[' + encode(call) + b"]}"


class ChatWhole:
    def __init__(self, saying: Saying) -> None:
        self._saying = saying

    def whole(self, choices: Sequence[ChoiceAnswer], usage: dict[str, Any]) -> bytes:
        saying = self._saying
        said = {**saying.head("chat", is_chunk=False), "choices": [self._choice(each) for each in choices]}
        if saying.prompt_ids is not None:
            said["prompt_token_ids"] = saying.prompt_ids(choices[0].index)  # of one prompt are all choices of a chat
        return encode({**said, **saying.prompt_logprobs(choices[0]), "usage": usage})

    def _choice(self, answer: ChoiceAnswer) -> dict[str, Any]:
        saying, logprobs = self._saying, None
        if answer.logprobs:
            assert saying.token_text is not None, "logprobs came, and nothing says their texts"
            logprobs = chat_logprobs(answer.logprobs, saying.token_text)
        choice = {"index": answer.index, "message": message_of(answer), "logprobs": logprobs, **saying.ended(answer)}
        return {**choice, "token_ids": answer.token_ids} if saying.prompt_ids is not None else choice


def message_of(answer: ChoiceAnswer) -> dict[str, Any]:
    """Without text beside calls its content is null, as OpenAI has it."""
    content = answer.text if answer.text or not answer.calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [_call(each.id, each.name, each.arguments) for each in answer.calls]
    return message


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
