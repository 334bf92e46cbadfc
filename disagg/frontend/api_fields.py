"""Fields of the bodies of Responses and Messages: which are ours, which ask for nothing, which go to chat as they are.

Way:   body -> [split, typed readers] -> responses_api/request.py, messages_api/request.py -> a chat body
Fails: BadRequest, naming the field in the client's own words
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from disagg.fields import Body, boolean, refuse, required, typed

TEXT_ALONE = "the model here takes text alone"
# What asks for something in chats alone. Any other name that neither API knows is judged by the chat's own table.
_CHATS_ALONE = {
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "response_format",
    "n",
    "best_of",
    "logprobs",
    "echo",
}
_CHATS_ALONE |= {"suffix", "prompt", "functions", "function_call", "modalities", "audio", "prediction", "verbosity"}
_CHATS_ALONE |= {"reasoning_effort", "return_token_ids", "continue_final_message", "add_generation_prompt", "input_ids"}
_CHATS_ALONE |= {"prompt_logprobs", "stream_options"}


def without_nulls(body: Body) -> Body:
    return {name: value for name, value in body.items() if value is not None}


def passed_on(body: Body, own: frozenset[str], harmless: frozenset[str]) -> Body:
    """What goes into the chat body as it is: SGLang's sampling fields, say. Raises BadRequest for chat's own names."""
    others = {name: value for name, value in body.items() if name not in own and name not in harmless}
    for name in others:
        if name in _CHATS_ALONE:
            refuse(name, "unknown_parameter", f"'{name}' is not a parameter of this endpoint")
    return others


def text_at(fields: Mapping[str, Any], name: str, here: str) -> str:
    """A string that must be there."""
    value = fields.get(name)
    if value is None:
        refuse(f"{here}.{name}", "missing_required_parameter", f"'{here}.{name}' is missing")
    return typed(str, value, f"{here}.{name}")


def flag(fields: Mapping[str, Any], name: str, here: str) -> bool:
    """Absent is false."""
    return boolean({f"{here}.{name}": fields.get(name) is not None and fields[name]}, f"{here}.{name}")


def objects(body: Body, name: str) -> list[dict[str, Any]]:
    """A list of objects; none where there is no such field."""
    found = typed(list, body.get(name, []), name)
    return [typed(dict, each, f"{name}[{index}]") for index, each in enumerate(found)]


def not_empty(body: Body, name: str) -> list[dict[str, Any]]:
    if not typed(list, required(body, name), name):
        refuse(name, "empty_array", f"'{name}' is empty; send at least one")
    return objects(body, name)


def refuse_media(here: str, what: str) -> NoReturn:
    refuse(here, "unsupported_parameter", f"'{here}' is {what}; {TEXT_ALONE}")


def schema_format(schema: Any, here: str, name: str, **more: Any) -> dict[str, Any]:
    """Chat's response_format for a JSON schema."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": typed(dict, schema, here), **more}}


def joined(texts: list[str]) -> str | list[dict[str, str]]:
    """Chat content: one text as it is, several as parts; the template says what stands between them."""
    return texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
