"""Text to token ids: `fastokens` where it gives what `tokenizers` gives, much quicker, and `tokenizers` elsewhere.

Way:   Codec -> [Encoder] -> ids
In:    a model's tokenizer
Out:   always the ids of `tokenizers`, which is what the model was trained with
Fails: never. A fast tokenizer that cannot be made, or that differs on one text of the sample, is not used. A text that
       it refuses (a byte without a token, which `tokenizers` drops) goes to `tokenizers`

Why a second tokeniser: at 1.7 µs a token the first one is three quarters of what a 500-token request costs here
(docs/performance.md). A test compares both over a corpus of thousands of files and random texts.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any, cast

from tokenizers import Tokenizer

log = logging.getLogger(__name__)

SAMPLE_TEXTS = 300
_RANGES = (
    (0x20, 0x7E),
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x370, 0x5FF),
    (0x600, 0xE7F),
    (0x1E00, 0x27BF),
    (0x3000, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1FAFF),
    (0x00, 0x1F),
)
_WRITTEN = (
    "",
    " ",
    "\n\n  \t\r\n ",
    "Explain why Roger Federer is considered one of the greatest tennis players of all time",
    "I'll say it's 3.14159, they've 1,234,567 of 2024-11-25T08:30:00Z; don't WE'RE re-enter?!",
    "def f(x: int) -> int:\n    return x ** 2  # €5\n\n\tif x == 0x1F:\n        pass\n",
    '{"a": [1, 2.5e-3, null], "b": {"c": "d\\n\\u00e9"}}',
    "Größe, façade, naïve, Ελληνικά, русский, עברית, العربية, हिन्दी, ไทย, 日本語, 한국어, 简体中文",
    "e\u0301 \u00e9 \ufb01 \u2160 ﷽ a\u200db \ufeff👩‍👩‍👧‍👦🇪🇺👍🏽",
)


class Encoder:
    """`where`: the model's folder, for the log."""

    def __init__(self, tokenizer: Tokenizer, where: str) -> None:
        self._tokenizer = tokenizer
        self._fast = _fast_tokenizer(tokenizer, where)
        if self._fast is not None and (text := self._first_that_differs()) is not None:
            log.warning("%s: fastokens is not used: it reads %r in another way", where, text)
            self._fast = None

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    def added_tokens(self) -> dict[str, bool]:
        """Text -> whether it is special, of the tokens beside the vocabulary."""
        return {str(token.content): token.special for token in self._tokenizer.get_added_tokens_decoder().values()}

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        if self._fast is not None:
            try:
                return cast(list[int], self._fast(text, add_special_tokens=special_tokens).ids)
            except ValueError:
                pass
        return self.encode_slowly(text, special_tokens=special_tokens)

    def encode_slowly(self, text: str, *, special_tokens: bool) -> list[int]:
        return cast(list[int], self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def encode_pair(self, first: str, second: str) -> tuple[list[int], int]:
        """With the special tokens that this tokenizer puts around a pair; see Codec.pair_ids."""
        encoding = self._tokenizer.encode(first, second)
        types = cast(list[int], encoding.type_ids)
        return cast(list[int], encoding.ids), types.index(1) if 1 in types else 0

    def _first_that_differs(self) -> str | None:
        for text in sample(self._tokenizer):
            for special_tokens in (False, True):
                fast = self.encode(text, special_tokens=special_tokens)
                if fast != self.encode_slowly(text, special_tokens=special_tokens):
                    return text
        return None


def sample(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts of many scripts, code, blanks, and this tokenizer's own special tokens between them; always the same."""
    yield from _WRITTEN
    choose = random.Random(0)
    added = [str(token.content) for token in tokenizer.get_added_tokens_decoder().values()][:64] or [""]
    for _ in range(SAMPLE_TEXTS):
        texts = [choose.choice(_WRITTEN), choose.choice(added), _random_text(choose), choose.choice(added)]
        choose.shuffle(texts)
        yield "".join(texts)


def _random_text(choose: random.Random) -> str:
    return "".join(chr(choose.randint(*choose.choice(_RANGES))) for _ in range(choose.randrange(40)))


def _fast_tokenizer(model: Tokenizer, where: str) -> Callable[..., Any] | None:
    try:
        import fastokens
    except ImportError:  # no wheel for this machine
        return None
    try:
        tokenizer = fastokens.Tokenizer.from_json_str(model.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except Exception as error:  # noqa: BLE001 - whatever it cannot read, the other one can
        log.info("%s: fastokens cannot read it: %s", where, error)
        return None
    return cast(Callable[..., Any], tokenizer.encode)
