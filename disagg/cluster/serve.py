"""`disagg serve`: from a checked configuration to a serving deployment, and back to nothing.

Way:   cli -> [serve] -> janitor, Ray, preflight, controller, frontend
Fails: ConfigError when the preflight refuses, StartError; whatever had been started is ended first. After a
       SIGKILL, or a second signal, the janitor and the closed pipes end the rest (stopping.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Sequence

import ray
from msgspec.structs import replace

from disagg import stopping, surroundings
from disagg.cluster import janitor, ray_cluster
from disagg.cluster.controller import Controller
from disagg.cluster.course import Course
from disagg.cluster.first_steps import first_steps
from disagg.cluster.frontend_process import Frontends
from disagg.cluster.ports import hold
from disagg.cluster.preparing import model_folders, prepare
from disagg.cluster.setting import Setting
from disagg.cluster.steps import apart, either, first_error
from disagg.config.schema import Deployment
from disagg.errors import StartError
from disagg.folders import run_folder
from disagg.host_spec import DEPLOYMENT_VARIABLE, SECRET_VARIABLE
from disagg.planning.plan import Plan, device_of, resolve_parts
from disagg.registry.records import State
from disagg.registry.table import View

log = logging.getLogger(__name__)


async def serve(deployment: Deployment, *, is_quiet: bool = False) -> None:
    """Runs until a signal asks it to stop, and returns once nothing is left. Before it serves, such a signal ends the
    process (128 + N), when all is given back or END_S is over; what is left then is the janitor's. `is_quiet`: it says
    neither what to try first nor what goes on."""
    course = Course()
    with course.heeding(), frontend_port(deployment.frontend.host, deployment.frontend.port):
        await _run(deployment, course, is_quiet=is_quiet)
    log.info("stopped")


async def _run(deployment: Deployment, course: Course, *, is_quiet: bool) -> None:
    began_s = time.monotonic()
    surroundings.refuse(os.environ)
    name = secrets.token_hex(4)  # of this run: the janitor looks for it
    told_of_run(deployment, name)
    folders = await model_folders(deployment)
    async with ray_and_janitor(deployment, name) as (plans, private):
        stopping.settled()
        prepared = await prepare(deployment, plans, name, folders, is_private=private, is_quiet=is_quiet)
        setting = prepared.setting
        controller = Controller(deployment, plans, setting, prepared.learn, prepared.shared)
        frontends: Frontends | None = None
        keeping: asyncio.Task[None] | None = None
        progress = asyncio.create_task(report(controller.registry.watch(), began_s))
        try:
            addresses = await controller.start(prepared.here, prepared.models, prepared.sealed)
            spec = replace(prepared.spec, registry=addresses.registry, control=addresses.control)
            count = deployment.frontend.count
            frontends = Frontends(spec, count, _frontend_environment(setting), controller.registry)
            await either(first_error(frontends.start(), controller.until_ready()), controller.is_to_stop.wait())
            if controller.is_to_stop.is_set():
                log.info("stopping before it is ready, as an operator has ordered")
                return
            course.has_come_to_serve()
            took_s = time.monotonic() - began_s
            names, url = ", ".join(plan.model.name for plan in plans), deployment.frontend.base_url
            log.info("serving %s on %s after %.1f s", names, url, took_s)
            for step in () if is_quiet else first_steps(plans[0]):
                log.info("%s", step)
            keeping = asyncio.create_task(frontends.keep_alive(), name="keep the frontends alive")
            await either(controller.fleet.failed(), controller.is_to_stop.wait())
            controller.fleet.check()
            log.info("stopping, as an operator has ordered")
        finally:
            progress.cancel()
            if keeping is not None:
                keeping.cancel()
                await asyncio.wait([keeping])
            if frontends is not None:  # engines serve on until their requests have ended
                await frontends.stop()
            course.has_no_request()
            await controller.stop()


def told_of_run(deployment: Deployment, name: str) -> None:
    log.info("deployment %s of namespace %s (%s)", deployment.name, deployment.namespace, name)


@contextlib.asynccontextmanager
async def ray_and_janitor(deployment: Deployment, name: str) -> AsyncIterator[tuple[Sequence[Plan], bool]]:
    """A plan for each model, and Ray, and whether it is private, with a janitor behind us: however this process ends,
    nothing stays."""
    os.umask(0o077)  # of all that is started, too: nothing of a deployment is for other users
    settings = deployment.ray
    ray_folder = ray_cluster.private_folder(settings.address)
    folders = [str(run_folder(name)), *filter(None, [ray_folder])]
    cleaner = janitor.Janitor(name, folders)
    with stopping.farewell(cleaner.hurry):
        try:
            await apart(
                ray_cluster.connect,
                settings.address,
                ray_folder,
                settings.cpus,
                settings.gpus,
                name,
                deployment.namespace,
            )
        except asyncio.CancelledError:
            cleaner.hurry()  # it still connects, and starts what it starts, until this process ends
            raise
        except BaseException:
            await _sweep(name, folders, cleaner)
            raise
        try:
            plans = resolve_parts(deployment, device_of(deployment, ray.cluster_resources().get("GPU", 0.0)))
            for warning in dict.fromkeys(warning for plan in plans for warning in plan.warnings):
                log.warning("%s", warning)
            yield plans, bool(ray_folder)
        finally:
            await apart(ray.shutdown)
            await _sweep(name, folders, cleaner)


async def _sweep(name: str, folders: list[str], cleaner: janitor.Janitor) -> None:
    await apart(functools.partial(janitor.sweep, name, folders, session=os.getsid(0)))
    cleaner.close()


async def report(watch: AsyncIterator[View], began_s: float) -> None:
    """Logs a line at each change of an engine's state, so that whoever waits sees why."""
    said: dict[str, tuple[int, State, str]] = {}
    async for view in watch:
        for record in filter(None, view.changes.records.values()):
            now = (record.incarnation, record.state, record.detail.splitlines()[0] if record.detail else "")
            if said.get(record.id) != now and record.incarnation:
                said[record.id] = now
                log.info("%6.1f s  %s %s %s", time.monotonic() - began_s, record.life, record.state, now[2])


def _frontend_environment(setting: Setting) -> dict[str, str]:
    return surroundings.of_our_processes(os.environ) | {
        SECRET_VARIABLE: setting.secret,
        DEPLOYMENT_VARIABLE: setting.deployment,
    }


def frontend_port(host: str, port: int) -> socket.socket:
    """Held until the deployment ends: the frontends, which listen there later and may be started again, find it free.
    Raises StartError, before engines load for minutes."""
    try:
        return hold(host, port)
    except OSError as error:
        would_do = "choose another frontend.port, or end what listens there"
        raise StartError("frontend.port", f"{host}:{port} cannot be bound: {error.strerror}", would_do) from error
