"""Text that a host says with the ids is the text that the same ids decode to, in any groups and over any migration."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scripted import make_model_folder
from tokenizers import Tokenizer, decoders, models

from disagg.plane.messages import Shown, TextWanted
from disagg.tokenizer.given_text import GivenText
from disagg.tokenizer.leg_text import LegText
from disagg.tokenizer.text import Texts, text_stream
from disagg.tokenizer.tokenizer_files import load_tokenizer

ROUNDS = 60
STOPS = [(), ("b",), ("ab", "\u20ac"), ("\ufffd",)]


def byte_level(folder: Path) -> Tokenizer:
    return load_tokenizer(make_model_folder(folder))


def byte_fallback(_folder: Path) -> Tokenizer:
    """As Llama 2's: a token's text depends on the tokens beside it."""
    words = ["a", "b", "\u2581a", "\u2581b", "\u20ac", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("ends", [frozenset(), frozenset([1])], ids=["", "with an end token"])
def test_given_equals_decoded(tmp_path: Path, make: object, stop: tuple[str, ...], ends: frozenset[int]) -> None:
    texts = Texts(make(tmp_path))  # type: ignore[operator]
    draw = random.Random(f"{stop} {ends}")
    for _ in range(ROUNDS):
        ids = _ids(draw, texts, ends)
        groups = _groups(draw, ids)
        own = text_stream(texts, stop, ends)
        given = GivenText(stop, TextWanted(sorted(ends)), {}, shows_stop=False)
        leg = LegText(texts, ends, shows_special=False, emitted_ids=[])
        emitted: list[int] = []
        said = ["", ""]
        for group in groups:
            if draw.random() < 0.2:  # another host goes on; what the last one said of more ids is dropped
                given.give(Shown(1, leg.push(group), leg.unfinished))
                given.drop_given()
                leg = LegText(texts, ends, shows_special=False, emitted_ids=emitted)
            given.give(Shown(1, leg.push(group), leg.unfinished))
            said = [before + each.push(group) for before, each in zip(said, (own, given), strict=True)]
            emitted += group
            assert (given.stopped, given.matched) == (own.stopped, own.matched)
            if own.stopped:
                break
        assert said[0] + own.flush() == said[1] + given.flush()
        assert (given.stopped, given.matched) == (own.stopped, own.matched)


def _ids(draw: random.Random, texts: Texts, ends: frozenset[int]) -> list[int]:
    """Whole characters, halves of them, and now and then an end."""
    count = texts.tokenizer.get_vocab_size()
    spoken = texts.tokenizer.encode("ab \u20ac\U0001f3be b").ids
    ids = [draw.choice(spoken) if draw.random() < 0.6 else draw.randrange(2, count) for _ in range(draw.randrange(30))]
    return [each for each in ids if each not in ends] + ([1] if ends and draw.random() < 0.7 else [])


def _groups(draw: random.Random, ids: list[int]) -> list[list[int]]:
    rest, groups = list(ids), []
    while rest:
        size = draw.randint(1, 4)
        groups.append(rest[:size])
        del rest[:size]
    return groups
