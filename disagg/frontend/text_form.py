"""A text completion's answer from its parts, in OpenAI's words.

Way:   parts of each choice -> [TextCompletionStream, TextCompletionWhole] -> bytes
In:    Content alone. For `echo` the prompt's text and logprobs come as a choice's first piece; of a whole answer its
       text begins with the prompt's, and `prompt_logprobs` holds them
Out:   what the `openai` clients expect, field for field; token ids where vLLM has them. A plain answer has the bytes
       that sinks.py gives it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disagg.frontend.completion_form import UNFINISHED, CompletionStream, Saying
from disagg.frontend.logprobs import TextLogprobs
from disagg.frontend.parts import ChoiceAnswer, Content, Part, TokenLogprobs
from disagg.frontend.responses import encode


class TextCompletionStream(CompletionStream):
    """One chunk for each piece that has something to show. A choice's first one holds its prompt's token ids."""

    def __init__(self, saying: Saying) -> None:
        super().__init__("text", saying)
        self._prompts: dict[int, bytes] = {}  # still to be said
        self._logprobs: dict[int, TextLogprobs] = {}

    def begins(self, index: int) -> bytes:
        self._prompts[index] = self._prompt(index)
        return b""

    def piece(self, index: int, parts: Sequence[Part], token_ids: list[int], logprobs: list[TokenLogprobs]) -> bytes:
        text = "".join([part.text for part in parts if isinstance(part, Content)])
        if not text and not logprobs and not (token_ids and self._saying.prompt_ids):
            return b""
        fields = b'"text":' + encode(text) + self._unfinished(index, logprobs)
        return self._chunk(index, fields + self._take_prompt(index) + self._ids(token_ids))

    def choice_ends(self, answer: ChoiceAnswer) -> bytes:
        fields = b'"text":""' + self._ended(answer)
        return self._chunk(answer.index, fields + self._take_prompt(answer.index) + self._ids([]))

    def _unfinished(self, index: int, logprobs: list[TokenLogprobs]) -> bytes:
        if not logprobs:
            return UNFINISHED
        if index not in self._logprobs:
            assert self._saying.token_text is not None, "logprobs came, and nothing says their texts"
            self._logprobs[index] = TextLogprobs(self._saying.token_text)
        return b',"logprobs":' + encode(self._logprobs[index].of(logprobs)) + b',"finish_reason":null'

    def _take_prompt(self, index: int) -> bytes:
        prompt, self._prompts[index] = self._prompts[index], b""
        return prompt


class TextCompletionWhole:
    def __init__(self, saying: Saying) -> None:
        self._saying = saying

    def whole(self, choices: Sequence[ChoiceAnswer], usage: dict[str, Any]) -> bytes:
        said = {**self._saying.head("text", is_chunk=False), "choices": [self._choice(each) for each in choices]}
        return encode({**said, "usage": usage})

    def _choice(self, answer: ChoiceAnswer) -> dict[str, Any]:
        saying, logprobs = self._saying, None
        of_prompt = [] if saying.tells_prompt_logprobs else answer.prompt_logprobs  # else they are the echo's
        if given := [*of_prompt, *answer.logprobs]:
            assert saying.token_text is not None, "logprobs came, and nothing says their texts"
            logprobs = TextLogprobs(saying.token_text).of(given)
        choice = {"index": answer.index, "text": answer.text, "logprobs": logprobs, **saying.ended(answer)}
        if saying.prompt_ids is not None:
            choice["prompt_token_ids"] = saying.prompt_ids(answer.index)
            choice["token_ids"] = answer.token_ids
        choice |= saying.prompt_logprobs(answer)
        return choice
