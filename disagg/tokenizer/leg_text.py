"""The text of one leg's tokens, said by its engine's host to a frontend that has no tokenizer.

Way:   engine -> plane server -> [LegText] -> Shown -> given_text.py in the frontend
In:    the leg's ids; those that earlier tries of its request have answered, since text depends on what was before it
Out:   what disagg/tokenizer/text.py makes of the same ids, id by id. Stop strings are the frontend's
Fails: never
"""

from __future__ import annotations

from collections.abc import Iterable

from disagg.tokenizer.text import Texts, text_stream


class LegText:
    """Implements `disagg.plane.text.LegText`. `end_ids`: see `text_stream`."""

    __slots__ = ("_stream", "_token_text")

    def __init__(self, texts: Texts, end_ids: frozenset[int], *, shows_special: bool, emitted_ids: list[int]) -> None:
        self._stream = text_stream(texts, (), end_ids, shows_special=shows_special)
        self._token_text = texts.token_text
        if emitted_ids:
            self._stream.push(emitted_ids)

    def push(self, token_ids: list[int]) -> list[str]:
        push = self._stream.push
        return [push([token_id]) for token_id in token_ids]

    @property
    def unfinished(self) -> str:
        return self._stream.unfinished

    def bytes_of(self, token_ids: Iterable[int]) -> dict[int, bytes]:
        return {token_id: self._token_text(token_id)[1] for token_id in token_ids}
