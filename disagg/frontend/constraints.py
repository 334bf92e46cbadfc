"""What an answer must look like: the constraint of a request, however its client says it, in SGLang's words.

Way:   JSON body -> request_body.py -> [constraint_of] -> Request.sampling, of both legs -> xgrammar in each scheduler
In:    response_format as OpenAI has it (structural_tag as SGLang has it), SGLang's json_schema, regex, ebnf and
       structural_tag, vLLM's guided_json, _regex, _choice, _grammar and structured_outputs
Out:   at most one of json_schema, regex, ebnf, structural_tag, as text; and which field asked for it
Fails: BadRequest: two constraints, a schema that is too large, too deep or no JSON. What no automaton can be made of (a
       regex with a lookahead) the engine refuses, by its own reason

An object is walked before it is written: nothing looks at a whole schema of megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from disagg.fields import Body, boolean, refuse, wrong_type

SCHEMA_BYTES_MAX = 64 << 10
SCHEMA_DEPTH_MAX = 64
SCHEMA_NODES_MAX = 32 << 10  # values and names; 256 KiB of JSON that says something has fewer
REGEX_BYTES_MAX = 16 << 10
GRAMMAR_BYTES_MAX = 64 << 10
CHOICES_MAX = 1024
CHOICES_BYTES_MAX = 64 << 10

ANY_OBJECT = '{"type":"object"}'
ANY_JSON = "$$ANY$$"  # SGLang's word for a schema that every JSON value fits
OF_A_REGEX = re.compile(r"[\\^$.|?*+()\[\]{}/]")
STRUCTURED_OUTPUTS = frozenset({"json", "regex", "choice", "grammar", "json_object", "structural_tag"})
JSON_SCHEMA_FIELDS = frozenset({"name", "description", "schema", "strict"})


class Constraint(NamedTuple):
    asked_by: str  # the field of the body
    sampling: dict[str, str]  # SGLang's


def constraint_of(body: Body) -> Constraint | None:
    """None where the body asks for none."""
    found = [Constraint(name, made) for name in READERS if name in body and (made := READERS[name](body[name], name))]
    if len(found) > 1:
        names = " and ".join(f"'{each.asked_by}'" for each in found[:2])
        refuse(found[1].asked_by, "invalid_value", f"{names} each constrain the answer; give one of them")
    return found[0] if found else None


def _response_format(value: Any, here: str) -> dict[str, str]:
    kind = _object(value, here).get("type")
    match kind:
        case "text":
            _no_more(value, here, frozenset({"type"}))
            return {}
        case "json_object":
            _no_more(value, here, frozenset({"type"}))
            return {"json_schema": ANY_OBJECT}
        case "json_schema":
            _no_more(value, here, frozenset({"type", "json_schema"}))
            return _of_openai(value.get("json_schema"), f"{here}.json_schema")
        case "structural_tag":
            return _structural_tag(value, here)
    code = "missing_required_parameter" if kind is None else "invalid_value"
    what = f"'{here}.type' must be text, json_object, json_schema or structural_tag"
    refuse(f"{here}.type", code, what)


def _of_openai(value: Any, here: str) -> dict[str, str]:
    _no_more(_object(value, here), here, JSON_SCHEMA_FIELDS)
    there = f"{here}.schema"
    schema = value.get("schema")
    if schema is None:
        refuse(there, "missing_required_parameter", f"'{there}' is missing")
    text = _schema_text(_object(schema, there), there)
    given = {f"{here}.strict": value["strict"]} if value.get("strict") is not None else {}
    if boolean(given, f"{here}.strict") and schema.get("type") != "object":
        refuse(there, "invalid_value", f"'{there}' must be of the type object where strict is true")
    return {"json_schema": text}


def _json_schema(value: Any, here: str) -> dict[str, str]:
    if value in ("", ANY_JSON):
        return {"json_schema": ANY_JSON} if value else {}
    if not isinstance(value, str | dict):
        wrong_type(here, "a JSON schema, as an object or as text", value)
    return {"json_schema": _schema_text(value, here)}


def _structural_tag(value: Any, here: str) -> dict[str, str]:
    if value == "":
        return {}
    if not isinstance(value, str | dict):
        wrong_type(here, "a structural tag, as an object or as text", value)
    text = _schema_text(value, here)
    tag = msgspec.json.decode(text)
    if not isinstance(tag, dict) or not ("format" in tag or ("structures" in tag and "triggers" in tag)):
        refuse(here, "invalid_value", f"'{here}' must hold 'format', or 'structures' and 'triggers'")
    return {"structural_tag": text}


def _regex(value: Any, here: str) -> dict[str, str]:
    return {"regex": _bounded(value, here, REGEX_BYTES_MAX)} if value != "" else {}


def _grammar(value: Any, here: str) -> dict[str, str]:
    return {"ebnf": _bounded(value, here, GRAMMAR_BYTES_MAX)} if value != "" else {}


def _choice(value: Any, here: str) -> dict[str, str]:
    """A regex of all choices, each taken word for word."""
    if not isinstance(value, list):
        wrong_type(here, "a list of strings", value)
    if not value:
        return {}
    if len(value) > CHOICES_MAX:
        what = f"'{here}' has {len(value)} entries; at most {CHOICES_MAX} are allowed"
        refuse(here, "array_above_max_length", what)
    left = CHOICES_BYTES_MAX
    for index, each in enumerate(value):
        there = f"{here}[{index}]"
        if not isinstance(each, str):
            wrong_type(there, "a string", each)
        if not each:
            refuse(there, "invalid_value", f"'{there}' is empty: no token says nothing")
        left -= len(_bounded(each, there, CHOICES_BYTES_MAX).encode())
        if left < 0:
            refuse(here, "string_above_max_length", f"'{here}' is longer than {CHOICES_BYTES_MAX} bytes in all")
    return {"regex": f"({'|'.join(OF_A_REGEX.sub(_escaped, each) for each in dict.fromkeys(value))})"}


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def _structured_outputs(value: Any, here: str) -> dict[str, str]:
    given = {name: each for name, each in _object(value, here).items() if each not in (None, False)}
    _no_more(given, here, STRUCTURED_OUTPUTS)
    if len(given) > 1:
        names = " and ".join(f"'{here}.{name}'" for name in sorted(given)[:2])
        refuse(here, "invalid_value", f"{names} each constrain the answer; give one of them")
    for name, each in given.items():
        if name == "json_object":
            if each is not True:
                wrong_type(f"{here}.{name}", "true or false", each)
            return {"json_schema": ANY_OBJECT}
        return _OF_STRUCTURED[name](each, f"{here}.{name}")
    return {}


Reader = Callable[[Any, str], dict[str, str]]
_OF_STRUCTURED: dict[str, Reader] = {
    "json": _json_schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}
READERS: dict[str, Reader] = {
    "response_format": _response_format,
    "json_schema": _json_schema,
    "regex": _regex,
    "ebnf": _grammar,
    "structural_tag": _structural_tag,
    "guided_json": _json_schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "structured_outputs": _structured_outputs,
}


def _schema_text(value: str | dict[str, Any], here: str) -> str:
    """The JSON of a schema, within the limits."""
    if isinstance(value, str):
        text = _bounded(value, here, SCHEMA_BYTES_MAX)
        try:
            schema = msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError) as error:
            what = "nested too deeply" if isinstance(error, RecursionError) else f"no JSON: {error}"
            refuse(here, "invalid_json", f"'{here}' is {what}")
        if not isinstance(schema, dict):
            wrong_type(here, "a JSON object", schema)
        check_nodes(schema, here)
        return text
    check_nodes(value, here)
    return _bounded(msgspec.json.encode(value).decode(), here, SCHEMA_BYTES_MAX)


def check_nodes(schema: dict[str, Any], here: str) -> int:
    """How many values and names it has. Looks at one after the other, and at no more than SCHEMA_NODES_MAX."""
    waiting: list[Iterator[Any]] = [iter((schema,))]
    left = SCHEMA_NODES_MAX
    while waiting:
        if len(waiting) > SCHEMA_DEPTH_MAX + 1:
            refuse(here, "invalid_value", f"'{here}' is nested deeper than {SCHEMA_DEPTH_MAX} levels")
        for value in waiting[-1]:
            left -= 1
            if left < 0:
                refuse(here, "invalid_value", f"'{here}' has more than {SCHEMA_NODES_MAX} values and names")
            if isinstance(value, str):
                _no_nul(value, here)
            elif isinstance(value, list):
                waiting.append(iter(value))
                break
            elif isinstance(value, dict):
                waiting.append(_names_and_values(value))
                break
        else:
            waiting.pop()
    return SCHEMA_NODES_MAX - left


def _names_and_values(node: dict[str, Any]) -> Iterator[Any]:
    yield from node
    yield from node.values()


def _bounded(value: Any, here: str, bytes_max: int) -> str:
    if not isinstance(value, str):
        wrong_type(here, "a string", value)
    if len(value) > bytes_max or len(value.encode()) > bytes_max:
        refuse(here, "string_above_max_length", f"'{here}' is longer than {bytes_max} bytes")
    _no_nul(value, here)
    return value


def _no_nul(text: str, here: str) -> None:
    """xgrammar's regex reader ends the whole process at one."""
    if "\0" in text:
        refuse(here, "invalid_value", f"'{here}' holds a NUL character")


def _object(value: Any, here: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        wrong_type(here, "an object", value)
    return value


def _no_more(value: dict[str, Any], here: str, known: frozenset[str]) -> None:
    for name, each in value.items():
        if name not in known and each is not None:
            there = f"{here}.{name[:100]}"
            refuse(there, "unknown_parameter", f"'{there}' is not supported here")
