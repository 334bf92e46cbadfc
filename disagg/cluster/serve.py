"""`disagg serve`: from a checked configuration to a serving deployment, and back to nothing.

Way:   cli -> [serve] -> janitor, Ray, preflight, controller, frontend
Fails: ConfigError when the preflight refuses, StartError; whatever had been started is ended first. After a
       SIGKILL, or a second signal, the janitor and the closed pipes end the rest (stopping.py)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import ray
from msgspec.structs import replace

from disagg import stopping, surroundings
from disagg.cluster import cluster_inspect as preflight
from disagg.cluster import janitor, ray_cluster
from disagg.cluster.controller import Addresses, Controller
from disagg.cluster.first_steps import first_steps
from disagg.cluster.frontend_process import Frontends
from disagg.cluster.node_labels import labels_of
from disagg.cluster.ports import hold
from disagg.cluster.setting import OfModel, Setting
from disagg.cluster.steps import either, first_error
from disagg.config.frontend import ApiKey, page_origins
from disagg.config.schema import Deployment
from disagg.coordinator.limits import Limits
from disagg.errors import ConfigError, StartError
from disagg.folders import run_folder
from disagg.frontend.key_limits import LimitedKey
from disagg.frontend.readers import PROGRAM, READ_S, Order
from disagg.frontend.spec import FrontendSpec, ModelSpec, TracesSpec
from disagg.frontend.tls import TlsSpec
from disagg.host_spec import DEPLOYMENT_VARIABLE, SECRET_VARIABLE, TextSpec
from disagg.models.resolve import resolve_model
from disagg.planning.plan import Plan, device_of, resolve_parts
from disagg.registry.keys import Keys
from disagg.registry.records import State
from disagg.registry.shared import Shared
from disagg.registry.table import View
from disagg.role_table import ROLES
from disagg.routing.cost.from_shape import NO_PRIOR, prior_of
from disagg.routing.cost.prior import Prior
from disagg.tokenizer.overrides import Overrides

log = logging.getLogger(__name__)

T = TypeVar("T")
END_S = 2.3  # what a stop may take while nobody waits for an answer: `ray job stop` kills 3 s after its signal


async def serve(deployment: Deployment, *, is_quiet: bool = False) -> None:
    """Runs until a signal asks it to stop, and returns once nothing is left. Before it serves, such a signal ends the
    process (128 + N), when all is given back or END_S is over; what is left then is the janitor's. `is_quiet`: it says
    neither what to try first nor what goes on."""
    course = Course()
    with stopping.in_order(course.ask_to_stop):
        course.running = asyncio.current_task()
        try:
            with frontend_port(deployment.frontend.host, deployment.frontend.port):
                await _run(deployment, course, is_quiet=is_quiet)
        except asyncio.CancelledError:
            if not course.signal:
                raise
        if course.signal and not course.serves:
            stopping.leave(128 + course.signal)  # not before: a thread may still be in a call that has no end
        log.info("stopped")


class Course:
    """How far a deployment has come, which decides what a signal means."""

    def __init__(self) -> None:
        self.running: asyncio.Task[None] | None = None
        self.serves = False
        self.signal = 0
        self._loop = asyncio.get_running_loop()

    def ask_to_stop(self, number: int) -> None:
        """In the main thread, while the loop may be busy."""
        self.signal = number
        if not self.serves:
            stopping.leave_within(END_S, 128 + number)
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        log.info("stopping")
        assert self.running is not None
        self.running.cancel()

    def has_no_request(self) -> None:
        """Called when nobody waits for an answer any more: the rest of the stop may take END_S."""
        if self.signal and self.serves:
            stopping.leave_within(END_S, 0)


async def _run(deployment: Deployment, course: Course, *, is_quiet: bool) -> None:
    began_s = time.monotonic()
    surroundings.refuse(os.environ)
    name = secrets.token_hex(4)  # of this run: the janitor looks for it
    told_of_run(deployment, name)
    folders = await _model_folders(deployment)
    async with ray_and_janitor(deployment, name) as (plans, private):
        stopping.settled()
        prepared = await prepare(deployment, plans, name, folders, is_private=private, is_quiet=is_quiet)
        setting, shared = prepared.setting, prepared.shared
        controller = Controller(plans, setting, shared)
        frontends: Frontends | None = None
        keeping: asyncio.Task[None] | None = None
        progress = asyncio.create_task(report(controller.registry.watch(), began_s))
        try:
            # Frontends that this driver starts run beside it; what follows a shared registry may be on another node.
            here = "127.0.0.1" if private or shared is None else ray.util.get_node_ip_address()
            addresses = await controller.start(here)
            spec = replace(prepared.spec, registry=addresses.registry, control=addresses.control)
            count = deployment.frontend.count
            frontends = Frontends(spec, count, _frontend_environment(setting), controller.registry)
            await either(first_error(frontends.start(), controller.until_ready()), controller.is_to_stop.wait())
            if controller.is_to_stop.is_set():
                log.info("stopping before it is ready, as an operator has ordered")
                return
            course.serves = not course.signal
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


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a controller is made of, once nothing speaks against the deployment."""

    setting: Setting
    spec: FrontendSpec  # but for the controller's addresses
    shared: Shared | None


def told_of_run(deployment: Deployment, name: str) -> None:
    log.info("deployment %s of namespace %s (%s)", deployment.name, deployment.namespace, name)


async def _model_folders(deployment: Deployment) -> list[Path]:
    models = [part.model for part in deployment.parts()]
    return [await _apart(resolve_model, model.path, model.revision) for model in models]


async def prepare(
    deployment: Deployment,
    plans: Sequence[Plan],
    name: str,
    folders: Sequence[Path] | None = None,
    *,
    is_private: bool = False,
    outlives: bool = False,
    is_quiet: bool = False,
) -> Prepared:
    """Ray is connected. `name`: of this run; `outlives`: the command. Raises ConfigError when the preflight refuses
    it."""
    folders, shared = folders or await _model_folders(deployment), _shared(deployment)
    if left_out := surroundings.left_out(os.environ):
        log.info("of the environment, engines and frontends do without %s", ", ".join(left_out))
    seen = await preflight.refuse(plans, [str(folder) for folder in folders])
    labels, unknown = labels_of(seen[0].nodes, deployment.transfer.places)
    for warning in dict.fromkeys([*(warning for each in seen for warning in each.warnings), *unknown]):
        log.warning("%s", warning)
    shared_by = [_shared_by_engines(plan, folder) for plan, folder in zip(plans, folders, strict=True)]
    setting = Setting(
        deployment=name,
        device=plans[0].device,
        model_path=shared_by[0].model_path,
        secret=secrets.token_hex(32),
        deadlines=deployment.deadlines,
        python_path=_python_path(plans[0].device),
        address="127.0.0.1" if is_private else "",
        text=shared_by[0].text,
        labels=labels,
        block_tokens=shared_by[0].block_tokens,
        of_models=dict(zip(deployment.models, shared_by, strict=True)) if deployment.models else {},
        outlives=deployment.name if outlives else "",
    )
    specs = [
        _model_spec(plan, folder, prior_of(plan, found.facts, found.gpus, found.gbytes_s))
        for plan, folder, found in zip(plans, folders, seen, strict=True)
    ]
    spec = _frontend_spec(plans[0], Addresses("", ""), specs, shared, is_quiet=is_quiet)
    return Prepared(setting, spec, shared)


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
            await _apart(
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
            await _apart(ray.shutdown)
            await _sweep(name, folders, cleaner)


async def _sweep(name: str, folders: list[str], cleaner: janitor.Janitor) -> None:
    await _apart(functools.partial(janitor.sweep, name, folders, session=os.getsid(0)))
    cleaner.close()


async def _apart(call: Callable[..., T], *arguments: object) -> T:
    """Runs a call that blocks in a thread of its own. A cancellation does not wait for that thread, as it would for one
    of the loop's executor. The thread never ends: the kernel kills Ray's processes when the thread that started them
    does."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # a cancellation leaves it to the thread

    def run() -> None:
        try:
            answer.set_result(call(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=run, name=getattr(call, "__name__", "sweep"), daemon=True).start()
    return await asyncio.wrap_future(answer)


async def report(watch: AsyncIterator[View], began_s: float) -> None:
    """Logs a line at each change of an engine's state, so that whoever waits sees why."""
    said: dict[str, tuple[int, State, str]] = {}
    async for view in watch:
        for record in filter(None, view.changes.records.values()):
            now = (record.incarnation, record.state, record.detail.splitlines()[0] if record.detail else "")
            if said.get(record.id) != now and record.incarnation:
                said[record.id] = now
                log.info("%6.1f s  %s %s %s", time.monotonic() - began_s, record.life, record.state, now[2])


def _shared(deployment: Deployment) -> Shared | None:
    """Where the registry is, if it is not in our memory. Raises ConfigError."""
    section = deployment.registry
    if problems := section.problems():
        raise ConfigError("registry", tuple(problems))
    at, model = section.at(), "" if deployment.models else deployment.model.name
    return Shared(at, Keys(deployment.namespace, deployment.name, model)) if at is not None else None


def _shared_by_engines(plan: Plan, folder: Path) -> OfModel:
    text = _text_spec(plan, folder) if plan.model.tokenization == "engine" else None
    return OfModel(str(folder), text, plan.block_tokens if plan.tells_cache else 0)


def _model_spec(plan: Plan, folder: Path, prior: Prior = NO_PRIOR) -> ModelSpec:
    embeds = {ROLES[engine.role].embeds for engine in plan.engines}
    return ModelSpec(
        path=str(folder),
        name=plan.model.name,
        group=plan.deployment.key,
        prior=prior,
        block_tokens=plan.block_tokens,
        kv_events=plan.tells_cache,
        generates=False in embeds,
        embeds=True in embeds,
        tool_call_parser=plan.model.tool_call_parser,
        reasoning_parser=plan.model.reasoning_parser,
        overrides=_overrides(plan),
        tokenization=plan.model.tokenization,
    )


def _frontend_spec(
    plan: Plan,
    addresses: Addresses,
    models: Sequence[ModelSpec],
    shared: Shared | None = None,
    *,
    is_quiet: bool = False,
) -> FrontendSpec:
    """`plan`: any model's; what it says is all models'."""
    deadlines, security = plan.deadlines, plan.deployment.security
    said = deadlines.model_dump() | plan.deployment.routing.model_dump()
    limits = Limits(**{each.name: said[each.name] for each in dataclasses.fields(Limits)})
    return FrontendSpec(
        registry=addresses.registry,
        control=addresses.control,
        shared=shared,
        host=plan.frontend.host,
        port=plan.frontend.port,
        body_limit_bytes=plan.frontend.body_limit_mib << 20,
        refuses_unknown=plan.frontend.unknown_fields == "refuse",
        connections_max=plan.frontend.connections_max,
        held_limit_bytes=plan.frontend.held_limit_mib << 20,
        models=tuple(models),
        number=0,
        stop_s=deadlines.stop_s,
        limits=limits,
        policy=str(plan.deployment.routing.policy),
        simulated=plan.device == "simulated",
        api_keys=tuple(each.key.get_secret_value() for each in security.api_keys if not each.is_metered),
        limited_keys=tuple(_limited(each, index) for index, each in enumerate(security.api_keys) if each.is_metered),
        admin_keys=tuple(key.get_secret_value() for key in security.admin_keys),
        open_metrics=security.open_metrics,
        origins=page_origins(plan.frontend, security),
        origins_age_s=plan.frontend.cors.max_age_s,
        says_what_goes_on=not is_quiet,
        metric_aliases=tuple(dict.fromkeys(plan.deployment.telemetry.metric_aliases)),
        tls=TlsSpec(tls.cert, tls.key, tls.client_ca) if (tls := plan.frontend.tls) else None,
        traces=_traces(plan),
    )


def _limited(each: ApiKey, index: int) -> LimitedKey:
    return LimitedKey(
        key=each.key.get_secret_value(),
        name=each.name_at(index),
        requests_per_minute=each.requests_per_minute or 0,
        tokens_per_minute=each.tokens_per_minute or 0,
        concurrent=each.concurrent or 0,
        models=each.models,
    )


def _traces(plan: Plan) -> TracesSpec | None:
    traces = plan.deployment.telemetry.traces
    if traces is None:
        return None
    headers = {name: value.get_secret_value() for name, value in traces.headers.items()}
    service = plan.deployment.name
    return TracesSpec(endpoint=traces.endpoint, sample_ratio=traces.sample_ratio, headers=headers, service=service)


def _overrides(plan: Plan) -> Overrides:
    return Overrides(
        sampling_defaults=plan.model.sampling_defaults.model_dump(exclude_none=True),
        chat_template=plan.model.chat_template,
        chat_template_kwargs=plan.model.chat_template_kwargs,
    )


def _text_spec(plan: Plan, model_path: Path) -> TextSpec:
    order = Order(
        folder=str(model_path),
        model=plan.model.name,
        read_s=READ_S,
        overrides=_overrides(plan),
        refuses_unknown=plan.frontend.unknown_fields == "refuse",
        is_host=True,
        trust_remote_code=plan.model.trust_remote_code,
    )
    return TextSpec(str(model_path), PROGRAM, msgspec.msgpack.encode(order), plan.model.trust_remote_code)


def _frontend_environment(setting: Setting) -> dict[str, str]:
    return surroundings.of_our_processes(os.environ) | {
        SECRET_VARIABLE: setting.secret,
        DEPLOYMENT_VARIABLE: setting.deployment,
    }


def _python_path(device: str) -> list[str]:
    """Folders that engine processes search before site-packages."""
    if device != "cpu":
        return []
    from disagg.cpu_profile.paths import standin_paths

    return standin_paths()


def frontend_port(host: str, port: int) -> socket.socket:
    """Held until the deployment ends: the frontends, which listen there later and may be started again, find it free.
    Raises StartError, before engines load for minutes."""
    try:
        return hold(host, port)
    except OSError as error:
        would_do = "choose another frontend.port, or end what listens there"
        raise StartError("frontend.port", f"{host}:{port} cannot be bound: {error.strerror}", would_do) from error
