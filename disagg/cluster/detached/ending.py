"""The end of a detached deployment, whoever orders it: nothing of it stays in the Ray cluster, or on any node.

Way:   its controller, or `disagg stop CONFIG` where that is dead -> [end_all] =Ray=> actors, places, notes; the
       janitor's sweep on each node
Fails: never; a node that does not answer keeps what Ray's own end of it leaves: reapers end their engines
"""

from __future__ import annotations

import asyncio
import logging

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg.cluster import janitor
from disagg.cluster.detached.names import AGENT, ENGINE, FRONTENDS, Names, actor_of, kill
from disagg.cluster.detached.ray_notes import RayNotes
from disagg.cluster.frontend_process import STOP_MORE_S
from disagg.folders import run_folder

log = logging.getLogger(__name__)

SWEEP_S = 40.0
ANSWER_S = 10.0  # beyond what frontends may take


async def end_all(names: Names, notes: RayNotes, run: str, stop_s: float) -> None:
    """All but its controller, and its keys in the registry, which are under that one's lease. `stop_s`: what answers
    that run may take."""
    for name in names.actors(FRONTENDS):
        keeper = actor_of(name)
        try:
            async with asyncio.timeout(stop_s + STOP_MORE_S + ANSWER_S):
                await keeper.stop.remote()
        except (RayError, TimeoutError, AttributeError) as error:
            log.warning("frontends did not end in order: %s", error)
        kill(name)
    for kind in (ENGINE, AGENT):
        for name in names.actors(kind):
            kill(name)
    names.release_all()
    await _sweep(run)
    await notes.clear()


async def _sweep(run: str) -> None:
    """What their pipes have not ended, and the folders of this run."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    sweeping = [
        ray.remote(_sweep_node)
        .options(num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        .remote(run)
        for node_id in nodes
    ]
    done, late = await asyncio.wait([asyncio.ensure_future(_done(each)) for each in sweeping], timeout=SWEEP_S)
    for task in late:
        task.cancel()
    for task in done:
        if isinstance(task.exception(), RayError):
            log.warning("a node was not swept: %s", task.exception())


async def _done(swept: ray.ObjectRef) -> None:
    await swept


def _sweep_node(run: str) -> None:
    janitor.sweep(run, [str(run_folder(run))], session=0)
