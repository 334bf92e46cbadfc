"""`disagg list`: what is found in a shared registry. Nobody is asked but the registry itself.

Fails: ConfigError where the configuration names no shared one; StoreLost, StartError where it does not answer
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from disagg.cli.check import Sets
from disagg.cli.configs import names_like
from disagg.errors import ConfigError, Problem

if TYPE_CHECKING:
    from disagg.config.registry import RegistrySection
    from disagg.registry.records import FrontendRecord
    from disagg.registry.shared import StoreAt


def list_all(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A configuration: the registry that it names. Else say --registry.", autocompletion=names_like
        ),
    ] = None,
    sets: Sets = None,
    registry: Annotated[
        str | None, typer.Option(help="file:/FOLDER, or etcd:HOST:PORT,HOST:PORT without TLS and password.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Namespaces, deployments, models, engines and frontends that a registry in a folder or in etcd knows."""
    from disagg.registry.store import Entry

    if (config is None) is (registry is None):
        raise click.UsageError("name a configuration, or say --registry")

    async def read() -> dict[str, Entry]:
        from disagg.registry.keys import ROOT
        from disagg.registry.shared import open_store, store_at

        store = open_store(store_at(registry) if registry else _of_config(str(config), sets or ()))
        try:
            return (await store.snapshot(ROOT)).entries
        finally:
            await store.close()

    found = deployments_in(asyncio.run(read()))
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if as_json else _as_text(found))


def _of_config(config: str, sets: list[str] | tuple[str, ...]) -> StoreAt:
    from disagg.config.find import find_config
    from disagg.load import load_config

    return store_of(config, load_config(find_config(config), sets).registry)


def store_of(config: str, section: RegistrySection) -> StoreAt:
    """Of the configuration that is called so. Raises ConfigError."""
    problems = section.problems()
    if section.kind == "memory":
        what = "kind memory is in the deployment's own process: there is nothing to look into"
        problems.append(Problem("registry", what, "ask a frontend with `disagg status`, or say kind: file or etcd"))
    at = section.at() if not problems else None
    if at is None:
        raise ConfigError(config, tuple(problems))
    return at


def deployments_in(entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each what it has, by namespace and name."""
    from disagg.registry.keys import decode_controller, parse, read

    by_name: dict[tuple[str, str], dict[str, Any]] = {}
    for text, entry in entries.items():
        if (key := parse(text)) is not None:
            by_name.setdefault((key.namespace, key.deployment), {})[text] = entry
    found = []
    for (namespace, name), its_entries in sorted(by_name.items()):
        changes = read(its_entries)
        keys = {text: key for text in its_entries if (key := parse(text)) is not None}
        controllers = [decode_controller(its_entries[t].value) for t, key in keys.items() if key.kind == "controller"]
        engines = [record for record in changes.records.values() if record]
        frontends = [record for record in changes.frontends.values() if record]
        found.append(
            {
                "namespace": namespace,
                "deployment": name,
                "controller": [f"{each.host}:{each.pid}" for each in controllers],
                "models": sorted({key.model for key in keys.values() if key.kind == "engine"}),
                "adapters": sorted(changes.adapters),
                "frontends": [_frontend(each) for each in frontends],
                "engines": [
                    {"id": e.id, "role": e.role, "state": e.state, "incarnation": e.incarnation, "node": e.node}
                    for e in sorted(engines, key=lambda record: record.id)
                ],
            }
        )
    return found


def _frontend(record: FrontendRecord) -> dict[str, Any]:
    found = {"number": record.number, "url": record.url, "pid": record.pid}
    return found | {"host": record.host} if record.host else found


def _where(frontend: Mapping[str, Any]) -> str:
    """`host`: of one that is not the controller's."""
    return (frontend["url"] or "does not listen") + (f" on {frontend['host']}" if "host" in frontend else "")


def _as_text(found: list[dict[str, Any]]) -> str:
    if not found:
        return "no deployment is there\n"
    lines = []
    for each in found:
        lines.append(f"{each['namespace']}/{each['deployment']}  {', '.join(each['models']) or 'no engine yet'}")
        lines += [f"  {'controller':<14} {where}" for where in each["controller"]]
        lines += [f"  {'adapter':<14} {name}" for name in each["adapters"]]
        lines += [f"  {'frontend ' + str(f['number']):<14} {_where(f)}" for f in each["frontends"]]
        lines += [f"  {e['id']:<14} {e['state']}, life {e['incarnation']} on {e['node']}" for e in each["engines"]]
    return "\n".join(lines) + "\n"
