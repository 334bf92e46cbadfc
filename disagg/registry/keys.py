"""The keys of a store: what they are called, and what is in them. docs/registry.md shows them to operators.

    disagg / namespace / deployment / model / kind / name
    disagg/prod/chat/-/controller/-                          ControllerRecord; `-`: of the whole deployment
    disagg/prod/chat/-/frontend/0                            FrontendRecord
    disagg/prod/chat/smollm2/engine/prefill-0                EngineRecord
    disagg/prod/chat/smollm2/met/prefill-0#1/decode-0#1      these two have met; empty
    disagg/prod/chat/smollm2/adapter/sql                     Adapter

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
from disagg.registry.changes import Changes
from disagg.registry.records import ControllerRecord, EngineRecord, FrontendRecord
from disagg.registry.store import Entry

log = logging.getLogger(__name__)

ROOT = "disagg/"
ALL = "-"
encode = msgspec.json.Encoder().encode
_engine = msgspec.json.Decoder(EngineRecord).decode
_adapter = msgspec.json.Decoder(Adapter).decode
_frontend = msgspec.json.Decoder(FrontendRecord).decode
decode_controller = msgspec.json.Decoder(ControllerRecord).decode


class Key(NamedTuple):
    namespace: str
    deployment: str
    model: str
    kind: str
    name: tuple[str, ...]


class Keys(msgspec.Struct, frozen=True):
    """Of one deployment with one model."""

    namespace: str
    deployment: str
    model: str

    @property
    def prefix(self) -> str:
        return f"{ROOT}{quote(self.namespace)}/{quote(self.deployment)}/"

    @property
    def controller(self) -> str:
        return f"{self.prefix}{ALL}/controller/{ALL}"

    def spelt(self, changes: Changes) -> dict[str, bytes | None]:
        """Pairs come before engines: who sees an engine READY knows whom it has met."""
        of_model, of_all = f"{self.prefix}{_part(self.model)}/", f"{self.prefix}{ALL}/"
        found: dict[str, bytes | None] = {
            f"{of_model}met/{_part(prefill)}/{_part(decode)}": b"" if have_met else None
            for (prefill, decode), have_met in changes.met.items()
        }
        for begin, records in (
            (f"{of_model}engine/", changes.records),
            (f"{of_model}adapter/", changes.adapters),
            (f"{of_all}frontend/", changes.frontends),
        ):
            assert isinstance(records, dict)
            for name, record in records.items():
                found[begin + _part(str(name))] = None if record is None else encode(record)
        return found


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


def _part(text: str) -> str:
    return "%2D" if text == ALL else quote(text, safe="#@:")
