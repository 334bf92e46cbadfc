"""`decode.pace_ms` in a real engine: steps are spaced out while a prompt is read, and only then."""

from __future__ import annotations

import itertools
import time
from statistics import mean, median

import pytest
from deployment import serving
from streams import Stream, wait_until

pytestmark = pytest.mark.alone

PACE_S = 0.2  # the most that the YAML takes
PROMPT_TOKENS = 2000  # some paces to read, on a quick machine too
TOKENS = 120
EDGE_S = 0.3  # between a client's clock and the moment at which the decode engine knows


def test_steps_are_apart_while_a_prompt_waits_for_its_kv() -> None:
    with serving("configs/local-cpu.yaml", "ray.address=local", f"decode.pace_ms={PACE_S * 1000:g}") as deployment:
        stream = Stream(deployment, [1000, *range(2000, 2040)], TOKENS)
        wait_until(lambda: len(stream.events) >= 20, 60)
        asked_s = time.monotonic()
        long = Stream(deployment, [*range(1000, 1000 + PROMPT_TOKENS)], 2)
        long.whole(120)
        stream.whole(120)
    read_s = long.events[0][0]
    gaps = [(before, after) for (before, _), (after, _) in itertools.pairwise(stream.events)]
    alone = [after - before for before, after in gaps if after < asked_s]
    beside = [after - before for before, after in gaps if before > asked_s + EDGE_S and after < read_s - EDGE_S]
    print(f"alone {median(alone):.3f} s, beside {len(beside)} of {mean(beside):.3f} s")
    if median(alone) > PACE_S * 0.9:
        pytest.skip(f"a step takes {median(alone):.2f} s here by itself: no pace can be seen")
    assert len(beside) >= 2
    assert mean(beside) > PACE_S * 0.9
