"""From token ids to text that may be shown, a few ids at a time.

Way:   engine host -> coordinator -> [TextStream] -> SSE
In:    the ids of each step, in any grouping; the request's stop strings; which ids end an output
Out:   text whose concatenation is the decoded output, cut where the first stop string to be completed begins (or ends,
       if it is to be shown), without the token that ends it (unless that is to be shown)
Owns:  what is held back: bytes of an unfinished character, and the longest suffix that may begin a stop string
Fails: never; bytes that form no character are shown as U+FFFD, as `Tokenizer.decode` shows them
"""

from __future__ import annotations

import re
from functools import cached_property

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.decoders import DecodeStream

from disagg.tokenizer.token_bytes import TokenBytes

_UNASKED = "\ufffd unasked"  # compared by identity
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNFINISHED_IDS_MAX = 64  # a character has at most four bytes: more ids than this without text are no character


def text_stream(
    texts: Texts,
    stop: tuple[str, ...],
    end_ids: frozenset[int],
    *,
    shows_stop: bool = False,
    shows_special: bool = False,
) -> TextStream:
    """For one request. `end_ids`: of these one ends the output, and is its last; `shows_stop`: it has its text, and so
    has a stop string. The usual end tokens are special ones, which have none anyway: then nobody looks for them."""
    if shows_special:
        texts = texts.with_special_tokens
    unshown = frozenset() if shows_stop else frozenset(each for each in end_ids if texts.of(each) != "")
    if unshown:
        return _WithoutItsEnd(texts, stop, unshown)
    return TextStream(texts, stop, shows_stop=shows_stop)


class TextStream:
    """Implements `disagg.coordinator.request.TextSide`."""

    __slots__ = ("_characters", "_stop", "_texts", "matched", "stopped")

    def __init__(self, texts: Texts, stop: tuple[str, ...] = (), *, shows_stop: bool = False) -> None:
        self.stopped, self.matched = False, ""
        self._texts = texts
        self._characters: _Characters | None = None  # once a token's text depends on others
        self._stop = _StopStrings(stop, shows_stop) if stop else None

    def push(self, token_ids: list[int]) -> str:
        assert not self.stopped, "no ids may follow a stop string"
        text = self._text(token_ids)
        if self._stop is None or not text:
            return text
        shown, self.matched = self._stop.push(text)
        self.stopped = bool(self.matched)
        return shown

    def begin_anew(self) -> None:
        self.stopped, self.matched, self._characters = False, "", None
        if self._stop is not None:
            self._stop.held = ""

    def flush(self) -> str:
        if self.stopped:
            return ""
        text = self._characters.flush() if self._characters is not None else ""
        if self._stop is None:
            return text
        shown, self.matched = self._stop.push(text)
        self.stopped = bool(self.matched)
        return shown if self.stopped else shown + self._stop.held

    def _text(self, token_ids: list[int]) -> str:
        if self._characters is None:
            texts = [text for token_id in token_ids if (text := self._texts.of(token_id)) is not None]
            if len(texts) == len(token_ids):
                return "".join(texts)
            self._characters = _Characters(self._texts)
        return self._characters.push(token_ids)


class _WithoutItsEnd(TextStream):
    """Shows all but the token that ends the output."""

    __slots__ = ("_unshown",)

    def __init__(self, texts: Texts, stop: tuple[str, ...], unshown: frozenset[int]) -> None:
        super().__init__(texts, stop)
        self._unshown = unshown

    def _text(self, token_ids: list[int]) -> str:
        return super()._text(token_ids[:-1] if token_ids and token_ids[-1] in self._unshown else token_ids)


class Texts:
    """The text of single tokens, for those that add the same text to every output.

    A token does so if the tokenizer maps tokens to bytes (as GPT-2's, Llama 3's, Qwen's, DeepSeek's and SmolLM2's do)
    and its bytes are whole characters. The text of other tokens depends on their neighbours.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self.tokenizer, self.skip_special_tokens = tokenizer, skip_special_tokens
        self.token_text = TokenBytes(tokenizer)
        self._is_bytes = _stand_for_bytes(tokenizer)
        self._known: list[str | None] = [_UNASKED] * tokenizer.get_vocab_size()

    @cached_property
    def with_special_tokens(self) -> Texts:
        """The same of outputs whose special tokens are shown; made when the first request asks for it."""
        return Texts(self.tokenizer, skip_special_tokens=False)

    def of(self, token_id: int) -> str | None:
        """The token's text; None where it depends on the tokens before or after."""
        known = self._known
        is_in_vocabulary = 0 <= token_id < len(known)
        text = known[token_id] if is_in_vocabulary else _UNASKED
        if text is _UNASKED:
            text = self.tokenizer.decode([token_id], skip_special_tokens=self.skip_special_tokens)
            if not self._is_bytes or "\ufffd" in text:
                text = None
            if is_in_vocabulary:
                known[token_id] = text
        return text


def _stand_for_bytes(tokenizer: Tokenizer) -> bool:
    """Whether the decoder does nothing but put the bytes of each token after those of the one before."""
    written = str(tokenizer.decoder)
    if re.fullmatch(r"ByteLevel\([^()]*\)", written):
        return True
    # As transformers makes it of a GGUF file. It fuses the tokens first: then all must be written in the same alphabet,
    # and what the other steps look for must be in none of them.
    if not re.fullmatch(
        r'Sequence\(decoders=\[ByteFallback\(\), Fuse\(\), Replace\(.*"▁".*\), ByteLevel\(.*\)\]\)', written
    ):
        return False
    letters = frozenset(pre_tokenizers.ByteLevel.alphabet())
    return all(letters.issuperset(token) and not _BYTE.fullmatch(token) for token in tokenizer.get_vocab())


class _Characters:
    """Whole characters out of token ids."""

    def __init__(self, texts: Texts) -> None:
        self._tokenizer, self._text_of, self._skip_special = texts.tokenizer, texts.of, texts.skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=self._skip_special)
        self._unfinished: list[int] = []

    def push(self, token_ids: list[int]) -> str:
        shown = []
        for token_id in token_ids:
            if self._unfinished or (text := self._text_of(token_id)) is None:
                self._unfinished.append(token_id)
                if (text := self._step(token_id)) is None:
                    continue
                self._unfinished.clear()
            shown.append(text)
        return "".join(shown)

    def flush(self) -> str:
        text: str = self._tokenizer.decode(self._unfinished, skip_special_tokens=self._skip_special)
        self._unfinished.clear()
        return text

    def _step(self, token_id: int) -> str | None:
        try:
            text: str | None = self._stream.step(self._tokenizer, token_id)
        except Exception as error:
            # A byte-fallback decoder takes a shown character back when a byte follows that fits nothing.
            if "prefix" not in str(error):
                raise
        else:
            if text is not None or len(self._unfinished) <= UNFINISHED_IDS_MAX:
                return text
        self._stream = DecodeStream(skip_special_tokens=self._skip_special)
        return self.flush()


class _StopStrings:
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
