"""Which of several models this frontend serves, as the registry says: they come and go while it runs.

Way:   the registry's records of models -> [Roster] -> OneModel, Frontend
In:    COMING: it is made ready, its tokenizer read in a thread, and nobody may name it. SERVING: it may be named.
       LEAVING: it may not; what runs goes on. No record: it is closed, once its last request has ended
Owns:  a OneModel for each. Of two of one name the newer one serves as soon as it is ready, and until then the older
Fails: StartError from `begin` where none can be served. Else a model that cannot be made ready is logged, and tried
       again every AGAIN_S
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from disagg.errors import RequestError, StartError
from disagg.frontend.app import Frontend
from disagg.frontend.models import Model
from disagg.frontend.on_host import model_here
from disagg.frontend.one_model import OneModel, Ours, OwnTokens, own_tokens
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.frontend.whole import AllModels
from disagg.registry.interface import Watched
from disagg.registry.records import ModelRecord, ModelState

log = logging.getLogger(__name__)

BEGIN_S = 15.0  # for the first record: a store may be away
AGAIN_S = 5.0
IDLE_POLL_S = 0.1

_Id = tuple[int, str]  # a model's number, and a digest of its spec
_in_order = msgspec.json.Encoder(order="deterministic").encode


@dataclass(slots=True, eq=False)
class _Here:
    record: ModelRecord
    one: OneModel
    model: Model | None = None  # once it is, or was, named
    is_named: bool = False
    closing: asyncio.Task[None] | None = None


class Roster:
    """`begin` makes those that serve now, `join` says where others are to come, and then `follow` is its task. Models
    go by their numbers and specs here: a key may come back, and another run of the deployment may follow."""

    def __init__(self, spec: FrontendSpec, registry: Watched, ours: Ours) -> None:
        self._spec, self._registry, self._ours = spec, registry, ours
        self._here: dict[_Id, _Here] = {}
        self._opening: dict[_Id, asyncio.Task[None]] = {}
        self._on_end: Callable[[], object] = lambda: None

    async def begin(self) -> list[OneModel]:
        """One at least, of those that can be served here. Raises why none can: mostly StartError."""
        try:
            async with asyncio.timeout(BEGIN_S):
                async for _ in self._registry.watch():
                    if serving := self._serving():
                        break
        except TimeoutError:
            raise StartError("frontend", "the registry has no model", "see the log of `disagg serve`") from None
        errors: list[Exception] = []
        for record in sorted(serving, key=lambda each: each.number):
            try:
                self._add(record, *await self._read_once(record))
            except Exception as error:  # noqa: BLE001 - as below; `follow` tries it again
                log.error("model %s cannot be served here yet: %s", _name_of(record), error)
                errors.append(error)
        if not self._here:
            raise errors[0]
        return self._ones

    def join(self, frontend: Frontend, whole: AllModels) -> None:
        """They have what `begin` made."""
        self._frontend, self._whole = frontend, whole
        for each in self._here.values():
            each.model, each.is_named = frontend.of(each.one.service), True

    async def follow(self, on_end: Callable[[], object]) -> None:
        """Until the registry is gone. `on_end`: a model's own following has ended."""
        self._on_end = on_end
        for one in self._ones:
            one.follow(self._registry, on_end)
        async for _ in self._registry.watch():
            self._look()

    async def close(self) -> None:
        """The frontend has stopped. Raises what has ended one of the followings."""
        tasks = [*self._opening.values(), *(each.closing for each in self._here.values() if each.closing)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in list(self._here.values()):
            if each.model is None:  # it has never been the frontend's
                await each.one.tokenization.stop()
            await each.one.close()

    @property
    def _ones(self) -> list[OneModel]:
        return [each.one for each in self._here.values()]

    @property
    def _staying(self) -> int:
        return sum(each.closing is None for each in self._here.values())

    def _serving(self) -> Sequence[ModelRecord]:
        return [record for record in self._registry.models.values() if record.state is ModelState.SERVING]

    def _add(self, record: ModelRecord, spec: ModelSpec, own: OwnTokens | None) -> OneModel:
        feed = next((one.service.feed for one in self._ones), None)
        one = OneModel(self._spec, spec, self._ours, own, feed)
        self._here[_id_of(record)] = _Here(record, one)
        return one

    def _look(self) -> None:
        """Brings this process to what the registry says, as far as it is ready for it."""
        records = {_id_of(record): record for record in self._registry.models.values()}
        for model in self._opening.keys() - records.keys():
            self._opening.pop(model).cancel()
        for model, record in records.items():
            if model in self._here:
                self._here[model].record = record
            elif record.state is not ModelState.LEAVING and model not in self._opening:
                opening = asyncio.create_task(self._open(record), name=f"make ready for {record.key}")
                self._opening[model] = opening
        awaited = {_name_of(record) for record in self._serving() if _id_of(record) not in self._here}
        for model, each in list(self._here.items()):
            state = each.record.state if model in records else None
            self._name(each, state, is_awaited=each.one.spec.name in awaited)
            if state is None and each.closing is None and self._staying > 1:
                each.closing = asyncio.create_task(self._close(model, each), name=f"close {each.record.key}")
        named = [each.one.spec.name for each in self._here.values() if each.is_named]
        for one in self._ones[:1]:
            one.service.feed.model_name = ", ".join(named)

    def _name(self, each: _Here, state: ModelState | None, *, is_awaited: bool) -> None:
        """`is_awaited`: another one of its name serves, and is not ready here."""
        if state is ModelState.SERVING and not each.is_named:
            each.model = self._frontend.add(each.one.service, each.one.tokenization)
            each.is_named = True
            log.info("model %s is served", each.one.spec.name)
        elif each.is_named and (state is None or (state is ModelState.LEAVING and not is_awaited)):
            assert each.model is not None
            self._frontend.leaves(each.model)
            each.is_named = False
            log.info("model %s takes no new requests", each.one.spec.name)

    async def _open(self, record: ModelRecord) -> None:
        spec, own = await self._read(record)
        one = self._add(record, spec, own)
        self._whole.add(one.service)
        one.follow(self._registry, self._on_end)
        del self._opening[_id_of(record)]
        try:
            await one.tokenization.start()
        except RequestError as error:
            log.warning("model %s: %s", one.spec.name, error)  # the first body that needs it tries again
        self._look()

    async def _read(self, record: ModelRecord) -> tuple[ModelSpec, OwnTokens | None]:
        while True:
            try:
                return await self._read_once(record)
            except Exception as error:  # noqa: BLE001 - of whichever library: the other models are to be served
                log.error("model %s cannot be served here, and is tried again: %s", _name_of(record), error)
            await asyncio.sleep(AGAIN_S)

    async def _read_once(self, record: ModelRecord) -> tuple[ModelSpec, OwnTokens | None]:
        spec = await asyncio.to_thread(self._spec_here, record)
        return spec, await asyncio.to_thread(own_tokens, self._spec, spec)

    async def _close(self, model: _Id, each: _Here) -> None:
        one = each.one
        while not one.is_idle:  # noqa: ASYNC110 - each request has its deadlines
            await asyncio.sleep(IDLE_POLL_S)
        self._whole.remove(one.service)
        one.service.feed.remove(one.coordinator, one.connections)
        if each.model is not None:
            await self._frontend.remove(each.model)
        else:
            await one.tokenization.stop()
        await one.close()
        del self._here[model]

    def _spec_here(self, record: ModelRecord) -> ModelSpec:
        """On another host than the controller's the model may be elsewhere. Raises StartError."""
        spec, folders = _spec_of(record), self._spec.folders
        return spec if folders is None else model_here(spec, folders)


def _id_of(record: ModelRecord) -> _Id:
    return record.number, hashlib.sha256(_in_order(record.spec)).hexdigest()


def _spec_of(record: ModelRecord) -> ModelSpec:
    return msgspec.convert(record.spec, ModelSpec)


def _name_of(record: ModelRecord) -> str:
    return _spec_of(record).name
