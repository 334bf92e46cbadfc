"""Text that comes with the ids: of a frontend whose engines' hosts have the tokenizer.

Way:   PlaneClient -> legs.py -> [GivenText] -> SSE
In:    Shown: of each id that will be pushed, its text; in the order of the ids
Out:   what disagg/tokenizer/text.py would say of the same ids
Owns:  texts whose ids have not been pushed yet; `token_bytes` is all requests', and at most the vocabulary
Fails: never
"""

from __future__ import annotations

from collections import deque

from disagg.plane.messages import Shown, TextWanted
from disagg.tokenizer.stop_strings import StoppedText


class GivenText(StoppedText):
    """Implements `disagg.coordinator.request.TextSide`."""

    __slots__ = ("_given", "_token_bytes", "_unfinished", "wanted")

    def __init__(
        self, stop: tuple[str, ...], wanted: TextWanted, token_bytes: dict[int, bytes], *, shows_stop: bool
    ) -> None:
        super().__init__(stop, shows_stop=shows_stop)
        self.wanted = wanted  # of each leg
        self._given: deque[tuple[str, str]] = deque()  # text, and what is unfinished behind it
        self._unfinished = ""
        self._token_bytes = token_bytes

    def give(self, shown: Shown) -> None:
        last = len(shown.texts) - 1
        self._given.extend((text, shown.unfinished if at == last else "") for at, text in enumerate(shown.texts))

    def give_bytes(self, token_bytes: dict[int, bytes]) -> None:
        self._token_bytes |= token_bytes

    def drop_given(self) -> None:
        """Of ids that will not be pushed: another leg sends them again."""
        self._given.clear()

    def begin_anew(self) -> None:
        super().begin_anew()
        self._given.clear()
        self._unfinished = ""

    def _text(self, token_ids: list[int]) -> str:
        given = [self._given.popleft() for _ in token_ids]
        if given:
            self._unfinished = given[-1][1]
        return "".join(text for text, _ in given)

    def _rest(self) -> str:
        return self._unfinished
