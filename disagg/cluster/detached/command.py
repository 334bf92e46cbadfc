"""`disagg serve --detach`: from a checked configuration to a deployment that outlives this command.

Way:   cli -> [serve_detached] -> Ray, preflight =Ray=> ControllerActor; it waits until that serves, and ends
       cli -> [stop_detached]: the end of one whose controller is dead, or cannot be asked
In:    a configuration that names a Ray cluster that is there, and a shared registry. Where a controller of this
       deployment has died for good, another one is started, with what the first one was started with
Fails: ConfigError, StartError before anything is started; later StartError, when all that was started has been ended
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg import stopping, surroundings
from disagg.cluster import ray_address
from disagg.cluster.course import Course
from disagg.cluster.detached.controller_actor import Begun, ControllerActor
from disagg.cluster.detached.ending import end_all
from disagg.cluster.detached.names import Names, actor_of, kill
from disagg.cluster.detached.ray_notes import RayNotes
from disagg.cluster.first_steps import first_steps
from disagg.cluster.notes import BEGUN
from disagg.cluster.preparing import prepare
from disagg.cluster.serve import frontend_port, ray_and_janitor, report, told_of_run
from disagg.config.schema import Deployment
from disagg.errors import ConfigError, Problem, StartError
from disagg.registry.follower import Follower
from disagg.registry.shared import Shared, open_store
from disagg.registry.store import StoreLost

log = logging.getLogger(__name__)

ANSWER_S = 5.0
LEAVE_S = 1.0  # for a controller to hear that all is to end: a signal leaves little more (serve.py)
SERVES_MORE_S = 120.0  # beyond deadlines.start_s: an actor's start, and an earlier controller's lease
END_S = 120.0  # beyond deadlines.stop_s
POLL_S = 0.2
SEEN_S = 0.5  # for what the registry tells last


def refuse_to_detach(deployment: Deployment) -> None:
    """Raises ConfigError where the controller's death would be the deployment's, and StartError where Ray's would."""
    if deployment.registry.kind == "memory":
        what = "kind memory is in the controller's process, and --detach is for one that may die"
        raise ConfigError("--detach", (Problem("registry.kind", what, "say kind: file or etcd"),))
    if not ray_address.meant(deployment.ray.address, os.environ).address:
        what = "--detach needs a Ray cluster that outlives this command, and a private one would end with it"
        raise StartError("ray.address", what, "start one with `ray start --head`, and say ray.address: auto")


async def serve_detached(deployment: Deployment, *, is_quiet: bool = False) -> None:
    """Returns once it serves. A signal before that ends what has begun, and this process (128 + N): what is left then,
    `disagg stop CONFIG` ends. Raises ConfigError, and StartError, once nothing of it is left. A deployment that was
    there without a controller is left as it is."""
    refuse_to_detach(deployment)
    course = Course()
    with course.heeding():
        await _serve(deployment, course, is_quiet=is_quiet)


async def stop_detached(deployment: Deployment) -> None:
    """Returns once nothing of it is left. Raises StartError where there is none, and ConfigError as the start does."""
    refuse_to_detach(deployment)
    async with ray_and_janitor(deployment, secrets.token_hex(4)):
        stopping.settled()
        names, notes = Names(deployment.name), RayNotes(deployment.namespace, deployment.name)
        begun: Begun | None = (await notes.read()).get(BEGUN)
        controller = actor_of(names.controller)
        if begun is None and controller is None:
            name = f"{deployment.name} of namespace {deployment.namespace}"
            raise StartError("stop", f"no deployment {name} is detached on this Ray cluster", "see `disagg list`")
        if controller is not None and await _is_stopping(controller, ANSWER_S):
            until_s = time.monotonic() + deployment.deadlines.stop_s + END_S
            # Polled: it ends in another process.
            while actor_of(names.controller) is not None and time.monotonic() < until_s:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
        kill(names.controller)
        if begun is not None:
            await end_all(names, notes, begun.run, begun.deployment.deadlines.stop_s)


async def _is_stopping(controller: Any, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await controller.stop.remote()
            return True
    except (RayError, TimeoutError):
        return False


async def _take_back(controller: Any, names: Names, notes: RayNotes, begun: Begun) -> None:
    """By the controller, where that answers."""
    if not await _is_stopping(controller, LEAVE_S):
        kill(names.controller)
        await end_all(names, notes, begun.run, begun.deployment.deadlines.stop_s)


async def _serve(deployment: Deployment, course: Course, *, is_quiet: bool) -> None:
    began_s = time.monotonic()
    surroundings.refuse(os.environ)
    async with ray_and_janitor(deployment, secrets.token_hex(4)) as (plans, _):
        stopping.settled()
        names, notes = Names(deployment.name), RayNotes(deployment.namespace, deployment.name)
        _refuse_a_second(deployment, names)
        begun: Begun | None = (await notes.read()).get(BEGUN)
        is_first = begun is None
        if begun is None:
            begun = await _begin(deployment, plans, is_quiet=is_quiet)
            _refuse_a_second(deployment, names)
            await notes.write(BEGUN, begun)
        else:
            what = "the deployment is there without a controller: another one takes over what it was started with"
            log.info("%s; `disagg apply` changes it", what)
        actor = _start(begun, names)
        progress = asyncio.create_task(_report(begun.shared, began_s))
        limit_s = begun.deployment.deadlines.start_s + SERVES_MORE_S
        try:
            async with asyncio.timeout(limit_s):
                where = await actor.serving.remote()
            await asyncio.sleep(SEEN_S)
        except (asyncio.CancelledError, TimeoutError) as error:
            if is_first:
                await _take_back(actor, names, notes, begun)
            if isinstance(error, asyncio.CancelledError):
                raise
            what = f"it does not serve within {limit_s:g} s, or ends again and again"
            raise StartError("controller", what, "see its log; `disagg stop CONFIG` ends what is left") from None
        except RayError as error:
            if isinstance(cause := getattr(error, "cause", None), StartError | ConfigError):
                raise cause from None
            raise StartError("controller", f"it is gone: {error}", "see its log, and `ray status`") from None
        finally:
            progress.cancel()
        course.has_come_to_serve()
        url = begun.plans[0].frontend.base_url
        models = ", ".join(plan.model.name for plan in begun.plans)
        log.info("serving %s on %s after %.1f s; its controller is %s", models, url, time.monotonic() - began_s, where)
        for step in () if is_quiet else first_steps(begun.plans[0], end="disagg stop"):
            log.info("%s", step)


def _refuse_a_second(deployment: Deployment, names: Names) -> None:
    if actor_of(names.controller) is not None:
        what = f"deployment {deployment.name} of namespace {deployment.namespace} has its controller on this cluster"
        would_do = "`disagg apply` changes it, `disagg stop` ends it; another name makes another one"
        raise StartError("controller", what, would_do)


async def _begin(deployment: Deployment, plans: Any, *, is_quiet: bool) -> Begun:
    """Raises ConfigError when the preflight refuses it."""
    run = secrets.token_hex(4)
    told_of_run(deployment, run)
    with frontend_port(deployment.frontend.host, deployment.frontend.port):
        prepared = await prepare(deployment, plans, run, outlives=True, is_quiet=is_quiet)
    assert prepared.shared is not None
    node_id = ray.get_runtime_context().get_node_id()
    return Begun(deployment, tuple(plans), prepared, node_id)


def _start(begun: Begun, names: Names) -> Any:
    try:
        return (
            ray.remote(ControllerActor)
            .options(
                name=names.controller,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                scheduling_strategy=NodeAffinitySchedulingStrategy(begun.node_id, soft=True),
            )
            .remote(begun)
        )
    except ValueError as error:  # somebody else was quicker
        raise StartError("controller", str(error), "see `disagg list`") from None


async def _report(shared: Shared, began_s: float) -> None:
    """As soon as the registry has something to tell."""
    while True:
        with contextlib.suppress(StoreLost):
            async with _following(shared) as follower:
                await report(follower.watch(), began_s)
        await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def _following(shared: Shared) -> AsyncIterator[Follower]:
    follower = Follower(open_store(shared.at), shared.keys)
    try:
        await follower.connect()
        yield follower
    finally:
        await follower.close()
