"""The configuration's JSON Schema (draft 2020-12), for editors that complete and check YAML.

Way:   Deployment -> [json_schema] -> `disagg check --schema`
Out:   what the types say. Rules between keys, and SGLang's arguments under `engine`, are checked by `disagg check`
       alone
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

from disagg.config import frontend, lora, model, registry, sampling_defaults, schema, tls, traces

DRAFT = "https://json-schema.org/draft/2020-12/schema"
REFERENCE = {"type": "string", "pattern": r"\$\{env:"}  # stands for a value of any type
NULL = {"type": "null"}
ABOUT = ("title", "description", "default")
# What a file has to say unless it extends another.
BY_ITSELF = {"required": ["version", "model"], "properties": {"model": {"required": ["path"]}}}
OF_SEVERAL = {
    "required": ["version", "models"],
    "properties": {"models": {"additionalProperties": {"required": ["path"]}}},
}


def json_schema() -> dict[str, Any]:
    tree = schema.Deployment.model_json_schema()
    docs = _field_docs()
    for name, section in [(tree["title"], tree), *tree["$defs"].items()]:
        for field, about in section.get("properties", {}).items():
            if field in docs.get(name, {}):
                about["description"] = docs[name][field]
        section["properties"] = {field: _of_file(about) for field, about in section["properties"].items()}
        section.pop("required", None)
    for field in schema.MAY_BE_EMPTY:
        tree["properties"][field]["anyOf"].append(NULL)
    return {"$schema": DRAFT, **tree, "anyOf": [{"required": ["extends"]}, BY_ITSELF, OF_SEVERAL]}


def _of_file(about: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value as it may be written: each, also in lists, may be an ${env:NAME} instead."""
    said = {key: about[key] for key in ABOUT if key in about}
    options = [
        _with_items(option) for option in about.get("anyOf", [{k: v for k, v in about.items() if k not in said}])
    ]
    return {**said, "anyOf": [*options, REFERENCE]}


def _with_items(option: dict[str, Any]) -> dict[str, Any]:
    return option | {"items": _of_file(option["items"])} if "items" in option else option


def _field_docs() -> dict[str, dict[str, str]]:
    """Class -> field -> the text under it in its module. Read here: pydantic would read it at every start."""
    found: dict[str, dict[str, str]] = {}
    for module in (model, schema, frontend, lora, registry, sampling_defaults, tls, traces):
        for section in ast.parse(inspect.getsource(module)).body:
            if isinstance(section, ast.ClassDef):
                inherited = [found.get(base.id, {}) for base in section.bases if isinstance(base, ast.Name)]
                found[section.name] = {**inherited[0], **dict(_docs_in(section))} if inherited else {}
    return found


def _docs_in(section: ast.ClassDef) -> list[tuple[str, str]]:
    found = []
    for field, below in zip(section.body, section.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found.append((name, " ".join(text.split())))
    return found
