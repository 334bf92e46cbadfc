"""The house stands on floors: a room imports from rooms below it alone, and nothing in it goes in a circle.

A room is a package (disagg/NAME, prefill, decode, transfer) or a module at the ground (disagg/NAME.py).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("disagg", "prefill", "decode", "transfer")
# From the ground up. What stands in one line may not import each other either.
FLOORS = (
    (
        "errors",
        "roles",
        "installed",
        "stopping",
        "lives",
        "visible",
        "start_phases",
        "logfile",
        "process_tree",
        "chart",
        "adapters",
        "policy_names",
        "token_ids",
        "freed_memory",
        "nearness",
    ),
    ("host_spec", "folders", "surroundings", "fields", "reasoning_end", "stop_patterns"),
    ("kv_events",),
    ("sampling", "cpu_profile", "plane"),
    ("models", "registry"),
    ("tokenizer", "transfer"),
    ("worker_role",),
    ("prefill", "decode", "aggregated", "embedding"),
    ("role_table",),
    ("sglang", "simulated_engine"),
    ("process", "config"),
    ("planning",),
    ("preflight",),
    ("load",),
    ("routing",),
    ("coordinator",),
    ("telemetry",),
    ("frontend", "deploy"),
    ("cluster",),
    ("simulation",),
    ("replay",),
    ("cli",),
)
# Modules that nothing imports: they are run, or loaded by name.
PROGRAMS = {
    "disagg.cli.main": "the `disagg` command (disagg_start.py)",
    "disagg.cli.demo": "make demo",
    "disagg.deploy.wait_for_nodes": "a job's first step",
    "disagg.frontend.api_table": "writes the table of docs/api.md",
    "disagg.frontend.main": "the frontend's process",
    "disagg.frontend.reader": "a frontend's reader of long bodies",
    "disagg.models.convert": "run by models/workshop.py",
    "disagg.models.pip_program": "run by models/fetch.py",
    "disagg.models.adapter_weights": "run by models/workshop.py",
    "disagg.models.tiny_weights": "run by models/workshop.py",
    "disagg.preflight.docs_table": "writes docs/preflight.md",
    "disagg.process.standby_host": "run by the standby's reaper",
    "disagg.process.standby_reaper": "run by the actor",
    "disagg.process.stub": "the engine of tests and benchmarks",
    "disagg.process.zygote": "run by the node's agent",
    "disagg.routing.policies.at_random": "routing.policy",
    "disagg.routing.policies.cache_aware": "routing.policy",
    "disagg.routing.policies.dynamo_kv": "routing.policy",
    "disagg.routing.policies.length_buckets": "routing.policy",
    "disagg.routing.policies.prefix_filter": "routing.policy",
    "disagg.routing.policies.round_robin": "routing.policy",
    "disagg.routing.policies.session": "routing.policy",
    "disagg.sglang.plugins.cpu_bridges": "entry point",
    "disagg.sglang.plugins.grammar": "entry point",
    "disagg.sglang.plugins.not_a_number": "entry point",
    "disagg.sglang.plugins.seeds": "entry point",
    "disagg.sglang.plugins.transfer": "entry point",
    "disagg.simulation.soak": "make soak",
    "disagg.simulation.table": "writes docs/failures.md's table",
}


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for top in OURS:
        for path in sorted((ROOT / top).rglob("*.py")):
            if "standins" in path.parts:
                continue
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def imports() -> frozenset[tuple[str, str]]:
    """(importer, imported), modules of ours alone; also those inside functions, and for types alone."""
    return frozenset(
        (name, imported) for name, tree in modules().items() for imported in _imported(tree) if imported != name
    )


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module:
            for each in node.names:
                whole = f"{node.module}.{each.name}"
                if whole in modules() or node.module in modules():
                    yield whole if whole in modules() else node.module


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def room(module: str) -> str:
    top, *rest = module.split(".")
    return rest[0] if top == "disagg" and rest else top


def floor(module: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert found, f"{room(module)} has no floor: give it one in {Path(__file__).name}"
    return found[0]


def circles(arrows: set[tuple[str, str]]) -> list[set[str]]:
    """Groups that lead back to themselves."""
    leads_to: dict[str, set[str]] = {}
    for one, other in arrows:
        leads_to.setdefault(one, set()).add(other)

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for each in leads_to.get(todo.pop(), ()):
                if each not in seen:
                    seen.add(each)
                    todo.append(each)
        return seen

    reached = {name: reach(name) for name in leads_to}
    found: list[set[str]] = []
    for name, beyond in reached.items():
        if name in beyond and not any(name in group for group in found):
            found.append({other for other in beyond if name in reached.get(other, ())})
    return found


def test_no_room_imports_from_one_above_or_beside_it() -> None:
    up = [
        f"{one} imports {other}"
        for one, other in sorted(imports())
        if "disagg" not in (one, other) and room(one) != room(other) and floor(one) <= floor(other)
    ]
    assert not up, "\n".join(up)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    assert not circles({(room(one), room(other)) for one, other in imports() if room(one) != room(other)})


def test_no_files_import_each_other_in_a_circle() -> None:
    assert not circles(set(imports()))


def test_every_module_is_imported_or_said_to_be_run() -> None:
    imported = {other for _, other in imports()}
    packages = {name for name in modules() if any(other.startswith(f"{name}.") for other in modules())}
    alone = set(modules()) - imported - packages
    assert alone == set(PROGRAMS), f"dead: {sorted(alone - set(PROGRAMS))}; not alone: {sorted(set(PROGRAMS) - alone)}"


@pytest.mark.parametrize("top", OURS)
def test_no_module_takes_a_private_name_of_another(top: str) -> None:
    taken = []
    for name, tree in modules().items():
        if name.split(".")[0] != top:
            continue
        ours = {
            (each.asname or each.name): f"{node.module}.{each.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for each in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                taken += [f"{name}: {node.module}.{each.name}" for each in node.names if _is_private(each.name)]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and _is_private(node.attr):
                taken += [f"{name}: {whole}.{node.attr}" for whole in [ours.get(node.value.id)] if whole in modules()]
    assert not taken, "\n".join(taken)


def test_a_circle_and_an_arrow_up_are_found() -> None:
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [{"a", "b", "c"}]
    assert circles({("a", "b"), ("b", "c")}) == []
    assert floor("disagg.errors") < floor("disagg.plane.client") < floor("disagg.cluster.serve")


@pytest.mark.parametrize(
    "module", ["supervisor", "proving", "canaries", "watch", "live", "gang", "engine_life", "fleet"]
)
def test_the_control_plane_itself_knows_no_ray(module: str) -> None:
    """So that a simulation runs the one that serves."""
    seen: set[str] = set()
    todo = [f"disagg.cluster.{module}"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        todo += [other for one, other in imports() if one == name]
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
            for node in ast.walk(modules()[name])
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert "ray" not in roots, name
