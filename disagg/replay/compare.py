"""Policies side by side: the same requests for all of them, at several loads, with several seeds.

Way:   Setting -> capacity -> [compare] -> processes, each with its own Simulation -> a Row a policy, load and seed
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from random import Random

from disagg.replay.measures import Measures
from disagg.replay.simulate import Setting, Simulation
from disagg.routing.policy import Policy, Surroundings, load_policy


@dataclass(frozen=True, slots=True)
class Load:
    """`name` as it is told: a share of the capacity, or a rate."""

    name: str
    rate: float  # requests a second


@dataclass(frozen=True, slots=True)
class Row:
    policy: str
    load: Load
    seed: int
    measures: Measures


Said = Callable[[Row], None]


def compare(
    setting: Setting,
    policies: Sequence[str],
    loads: Sequence[Load],
    seeds: Sequence[int],
    *,
    processes: int = 1,
    said: Said = lambda row: None,
) -> list[Row]:
    """By load, seed and policy. `said` gets each row as soon as it is there."""
    runs = [(load, seed) for load in loads for seed in seeds]
    rows: list[Row] = []
    for found in _each(setting, policies, runs, processes):
        for row in found:
            said(row)
            rows.append(row)
    return rows


def _each(
    setting: Setting, policies: Sequence[str], runs: Sequence[tuple[Load, int]], processes: int
) -> Iterator[list[Row]]:
    if processes <= 1:
        simulation = Simulation(setting)
        yield from (_rows(simulation, policies, run) for run in runs)
        return
    # A forked process has the trace already; it may be hundreds of megabytes.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _begin, (setting,)) as pool:
        yield from pool.map(partial(_rows_here, policies), runs)


_here: list[Simulation] = []  # of this process


def _begin(setting: Setting) -> None:
    _here.append(Simulation(setting))


def _rows_here(policies: Sequence[str], run: tuple[Load, int]) -> list[Row]:
    return _rows(_here[0], policies, run)


def _rows(simulation: Simulation, policies: Sequence[str], run: tuple[Load, int]) -> list[Row]:
    load, seed = run
    return [Row(name, load, seed, simulation.run(partial(policy_of, name, seed), load.rate, seed)) for name in policies]


def policy_of(name: str, seed: int) -> Policy:
    return load_policy(name, Surroundings(random=Random(seed), now_s=lambda: asyncio.get_running_loop().time()))
