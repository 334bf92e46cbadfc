"""The configuration's JSON Schema (draft 2020-12), for editors that complete and check YAML.

Way:   Deployment -> [json_schema] -> `disagg check --schema`
Out:   what the types say. Rules between keys, and SGLang's arguments under `engine`, are `disagg check`'s alone
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from disagg.config import schema

DRAFT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE = {"type": "string", "pattern": r"\$\{env:"}  # stands for a value of any type
OF_OTHER_TYPES = ("integer", "number", "boolean")


def json_schema() -> dict[str, Any]:
    tree = schema.Deployment.model_json_schema()
    docs = _field_docs()
    for name, section in [(tree["title"], tree), *tree["$defs"].items()]:
        for field, about in section.get("properties", {}).items():
            if field in docs.get(name, {}):
                about["description"] = docs[name][field]
    return {"$schema": DRAFT, **_with_references(tree)}


def _with_references(tree: Any) -> Any:
    """A number may come from the environment."""
    if isinstance(tree, list):
        return [_with_references(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {key: _with_references(value) for key, value in tree.items()}
    if tree.get("type") not in OF_OTHER_TYPES:
        return tree
    about = {key: tree.pop(key) for key in ("title", "description", "default") if key in tree}
    return {**about, "anyOf": [tree, REFERENCE]}


def _field_docs() -> dict[str, dict[str, str]]:
    """Class -> field -> the text under it in schema.py. Read here: pydantic would read it at every start."""
    module = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    return {section.name: dict(_docs_in(section)) for section in module.body if isinstance(section, ast.ClassDef)}


def _docs_in(section: ast.ClassDef) -> list[tuple[str, str]]:
    found = []
    for field, below in zip(section.body, section.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found.append((name, " ".join(text.split())))
    return found
