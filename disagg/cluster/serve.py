"""`disagg serve`: from a checked configuration to a serving deployment, and back to nothing.

Way:   cli -> [serve] -> janitor, Ray, preflight, controller, frontend
Fails: ConfigError when the preflight refuses, StartError; whatever had been started is ended first. A SIGKILL is the
       janitor's and the pipes' affair
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import ray

from disagg.cluster import janitor, ray_cluster
from disagg.cluster.controller import Controller
from disagg.cluster.frontend_process import FrontendProcess, FrontendSpec
from disagg.cluster.supervisor import Setting
from disagg.config.plan import Plan, device_of, resolve_plan
from disagg.config.schema import Deployment
from disagg.coordinator.coordinator import Limits
from disagg.engine.spec import DEPLOYMENT_VARIABLE, SECRET_VARIABLE
from disagg.errors import StartError
from disagg.models.resolve import resolve_model
from disagg.preflight import probe as preflight
from disagg.preflight.doorways import why_not_bound
from disagg.registry.records import EngineRecord, State

log = logging.getLogger(__name__)


async def serve(deployment: Deployment) -> None:
    """Runs until SIGTERM or SIGINT."""
    asked_to_stop = asyncio.Event()
    _heed_signals(asked_to_stop)
    running = asyncio.create_task(_run(deployment, asked_to_stop), name="deployment")
    stopping = asyncio.create_task(asked_to_stop.wait(), name="wait for a signal")
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        log.info("stopping")
        running.cancel()
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def _heed_signals(asked_to_stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)


async def _run(deployment: Deployment, asked_to_stop: asyncio.Event) -> None:
    began_s = time.monotonic()
    model_path = resolve_model(deployment.model.path, deployment.model.revision)
    _refuse_a_taken_port(deployment.frontend.host, deployment.frontend.port)
    name = secrets.token_hex(4)  # of this run: what the janitor looks for
    log.info("deployment %s of namespace %s (%s)", deployment.name, deployment.namespace, name)
    async with ray_and_janitor(deployment, name) as (plan, private):
        # Again: connecting put Ray's own handler of SIGTERM before ours, and 3 s after the signal that one aborts.
        _heed_signals(asked_to_stop)
        for warning in await preflight.refuse(plan, str(model_path)):
            log.warning("%s", warning)
        setting = Setting(
            deployment=name,
            device=plan.device,
            model_path=str(model_path),
            secret=secrets.token_hex(32),
            deadlines=plan.deadlines,
            python_path=_python_path(plan.device),
            address="127.0.0.1" if private else "",
        )
        controller = Controller(plan, setting)
        frontend: FrontendProcess | None = None
        keeping: asyncio.Task[None] | None = None
        progress = asyncio.create_task(_report(controller.registry.watch(), began_s))
        try:
            # The frontend runs beside this driver; where engines are on other nodes their hosts are reached by address.
            registry = await controller.start("127.0.0.1")
            frontend = FrontendProcess(_frontend_spec(plan, registry, model_path), _frontend_environment(setting))
            await _first_error(frontend.start(), controller.until_ready())
            host, port = plan.frontend.host, plan.frontend.port
            log.info("serving %s on http://%s:%d after %.1f s", plan.model.name, host, port, time.monotonic() - began_s)
            keeping = asyncio.create_task(frontend.keep_alive(), name="keep the frontend alive")
            await controller.failed()
            controller.check()
        finally:
            progress.cancel()
            if keeping is not None:
                keeping.cancel()
                await asyncio.wait([keeping])
            if frontend is not None:  # engines serve on until its requests have ended
                await frontend.stop()
            await controller.stop()


@contextlib.asynccontextmanager
async def ray_and_janitor(deployment: Deployment, name: str) -> AsyncIterator[tuple[Plan, bool]]:
    """Ray, and whether it is private, with a janitor behind us: however this process ends, nothing stays."""
    settings = deployment.ray
    folder = ray_cluster.private_folder(settings.address)
    cleaner = janitor.start(name, folder)
    try:
        await asyncio.to_thread(
            ray_cluster.connect,
            settings.address,
            folder,
            settings.cpus,
            settings.gpus,
            name,
            deployment.namespace,
        )
        plan = resolve_plan(deployment, device_of(deployment, ray.cluster_resources().get("GPU", 0.0)))
        for warning in plan.warnings:
            log.warning("%s", warning)
        yield plan, bool(folder)
    finally:
        await asyncio.to_thread(ray.shutdown)
        await asyncio.to_thread(janitor.sweep, name, folder)
        assert cleaner.stdin is not None
        cleaner.stdin.close()
        cleaner.wait()


async def _first_error(*steps: object) -> None:
    """Runs the steps side by side; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)  # type: ignore[arg-type]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _report(watch: AsyncIterator[dict[str, EngineRecord]], began_s: float) -> None:
    """A line a change of state, so that whoever waits sees why."""
    said: dict[str, tuple[int, State, str]] = {}
    async for records in watch:
        for record in records.values():
            now = (record.incarnation, record.state, record.detail.splitlines()[0] if record.detail else "")
            if said.get(record.id) != now and record.incarnation:
                said[record.id] = now
                log.info("%6.1f s  %s %s %s", time.monotonic() - began_s, record.life, record.state, now[2])


def _frontend_spec(plan: Plan, registry: str, model_path: Path) -> FrontendSpec:
    deadlines = plan.deadlines
    said = deadlines.model_dump() | plan.deployment.routing.model_dump()
    limits = Limits(**{each.name: said[each.name] for each in dataclasses.fields(Limits)})
    return FrontendSpec(
        registry=registry,
        host=plan.frontend.host,
        port=plan.frontend.port,
        body_limit_bytes=plan.frontend.body_limit_mib << 20,
        model_path=str(model_path),
        model_name=plan.model.name,
        number=0,
        stop_s=deadlines.stop_s,
        limits=limits,
        simulated=plan.device == "simulated",
        api_keys=tuple(key.get_secret_value() for key in plan.deployment.security.api_keys),
    )


def _frontend_environment(setting: Setting) -> dict[str, str]:
    return os.environ | {SECRET_VARIABLE: setting.secret, DEPLOYMENT_VARIABLE: setting.deployment}


def _python_path(device: str) -> list[str]:
    """What goes before site-packages in engine processes."""
    if device != "cpu":
        return []
    from disagg.engine.cpu.paths import standin_paths

    return standin_paths()


def _refuse_a_taken_port(host: str, port: int) -> None:
    """Before engines load for minutes; the frontend binds it for good."""
    error = why_not_bound(host, port)
    if error is not None:
        would_do = "choose another frontend.port, or end what listens there"
        raise StartError("frontend.port", f"{host}:{port} cannot be bound: {error.strerror}", would_do)
