"""The controller of a detached deployment: an actor that Ray starts again when it dies, and that goes on from there.

Way:   `disagg serve --detach` =Ray=> [ControllerActor] -> Controller, FrontendsAfar
In:    Begun, which Ray keeps for each start; what has changed since is in the notes (notes.py)
Out:   `serving` answers the command that waits; then the registry, and orders of operators
Owns:  the deployment. It ends all of it when an operator says so, or the first start fails. It ends alone, and touches
       nothing, where another controller has the deployment's name
Fails: any other error ends the process: Ray starts another one, which adopts what serves
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from dataclasses import dataclass

import ray

from disagg.cluster.controller import Controller
from disagg.cluster.detached.ending import end_all
from disagg.cluster.detached.frontends import FrontendsAfar
from disagg.cluster.detached.names import Names, kill
from disagg.cluster.detached.ray_notes import RayNotes
from disagg.cluster.notes import Earlier
from disagg.cluster.preparing import Prepared
from disagg.cluster.steps import either, first_error
from disagg.config.schema import Deployment
from disagg.errors import DisaggError, StartError
from disagg.folders import log_folder
from disagg.host_spec import DEPLOYMENT_VARIABLE, SECRET_VARIABLE
from disagg.planning.plan import Plan
from disagg.registry.shared import Shared

log = logging.getLogger(__name__)

TOLD_S = 30.0  # for whoever waits to hear why it did not start
AGAIN_S = 2.0


@dataclass(frozen=True)
class Begun:
    """What a deployment was started with: all that a controller needs, but for what has changed since."""

    deployment: Deployment
    plans: tuple[Plan, ...]  # of each model
    prepared: Prepared  # with a shared registry, which tells frontends where any controller is asked
    node_id: str  # where its frontends are

    @property
    def run(self) -> str:
        """Names it; other controllers of it have the same."""
        return self.prepared.setting.deployment

    @property
    def shared(self) -> Shared:
        assert self.prepared.shared is not None
        return self.prepared.shared


class Displaced(Exception):
    """Another controller has the deployment's name."""


class ControllerActor:
    """`serving` is asked by the command that waits, `stop` by one that cannot ask a frontend."""

    def __init__(self, begun: Begun) -> None:
        os.umask(0o077)
        _log_to_file(begun.run)
        self._begun, self._names = begun, Names(begun.deployment.name)
        self._notes = RayNotes(begun.deployment.namespace, begun.deployment.name)
        loop = asyncio.get_running_loop()
        self._serves: asyncio.Future[str] = loop.create_future()
        self._is_told = asyncio.Event()
        self._is_to_stop = asyncio.Event()
        self._running = loop.create_task(self._run())

    async def serving(self) -> str:
        """Returns once it does: where this controller is, for people. Raises why it does not."""
        try:
            return await asyncio.shield(self._serves)
        finally:
            self._is_told.set()

    async def stop(self) -> None:
        """Ends the deployment, wherever it is; returns at once."""
        self._is_to_stop.set()

    async def _run(self) -> None:
        try:
            await self._control()
        except Displaced as error:
            log.error("%s; this controller ends, and touches nothing", error)
            await self._tell(StartError("registry", str(error), "see `disagg list`"))
        except DisaggError as error:
            log.error("%s", error)
            await self._tell(error)
        except BaseException:
            log.exception("an error nobody foresaw; Ray starts another controller")
            os._exit(1)
        log.info("the controller ends")
        kill(self._names.controller)

    async def _tell(self, error: DisaggError) -> None:
        if not self._serves.done():
            self._serves.set_exception(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TOLD_S):
                    await self._is_told.wait()
                    await asyncio.sleep(AGAIN_S)  # for the answer to leave

    async def _control(self) -> None:
        """Returns, or raises DisaggError, once nothing of the deployment is left. Raises Displaced."""
        begun, notes = self._begun, self._notes
        earlier = Earlier.of(await notes.read())
        run = f"{begun.run}.{secrets.token_hex(4)}"
        setting, learn = begun.prepared.setting, begun.prepared.learn
        controller = Controller(begun.deployment, begun.plans, setting, learn, begun.shared, notes, run)
        variables = {SECRET_VARIABLE: setting.secret, DEPLOYMENT_VARIABLE: begun.run}
        count, spec = begun.deployment.frontend.count, begun.prepared.spec
        frontends = FrontendsAfar(self._names, spec, count, variables, begun.node_id)
        following: asyncio.Task[None] | None = None
        try:
            await frontends.find(controller.registry)
            await self._start(controller, earlier)
            if not earlier.was_ready:
                ready = first_error(frontends.all_listen(controller.registry), controller.until_ready())
                await either(ready, self._stop_asked(controller), self._displaced(controller))
            if not self._is_to_stop.is_set():
                self._serves.set_result(f"{socket.gethostname()}:{os.getpid()}")
                log.info("it %s", "goes on with what an earlier one has left" if earlier.was_ready else "serves")
                following = asyncio.create_task(frontends.follow(controller.registry), name="follow the frontends")
                await either(controller.fleet.failed(), self._stop_asked(controller), self._displaced(controller))
                if not self._is_to_stop.is_set():
                    following.cancel()
                    controller.fleet.check()
        except Displaced:
            if not earlier.is_placed:
                await notes.clear()
            raise
        except BaseException as error:
            if self._serves.done() or earlier.was_ready or not isinstance(error, DisaggError):
                raise RuntimeError("the controller cannot go on") from error
            await self._end(controller, frontends)
            raise
        if following is not None:
            following.cancel()
        await self._end(controller, frontends)

    async def _start(self, controller: Controller, earlier: Earlier) -> None:
        """A registry that is away while another controller takes over is waited for."""
        host, prepared = ray.util.get_node_ip_address(), self._begun.prepared
        try:
            await controller.start(host, prepared.models, prepared.sealed, earlier)
        except StartError as error:
            if controller.is_taken.is_set():
                raise Displaced(error.what) from None
            raise

    async def _stop_asked(self, controller: Controller) -> None:
        await either(controller.is_to_stop.wait(), self._is_to_stop.wait())
        self._is_to_stop.set()

    async def _displaced(self, controller: Controller) -> None:
        """Of this deployment's next controller this one was believed to be dead, and is to be. Else Ray starts another
        one, which finds a stranger there."""
        await controller.is_taken.wait()
        log.error("another controller has taken the deployment's name; this one ends, and touches nothing")
        os._exit(1)

    async def _end(self, controller: Controller, frontends: FrontendsAfar) -> None:
        log.info("the deployment ends")
        await frontends.stop()  # engines serve on until their requests have ended
        await controller.stop()
        await end_all(self._names, self._notes, self._begun.run, self._begun.deployment.deadlines.stop_s)


def _log_to_file(run: str) -> None:
    folder = log_folder(run)
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "controller.log"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, format="[%(asctime)s] %(message)s", force=True)
