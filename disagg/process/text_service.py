"""An engine host's tokenizer, for frontends that have none (`model.tokenization: engine`).

Way:   plane server -> [TextService.read] -> a reader's process -> ids; an engine's ids -> LegText -> their text
In:    a TextSpec; bodies of clients
Owns:  one process for short bodies and LONG_READERS for long ones, so that a long one holds up no short one; the texts
       of tokens, in this process: a token costs less than a word to another process would
Fails: StartError for a tokenizer that cannot be read; a HasRead that says why for a body that nobody could read
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from disagg.errors import BadRequest, Overloaded, RequestError
from disagg.host_spec import TextSpec
from disagg.plane import messages as m
from disagg.process.body_readers import LONG_NICENESS, BodyReaders
from disagg.tokenizer.any_tokenizer import load_any
from disagg.tokenizer.leg_text import LegText
from disagg.tokenizer.short_bodies import is_short
from disagg.tokenizer.text import Texts

log = logging.getLogger(__name__)

LONG_READERS = 2
BODIES_MAX = 256  # that wait or are being read
FAILURES: tuple[tuple[type[RequestError], str], ...] = ((Overloaded, m.BUSY), (BadRequest, m.TOO_COMPLEX))


class Asks(Protocol):
    """BodyReaders, but for tests."""

    async def ask(self, words: str, data: bytes) -> bytes: ...


class TextService:
    """Implements `disagg.plane.text.TextService`."""

    def __init__(self, texts: Texts, short: Asks, long: Asks) -> None:
        self._texts, self._short, self._long = texts, short, long
        self._bodies = 0

    async def read(self, number: int, words: str, body: bytes) -> m.HasRead:
        if self._bodies >= BODIES_MAX:
            return m.HasRead(number, b"", m.BUSY)
        self._bodies += 1
        try:
            is_quick = is_short(body, is_fast=True, endpoint=words.split(" ", 1)[0])
            readers = self._short if is_quick else self._long
            return m.HasRead(number, await readers.ask(words, body))
        except RequestError as error:
            failed = next((word for kind, word in FAILURES if isinstance(error, kind)), m.LOST_READER)
            return m.HasRead(number, b"", failed, error.what)
        except Exception:  # the frontend waits for a word
            log.exception("a body could not be read: an error nobody foresaw")
            return m.HasRead(number, b"", m.LOST_READER, "an engine host could not read this request")
        finally:
            self._bodies -= 1

    def leg_text(self, wanted: m.TextWanted, emitted_ids: list[int]) -> LegText:
        end_ids = frozenset(wanted.end_ids)
        return LegText(self._texts, end_ids, shows_special=wanted.shows_special, emitted_ids=emitted_ids)


async def text_service(spec: TextSpec) -> TextService:
    """With its first reader's process started: it takes a second to be ready."""
    short = BodyReaders(spec.program, spec.order, 1)
    long = BodyReaders(spec.program, spec.order, LONG_READERS, LONG_NICENESS)
    texts = Texts(load_any(Path(spec.folder), trust_remote_code=spec.trust_remote_code))
    await short.start()
    return TextService(texts, short, long)
