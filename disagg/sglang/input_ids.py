"""A prompt's ids as SGLang's TokenizerManager sends them to its scheduler: array("q").

Why:   it takes lists and arrays, and makes this array of either. Of an equal array that is one copy; a list of 100,000
       ids, and the array of it, would hold an engine's host for 3 ms
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def input_ids(prompt_ids: Sequence[int]) -> array[int]:
    import numpy  # there where SGLang is

    return array("q", numpy.asarray(prompt_ids, dtype=numpy.int64).tobytes())
