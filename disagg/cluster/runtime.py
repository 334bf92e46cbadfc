"""What a control plane takes from the world: time, connections, randomness. A simulation hands in its own.

Waits and timers are the event loop's own, whose clock `now_s` must be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from disagg.plane.network import TCP, Network


@dataclass(frozen=True, slots=True)
class Runtime:
    now_s: Callable[[], float] = time.monotonic
    wall_s: Callable[[], float] = time.time  # for people
    network: Network = TCP
    random: Random = field(default_factory=Random)
