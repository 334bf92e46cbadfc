"""Text up to the first stop string to be completed; the same however the text is cut into pieces.

Way:   text.py, given_text.py -> [StoppedText] -> SSE
In:    the text of the newest ids, which a subclass finds or is given; the request's stop strings
Out:   text that may be shown
Owns:  the longest suffix that may begin a stop string
Fails: never
"""

from __future__ import annotations


class StoppedText:
    """Implements `disagg.coordinator.request.TextSide`, but for where the text comes from: `_text` and `_rest`."""

    __slots__ = ("_stop", "matched", "stopped")

    def __init__(self, stop: tuple[str, ...] = (), *, shows_stop: bool = False) -> None:
        self.stopped, self.matched = False, ""
        self._stop = StopStrings(stop, shows_stop) if stop else None

    def push(self, token_ids: list[int]) -> str:
        assert not self.stopped, "no ids may follow a stop string"
        if self._stop is None:
            return self._text(token_ids)
        shown = []
        for at in range(len(token_ids)):
            shown.append(self._push_one(token_ids[at : at + 1], self._stop))
            if self.matched:
                del token_ids[at + 1 :]
                break
        return "".join(shown)

    def _push_one(self, token_id: list[int], stop: StopStrings) -> str:
        text = self._text(token_id)
        if not text:
            return ""
        shown, self.matched = stop.push(text)
        self.stopped = bool(self.matched)
        return shown

    def flush(self) -> str:
        if self.stopped:
            return ""
        text = self._rest()
        if self._stop is None:
            return text
        shown, self.matched = self._stop.push(text)
        self.stopped = bool(self.matched)
        return shown if self.stopped else shown + self._stop.held

    def begin_anew(self) -> None:
        self.stopped, self.matched = False, ""
        if self._stop is not None:
            self._stop.held = ""

    def _text(self, token_ids: list[int]) -> str:
        """Whole characters that these ids complete."""
        raise NotImplementedError

    def _rest(self) -> str:
        """At the end of the output: the text of an unfinished character."""
        raise NotImplementedError


class StopStrings:
    """Finds the stop string that is completed first; the answer is the same however the text is cut into pieces."""

    def __init__(self, stop: tuple[str, ...], shows_stop: bool) -> None:
        self._stop, self._shows_stop = stop, shows_stop
        self._longest = max(map(len, stop))
        self._first_characters = frozenset(each[0] for each in stop)
        self.held = ""

    def push(self, text: str) -> tuple[str, str]:
        """The text that may be shown, and the stop string that ends it, or an empty one."""
        text = self.held + text
        found = [(start + len(each), start, each) for each in self._stop if (start := text.find(each)) >= 0]
        if found:
            self.held = ""
            end, start, matched = min(found)
            return text[: end if self._shows_stop else start], matched
        cut = self._begin_of_a_stop(text)
        self.held = text[cut:]
        return text[:cut], ""

    def _begin_of_a_stop(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                suffix = text[start:]
                if any(each.startswith(suffix) for each in self._stop):
                    return start
        return len(text)
