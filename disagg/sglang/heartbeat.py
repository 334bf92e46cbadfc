"""The beats of an engine's schedulers: a small file a scheduler process, in the incarnation's scratch folder.

Way:   scheduler loop (plugins/heartbeat.py) -> [BeatWriter] =mmap=> [read_beats] -> rank_watch.py, every half second
Owns:  the layout: doubles, each written by one aligned store, so that a reader never sees half of one
Why:   a scheduler that hangs cannot answer; what it wrote last can still be read
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import NamedTuple

_PREFIX = "beat."


class Beat(NamedTuple):
    """One scheduler process. All numbers are doubles in the file; the first seven are written once."""

    pid: float
    dp_rank: float
    group: float  # processes of one group step together: each waits for the others
    requests_max: float  # that its scheduler runs at once
    kv_tokens: float
    page_size: float
    chunk_tokens: float  # of prompts, that it reads in one step; 0: no limit
    at_s: float  # time.monotonic() when its loop last came round
    batch_tokens: float  # of the batch that it computes now; 0: none
    step_longest_s: float
    step_longest_tokens: float  # of the batch of that step
    steps: float  # made so far


_LAYOUT = struct.Struct(f"={len(Beat._fields)}d")
_AT, _TOKENS, _LONGEST_S, _LONGEST_TOKENS, _STEPS = (
    Beat._fields.index(name) for name in ("at_s", "batch_tokens", "step_longest_s", "step_longest_tokens", "steps")
)


class BeatWriter:
    """Writes one scheduler's Beat. `overlaps`: the scheduler begins the next batch before it waits for this one's
    end."""

    def __init__(self, folder: Path, beat: Beat, *, overlaps: bool) -> None:
        path = folder / f"{_PREFIX}{int(beat.pid)}"
        new = path.with_name(f"new-{path.name}")
        new.write_bytes(_LAYOUT.pack(*beat))
        with new.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _LAYOUT.size)
        os.rename(new, path)
        self._doubles = memoryview(self._map).cast("d")
        self._at_s, self._longest_s, self._overlaps = beat.at_s, 0.0, overlaps
        self._tokens = 0

    def came_round(self) -> None:
        now_s, doubles = time.monotonic(), self._doubles
        if doubles[_TOKENS]:
            step_s = now_s - self._at_s
            if step_s > self._longest_s:
                self._longest_s = doubles[_LONGEST_S] = step_s
                doubles[_LONGEST_TOKENS] = doubles[_TOKENS]
            doubles[_TOKENS] = 0
            doubles[_STEPS] += 1
        self._at_s = doubles[_AT] = now_s

    def batch_begins(self, tokens: int) -> None:
        before, self._tokens = self._tokens if self._overlaps else 0, tokens
        self._doubles[_TOKENS] = max(tokens, before)


def read_beats(folder: Path) -> list[Beat]:
    """Of every scheduler process that ever began in this incarnation, dead ones too."""
    beats = []
    for path in folder.glob(f"{_PREFIX}*"):
        data = path.read_bytes()
        if len(data) == _LAYOUT.size:
            beats.append(Beat(*_LAYOUT.unpack(data)))
    return beats
