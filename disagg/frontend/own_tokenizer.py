"""The tokenizer in the frontend's own process (`model.tokenization: frontend`).

Way:   bodies -> [OwnTokenizer] -> Readers -> ids; ids -> text.py -> text
Fails: StartError for parsers that SGLang here does not have
"""

from __future__ import annotations

from collections.abc import Callable

from disagg.adapters import Served
from disagg.frontend.parsing import NO_PARSERS, Parsing, parser_setup
from disagg.frontend.readers import Readers
from disagg.frontend.reading import Read
from disagg.frontend.text_facts import TextFacts, facts_of
from disagg.tokenizer.codec import Codec
from disagg.tokenizer.text import TextStream, text_stream


class OwnTokenizer:
    """Implements `disagg.frontend.tokenization.Tokenization`."""

    def __init__(
        self, codec: Codec, served: Callable[[], Served], parsing: Parsing = NO_PARSERS, *, refuses_unknown: bool = True
    ) -> None:
        """`served`: what may be named now."""
        self._codec, self.parsing = codec, parsing
        self.readers = Readers(codec, served, refuses_unknown=refuses_unknown)
        self.facts: TextFacts = facts_of(codec)
        self.token_text = codec.texts.token_text

    async def ready(self) -> None:
        pass

    async def read(self, data: bytes, endpoint: str) -> Read:
        return await self.readers.read(data, endpoint)

    def answer_text(
        self, stop: tuple[str, ...], end_ids: frozenset[int], *, shows_stop: bool, shows_special: bool
    ) -> TextStream:
        return text_stream(self._codec.texts, stop, end_ids, shows_stop=shows_stop, shows_special=shows_special)

    async def start(self) -> None:
        await self.readers.start()

    async def stop(self) -> None:
        await self.readers.stop()


def parsing_of(tool_parser: str | None, reasoning_parser: str | None, codec: Codec) -> Parsing:
    """Of a frontend, at its start: without parsers nothing of SGLang is imported."""
    setup = parser_setup(tool_parser, reasoning_parser, facts_of(codec))
    return Parsing(setup, codec.text_ids(setup.marks.end, special_tokens=False) if setup.marks else [])
