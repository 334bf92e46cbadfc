"""The keys of a store: what they are called, and what is in them. docs/registry.md shows them to operators.

    disagg / namespace / deployment / model / kind / name
    disagg/prod/chat/-/controller/-                          ControllerRecord; `-`: of the whole deployment
    disagg/prod/chat/-/frontend/0                            FrontendRecord; from OUTSIDE on not the controller's key
    disagg/prod/chat/-/spec/-                                SealedSpec
    disagg/prod/chat/smollm2/engine/prefill-0                EngineRecord
    disagg/prod/chat/smollm2/met/prefill-0#1/decode-0#1      these two have met; empty
    disagg/prod/chat/smollm2/adapter/sql                     Adapter

With several models each has its name in the YAML in this place, and its engines and adapters have it in theirs:

    disagg/prod/both/chat/engine/chat.prefill-0
    disagg/prod/both/chat/met/chat.prefill-0#1/chat.decode-0#1
    disagg/prod/both/chat/adapter/chat:sql
    disagg/prod/both/chat/model/chat                         ModelRecord: what frontends are told of it

Values are JSON, for whoever looks with etcdctl; fields that a reader does not know are left out by it. What a name has
beyond letters, digits and `_.-~#@:` is written as %XX, and a model that is called `-` as %2D.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

import msgspec

from disagg.adapters import Adapter
from disagg.lives import adapter_in, group_of
from disagg.registry.changes import Changes
from disagg.registry.records import ControllerRecord, EngineRecord, FrontendRecord, ModelRecord, SealedSpec
from disagg.registry.store import Entry

log = logging.getLogger(__name__)

ROOT = "disagg/"
ALL = "-"
OUTSIDE = 0x100  # the controller's frontends have numbers below it; those of `disagg frontend` have others
encode = msgspec.json.Encoder().encode
_engine = msgspec.json.Decoder(EngineRecord).decode
_adapter = msgspec.json.Decoder(Adapter).decode
_frontend = msgspec.json.Decoder(FrontendRecord).decode
_model = msgspec.json.Decoder(ModelRecord).decode
_spec = msgspec.json.Decoder(SealedSpec).decode
decode_controller = msgspec.json.Decoder(ControllerRecord).decode


class Key(NamedTuple):
    namespace: str
    deployment: str
    model: str
    kind: str
    name: tuple[str, ...]


class Keys(msgspec.Struct, frozen=True):
    """Of one deployment. `model`: its only model's name; empty: engines and adapters have it in their names."""

    namespace: str
    deployment: str
    model: str = ""

    @property
    def prefix(self) -> str:
        return f"{ROOT}{quote(self.namespace)}/{quote(self.deployment)}/"

    @property
    def controller(self) -> str:
        return f"{self.prefix}{ALL}/controller/{ALL}"

    @property
    def frontends(self) -> str:
        """What all frontends' keys begin with."""
        return f"{self.prefix}{ALL}/frontend/"

    def frontend(self, number: int) -> str:
        return f"{self.frontends}{number}"

    def is_of_others(self, key: str) -> bool:
        """It is under another lease than the controller's."""
        number = key.removeprefix(self.frontends)
        return number != key and number.isdecimal() and int(number) >= OUTSIDE

    def spelt(self, changes: Changes) -> dict[str, bytes | None]:
        """Pairs come before engines: who sees an engine READY knows whom it has met."""
        found: dict[str, bytes | None] = {
            f"{self._of(group_of(prefill))}met/{_part(prefill)}/{_part(decode)}": b"" if have_met else None
            for (prefill, decode), have_met in changes.met.items()
        }
        for engine_id, record in changes.records.items():
            found[f"{self._of(group_of(engine_id))}engine/{_part(engine_id)}"] = _encoded(record)
        for name, adapter in changes.adapters.items():
            found[f"{self._of(adapter_in(name)[0])}adapter/{_part(name)}"] = _encoded(adapter)
        for number, frontend in changes.frontends.items():
            found[self.frontend(number)] = _encoded(frontend)
        for name, model in changes.models.items():
            found[f"{self._of(name)}model/{_part(name)}"] = _encoded(model)
        if changes.spec is not None:
            found[f"{self.prefix}{ALL}/spec/{ALL}"] = encode(changes.spec)
        return found

    def _of(self, group: str) -> str:
        return f"{self.prefix}{_part(self.model or group)}/"


def parse(key: str) -> Key | None:
    """None: it is none of ours, or of a later version's."""
    _, *parts = key.split("/")
    if not key.startswith(ROOT) or len(parts) < 5:
        return None
    namespace, deployment, model, kind, *name = map(unquote, parts)
    return Key(namespace, deployment, model, kind, tuple(name))


def read(entries: Mapping[str, Entry | None]) -> Changes:
    """What they say of a deployment. What is of a kind that is not known, or not as it should be, says nothing."""
    changes = Changes()
    for text, entry in entries.items():
        key = parse(text)
        try:
            if key is not None:
                _read_one(key, entry, changes)
        except (msgspec.DecodeError, ValueError) as error:  # a ValidationError is a DecodeError
            log.warning("the registry's %s is not understood: %s", text, error)
    return changes


def _read_one(key: Key, entry: Entry | None, changes: Changes) -> None:
    match key.kind, key.name:
        case "met", (prefill, decode):
            changes.met[prefill, decode] = entry is not None
        case "engine", (name,):
            changes.records[name] = _engine(entry.value) if entry else None
        case "adapter", (name,):
            changes.adapters[name] = _adapter(entry.value) if entry else None
        case "frontend", (name,):
            changes.frontends[int(name)] = _frontend(entry.value) if entry else None
        case "model", (name,):
            changes.models[name] = _model(entry.value) if entry else None
        case "spec", (_,) if entry is not None:
            changes.spec = _spec(entry.value)


def _encoded(record: msgspec.Struct | None) -> bytes | None:
    return None if record is None else encode(record)


def _part(text: str) -> str:
    return "%2D" if text == ALL else quote(text, safe="#@:")
