"""From token ids to text that may be shown, a few ids at a time.

Way:   engine host -> coordinator -> [TextStream] -> SSE
In:    the ids of each step, in any grouping; the request's stop strings; which ids end an output
Out:   text whose concatenation is the decoded output, cut where the first stop string to be completed begins (or ends,
       if it is to be shown), without the token that ends it (unless that is to be shown)
Owns:  what is held back: bytes of an unfinished character; what may begin a stop string holds stop_strings.py
Fails: never; bytes that form no character are shown as U+FFFD, as `Tokenizer.decode` shows them
"""

from __future__ import annotations

import re
from functools import cached_property

from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.decoders import DecodeStream

from disagg.tokenizer.stop_strings import StoppedText
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


class TextStream(StoppedText):
    """Implements `disagg.coordinator.request.TextSide`."""

    __slots__ = ("_characters", "_texts")

    def __init__(self, texts: Texts, stop: tuple[str, ...] = (), *, shows_stop: bool = False) -> None:
        super().__init__(stop, shows_stop=shows_stop)
        self._texts = texts
        self._characters: _Characters | None = None  # once a token's text depends on others

    @property
    def unfinished(self) -> str:
        """What `flush` would show of a character that is not whole. Changes nothing."""
        return self._characters.unfinished if self._characters is not None else ""

    def begin_anew(self) -> None:
        super().begin_anew()
        self._characters = None

    def _text(self, token_ids: list[int]) -> str:
        if self._characters is None:
            texts = [text for token_id in token_ids if (text := self._texts.of(token_id)) is not None]
            if len(texts) == len(token_ids):
                return "".join(texts)
            self._characters = _Characters(self._texts)
        return self._characters.push(token_ids)

    def _rest(self) -> str:
        return self._characters.flush() if self._characters is not None else ""


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

    def stream(self) -> DecodeStream:
        """Text out of tokens whose text depends on others. Of a tokenizer that is no Rust one it is its own."""
        if isinstance(self.tokenizer, Tokenizer):
            return DecodeStream(skip_special_tokens=self.skip_special_tokens)
        return self.tokenizer.decode_stream(self.skip_special_tokens)

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
        self._new_stream = texts.stream
        self._stream = self._new_stream()
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

    @property
    def unfinished(self) -> str:
        if not self._unfinished:
            return ""
        text: str = self._tokenizer.decode(self._unfinished, skip_special_tokens=self._skip_special)
        return text

    def flush(self) -> str:
        text = self.unfinished
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
        self._stream = self._new_stream()
        return self.flush()
