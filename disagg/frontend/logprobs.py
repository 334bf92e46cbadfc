"""Logprobs in OpenAI's words: of a chat's tokens, and of a text completion's.

Way:   TokenLogprobs, ids alone -> [chat_logprobs, TextLogprobs] -> the `logprobs` field of a choice
In:    `token_text`: of a token id its text, and its own bytes where the text is half a character
Out:   finite numbers: JSON has no infinity, and OpenAI says -9999 where a token has no chance. What is said of a token
       is JSON already: of an answer of 8,000 tokens it would be a tree of half a million objects
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from disagg.frontend.parts import TokenLogprobs
from disagg.frontend.responses import encode

TokenText = Callable[[int], tuple[str, bytes]]
LEAST = -9999.0


def chat_logprobs(given: Sequence[TokenLogprobs], token_text: TokenText) -> dict[str, Any]:
    content = b",".join(token_objects(given, token_text))
    return {"content": msgspec.Raw(b"[" + content + b"]"), "refusal": None}


def token_objects(given: Sequence[TokenLogprobs], token_text: TokenText) -> Iterator[bytes]:
    """One object a token, as chats have them, and the text of a Responses message."""
    for token in given:
        top = [_token(token_id, logprob, token_text) for token_id, logprob in token.top]
        yield encode({**_token(token.token_id, token.logprob, token_text), "top_logprobs": top})


def _token(token_id: int, logprob: float | None, token_text: TokenText) -> dict[str, Any]:
    text, own_bytes = token_text(token_id)
    return {"token": text, "logprob": _finite(logprob), "bytes": list(own_bytes)}


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(LEAST, logprob)  # in this order a NaN is the least, too


def prompt_objects(given: Sequence[TokenLogprobs], token_text: TokenText) -> list[msgspec.Raw | None]:
    """vLLM's `prompt_logprobs`: of each token of the prompt itself and the likeliest in its place, by id; null for the
    first. A token that is not among the likeliest has no rank here."""
    return [None if token.logprob is None else msgspec.Raw(encode(_by_id(token, token_text))) for token in given]


def _by_id(token: TokenLogprobs, token_text: TokenText) -> dict[str, Any]:
    said = {token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(token.top, 1)}
    said.setdefault(token.token_id, (token.logprob or 0.0, 0))
    return {
        str(token_id): {"logprob": _finite(logprob), "rank": rank or None, "decoded_token": token_text(token_id)[0]}
        for token_id, (logprob, rank) in said.items()
    }


class TextLogprobs:
    """Of one choice: it counts the characters so far, since each token says where in the text it begins."""

    def __init__(self, token_text: TokenText) -> None:
        self._token_text, self._characters = token_text, 0

    def of(self, given: Sequence[TokenLogprobs]) -> dict[str, Any]:
        tokens, numbers, offsets = [], [], []
        for token in given:
            text, own_bytes = self._token_text(token.token_id)
            tokens.append(text)
            numbers.append(_finite(token.logprob))
            offsets.append(self._begins_at(own_bytes))
        top = [self._top(token) for token in given]
        return {
            "tokens": tokens,
            "token_logprobs": numbers,
            "top_logprobs": None if top.count(None) == len(top) else top,
            "text_offset": offsets,
        }

    def _begins_at(self, own_bytes: bytes) -> int:
        """A token that goes on with a character begins where that character does."""
        goes_on = own_bytes[:1] and _continues(own_bytes[0])
        begin = self._characters - 1 if goes_on and self._characters else self._characters
        self._characters += sum(not _continues(each) for each in own_bytes)
        return begin

    def _top(self, token: TokenLogprobs) -> msgspec.Raw | None:
        """By text, as OpenAI has them: of two halves of characters that look the same the likelier one stands."""
        said: dict[str, float] = {}
        for token_id, logprob in token.top:
            said.setdefault(self._token_text(token_id)[0], max(LEAST, logprob))
        return msgspec.Raw(encode(said)) if said else None


def _continues(byte: int) -> bool:
    return byte & 0xC0 == 0x80  # UTF-8's second and later bytes of a character
