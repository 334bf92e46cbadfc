"""GET /openapi.json and GET /docs: every endpoint with its fields, from the tables that the code reads by.

Way:   Routes, ENDPOINTS, field_schemas.py -> [document, page] -> HTTP
Out:   OpenAPI 3.1; a page of plain HTML that loads nothing from anywhere
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from disagg import __version__
from disagg.frontend.endpoints import ENDPOINTS, Endpoint
from disagg.frontend.field_schemas import is_refused, schema_of
from disagg.frontend.keys import Right
from disagg.frontend.routes import Route

OPENAPI = "3.1.0"
ALIASES = {"/v1/tokenize": "/tokenize", "/v1/detokenize": "/detokenize"}
# Of what reads no body, or none that has fields of its own.
ABOUT: Mapping[str, str] = {
    "/abort_request": "SGLang's: ends the request that `rid` names",
    "/health_generate": "One token of one prompt: whether engines make any",
    "/server_info": "What this deployment is, in SGLang's words",
    "/get_server_info": "SGLang's older name of /server_info",
    "/model_info": "What the model is, in SGLang's words",
    "/get_model_info": "SGLang's older name of /model_info",
    "/version": "The version of disagg",
    "/ping": "Whether this frontend lives",
    "/health": "Whether this frontend lives",
    "/ready": "Whether requests can be served",
    "/metrics": "Figures in Prometheus' text format",
    "/metrics/engines": "SGLang's own figures of each engine (telemetry.engine_metrics); `engine`: of one alone",
    "/flush_cache": "SGLang's: empties the prefix caches of all engines; `timeout`: seconds to wait until each is idle",
    "/load_lora_adapter": "SGLang's: loads a LoRA adapter on every engine, then lists it",
    "/unload_lora_adapter": "SGLang's: nobody may name the adapter any more, and no engine has it",
    "/openapi.json": "This document",
    "/docs": "This document as a page",
    "/v1/models": "The model that is served",
    "/v1/models/{name}": "One model",
    "/v1/requests/{name}": "Ends a running request",
    "/disagg": "What the deployment does, as a page",
    "/disagg/page/{name}": "A file of that page",
    "/disagg/events": "What that page shows: once everything, then what changes, each second",
    "/disagg/status": "Engines, and what runs",
    "/disagg/loads": "What each engine says of its load",
    "/disagg/requests/{name}": "A request's timeline",
    "/disagg/logs/{name}": "The last lines of an engine's log; `lines`: how many",
    "/disagg/engines/{name}": "ENGINE/drain: takes an engine out of use; `restart=1` starts it again",
    "/disagg/changes": "Orders a change of the whole deployment: scale, apply, restart, role, rollback, stop",
    "/disagg/revisions": "The change under way, or the last one, and what was wanted when; `show`: whose configuration",
}
QUERIES = {
    "/metrics/engines": {"engine": "string"},
    "/flush_cache": {"timeout": "number"},
    "/disagg/logs/{name}": {"lines": "integer"},
    "/disagg/revisions": {"show": "integer"},
}
PLAIN = "text/plain"
TYPES = {  # of an answer, where it is no JSON
    "/metrics": PLAIN,
    "/metrics/engines": PLAIN,
    "/docs": "text/html",
    "/disagg": "text/html",
    "/disagg/page/{name}": PLAIN,
    "/disagg/events": "text/event-stream",
    "/flush_cache": PLAIN,
    "/disagg/logs/{name}": PLAIN,
}
BODIES = {  # of what no row of READINGS reads
    "/abort_request": {"rid": "string"},
    "/load_lora_adapter": {"lora_name": "string", "lora_path": "string", "pinned": "boolean"},
    "/unload_lora_adapter": {"lora_name": "string"},
    "/disagg/changes": {"order": "object", "yes": "boolean", "agreed": "string", "dry_run": "boolean"},
}
KEYS = {
    Right.HEALTH: "everybody",
    Right.CLIENT: "who has a key, where the deployment has any",
    Right.METRICS: "who has a key, where the deployment has any",
    Right.STATUS: "who has an admin key, where the deployment has any",
    Right.OPERATE: "who has an admin key, or a program on the frontend's machine",
}
_ERROR = {
    "description": "Refused, or failed: what, where, and what would do",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ERROR_SCHEMA = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
        }
    },
}


def document(routes: Mapping[str, Route]) -> dict[str, Any]:
    """`routes`: by path; one that ends with a slash has a name behind it."""
    paths: dict[str, Any] = {}
    for path, route in routes.items():
        shown = f"{path}{{name}}" if path.endswith("/") else path
        paths[shown] = {method.lower(): _operation(shown, route) for method in route.methods}
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": OPENAPI,
        "info": {"title": "disagg", "version": __version__, "description": "A field that is null is an absent one."},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR_SCHEMA}, "securitySchemes": schemes},
    }


def _operation(path: str, route: Route) -> dict[str, Any]:
    endpoint = _BY_PATH.get(ALIASES.get(path, path))
    summary = endpoint.what if endpoint is not None else ABOUT[path]
    kinds = [
        TYPES.get(path, "application/json"),
        *(["text/event-stream"] if endpoint is not None and endpoint.streams else []),
    ]
    told: dict[str, Any] = {
        "summary": summary,
        "description": f"For {KEYS[route.right]}.",
        "responses": {"200": {"description": "Done", "content": {kind: {} for kind in kinds}}, "default": _ERROR},
        "security": [] if route.right is Right.HEALTH else [{"bearer": []}, {"x-api-key": []}],
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "query", "schema": {"type": kind}} for name, kind in QUERIES.get(path, {}).items()
    ]
    if path.endswith("{name}"):
        parameters.append({"name": "name", "in": "path", "required": True, "schema": {"type": "string"}})
    if parameters:
        told["parameters"] = parameters
    schema = _body(endpoint) if endpoint is not None else _plain_body(BODIES.get(path, {}))
    if schema["properties"]:
        told["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return told


def _plain_body(fields: Mapping[str, str]) -> dict[str, Any]:
    """All that is no flag is required."""
    required = [name for name, kind in fields.items() if kind != "boolean"]
    return {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in fields.items()},
        "required": required,
    }


def _body(endpoint: Endpoint) -> dict[str, Any]:
    fields = sorted(name for name in endpoint.reads if not is_refused(endpoint.word, name))
    properties = {name: _field(endpoint, name) for name in fields}
    return {"type": "object", "properties": properties, "required": list(endpoint.required)}


def _field(endpoint: Endpoint, name: str) -> dict[str, Any]:
    schema = schema_of(endpoint.word, name)
    inner = endpoint.inner.get(name)
    if inner is None:
        return schema
    return schema | {"properties": {each: schema_of(endpoint.word, each) for each in sorted(inner)}}


_BY_PATH = {endpoint.path: endpoint for endpoint in ENDPOINTS}


def page(told: Mapping[str, Any]) -> str:
    """The document as HTML, for a reader without the net."""
    sections = "".join(
        _section(path, method, operation)
        for path, operations in told["paths"].items()
        for method, operation in operations.items()
    )
    return _PAGE.format(version=escape(told["info"]["version"]), sections=sections)


def _section(path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = [(f"{each['name']} ({each['in']})", each["schema"], "") for each in operation.get("parameters", ())]
    if "requestBody" in operation:
        rows += _rows(operation["requestBody"]["content"]["application/json"]["schema"])
    table = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_words(schema))}</td><td>{needed}</td></tr>"
        for name, schema, needed in rows
    )
    fields = f"<table><tr><th>field</th><th>holds</th><th></th></tr>{table}</table>" if table else ""
    about = f"{escape(operation['summary'])}. {escape(operation['description'])}"
    title = f"<b>{method.upper()}</b> <code>{escape(path)}</code>"
    return f"<details><summary>{title} {escape(operation['summary'])}</summary><p>{about}</p>{fields}</details>\n"


def _rows(body: Mapping[str, Any], before: str = "") -> list[tuple[str, Mapping[str, Any], str]]:
    rows: list[tuple[str, Mapping[str, Any], str]] = []
    for name, schema in body["properties"].items():
        rows.append((before + name, schema, "required" if name in body.get("required", ()) else ""))
        if "properties" in schema:
            rows += _rows(schema, f"{before}{name}.")
    return rows


def _words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of: {_words(schema['items'])}"
    bounds = [
        f"{word} {schema[name]:g}"
        for name, word in (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"))
        if name in schema
    ]
    return " ".join([str(schema.get("type", "anything")), *bounds])


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>disagg API</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
summary {{ cursor: pointer; padding: .3em 0 }} code {{ font-size: 14px }}
table {{ border-collapse: collapse; margin: 0 0 1em 1em }} td, th {{ text-align: left; padding: .1em 1em .1em 0 }}
</style></head><body>
<h1>disagg {version}</h1>
<p>For programs: <a href="openapi.json">openapi.json</a>. A field that is null is an absent one.</p>
{sections}</body></html>
"""
