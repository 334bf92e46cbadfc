"""What a simulated engine says: each token follows from all ids before it, whoever computes it.

In:    prompt and output ids so far, folded into one number; out: the next ids
Why:   a stream that moved to another engine must go on with exactly the same tokens, and a token that was lost or
       doubled on the way changes every token after it, so that one comparison finds it
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from zlib import crc32

from disagg.plane.messages import TokenLogprobs, pack_floats, pack_ids

EOS = 2
FIRST_ID, ID_COUNT = 300, 30_000  # above special tokens, inside any vocabulary that we serve
DIMENSIONS = 64  # of a vector
EOS_EVERY = 200  # one token in so many ends an answer that may end early


def fold(ids: Iterable[int], state: int = 0) -> int:
    """fold(a + b) == fold(b, fold(a))."""
    return crc32(pack_ids(ids), state)


def following(state: int, count: int, ignore_eos: bool) -> tuple[list[int], int]:
    """At most `count` ids after a prefix, EOS being the last there is, and the new state."""
    ids = []
    for _ in range(count):
        mixed = (state * 0x9E3779B1 >> 8) & 0xFFFFFF
        token = FIRST_ID + mixed % ID_COUNT
        if not ignore_eos and mixed % EOS_EVERY == 0:
            token = EOS
        ids.append(token)
        state = crc32(token.to_bytes(4, "little"), state)
        if token == EOS:
            break
    return ids, state


def start_of(adapter: str) -> int:
    """The state before the first id: each adapter says other tokens."""
    return crc32(adapter.encode()) if adapter else 0


def answer(prompt_ids: Sequence[int], max_tokens: int, ignore_eos: bool = False, adapter: str = "") -> list[int]:
    """The whole greedy answer that any engine gives to this prompt."""
    return following(fold(prompt_ids, start_of(adapter)), max_tokens, ignore_eos)[0]


def logprobs_of(ids: Sequence[int], top: int, chosen: Sequence[int] = ()) -> list[TokenLogprobs]:
    """Of each id a number that follows from it alone, of its `top` neighbours, and of chosen ids in its place."""
    return [
        TokenLogprobs(
            each,
            _logprob(each),
            [(each + at, _logprob(each) - at) for at in range(top)],
            [(one, _logprob(each + one)) for one in chosen],
        )
        for each in ids
    ]


def prompt_logprobs_of(ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(ids[0], None), *logprobs_of(ids[1:], top)]


def _logprob(token_id: int) -> float:
    return -(token_id % 97) / 16


def vector(ids: Sequence[int], second_at: int = 0, adapter: str = "") -> bytes:
    """The unit vector that any engine makes of these ids, as it travels."""
    draw = Random(fold(ids, start_of(adapter)) ^ second_at)
    numbers = [draw.uniform(-1.0, 1.0) for _ in range(DIMENSIONS)]
    length = sum(number * number for number in numbers) ** 0.5
    return pack_floats(number / length for number in numbers)
