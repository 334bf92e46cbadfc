"""What differs between roles is asked of their objects (disagg/role_table.py). A file that names one says why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from disagg.roles import Role

ROOT = Path(__file__).parents[2]
# A file, or a folder, and why it may name a role.
MAY_NAME = {
    "disagg/roles.py": "the words themselves",
    "prefill/role.py": "its own name and its partner's",
    "decode/role.py": "its own name and its partner's",
    "disagg/aggregated.py": "its own name",
    "disagg/embedding.py": "its own name",
    "disagg/cli/demo.py": "shows where a request ran",
    "disagg/cli/explained.py": "names of facts, as operators read them",
    "disagg/cli/replay.py": "options are named as the roles that they count engines of",
    "disagg/cli/top.py": "names of facts, as operators read them",
    "disagg/coordinator/facts.py": "names of facts, as operators read them",
    "disagg/deploy/docker.py": "names of folders",
    "disagg/deploy/monitoring/dashboard.py": "names of spans of time, as operators read them",
    "disagg/frontend/vector_answers.py": "OpenAI's word for a vector",
    "disagg/models/parameters.py": "a part of a model's weights",
    "disagg/planning/memory.py": "SGLang's rule, by SGLang's own disaggregation_mode",
    "disagg/preflight/": "rules about what stands under that key of the YAML",
    "disagg/routing/policies/": "which engines serve a request together is a policy's question",
    "disagg/sglang/embedding_leg.py": "SGLang's word for a vector",
    "disagg/sglang/engine.py": "SGLang's own disaggregation_mode",
    "disagg/sglang/plugins/": "SGLang's own disaggregation_mode, inside its scheduler",
    "disagg/simulated_engine/": "it is the engine: what SGLang does in each mode is done here",
    "disagg/telemetry/traces/tree.py": "names of spans of time, as operators read them",
    "disagg/simulation/": "the test's world: which engines there are and which of them break",
}


def names_of_roles(source: str) -> Iterator[tuple[int, str]]:
    """Line and word of each `Role.X`, and of each text that is a role's name and nothing else."""
    words = {role.value for role in Role}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Role":
            if node.attr in Role.__members__:
                yield node.lineno, f"Role.{node.attr}"
        elif isinstance(node, ast.Constant) and node.value in words:
            yield node.lineno, repr(node.value)


def found() -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for top in ("disagg", "prefill", "decode", "transfer"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for line, word in names_of_roles(path.read_text(encoding="utf-8")):
                files.setdefault(name, []).append(f"{name}:{line} {word}")
    return files


def reason(name: str) -> str | None:
    return next((key for key in MAY_NAME if name == key or (key.endswith("/") and name.startswith(key))), None)


def test_a_role_is_named_only_where_it_is_said_why() -> None:
    lines = [line for name, lines in found().items() if reason(name) is None for line in lines]
    assert not lines, "ask ROLES[...] of disagg/role_table.py instead:\n" + "\n".join(lines)


def test_no_permission_is_left_over() -> None:
    assert {reason(name) for name in found()} - {None} == MAY_NAME.keys()


@pytest.mark.parametrize(
    "source",
    [
        "if role is Role.DECODE: pass",
        "match role:\n    case Role.PREFILL: pass",
        "if role == 'decode': pass",
        "if role in ('prefill', 'x'): pass",
        "TABLE = {Role.AGGREGATED: 1}",
        "[e for e in plan.of_role(Role.PREFILL)]",
    ],
)
def test_each_way_to_name_one_is_seen(source: str) -> None:
    assert list(names_of_roles(source))


def test_a_word_within_a_sentence_is_none() -> None:
    assert not list(names_of_roles("raise ValueError('no decode engine'); text.decode(); Role(name); prefill = 1"))
