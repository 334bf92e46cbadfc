"""The model's chat template: messages in, the prompt's text out.

Way:   parsed messages -> [ChatTemplate] -> tokenizer
In:    chat_template.jinja of the model's folder, else `chat_template` of its tokenizer_config.json
Out:   the text transformers' `apply_chat_template` would tokenise, letter for letter (a test compares)
Owns:  the Jinja environment: sandboxed, as a model's folder is not code that we trust
Fails: BadRequest when the template refuses the conversation (a role it does not know, ...)
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from disagg.errors import BadRequest

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = _environment().from_string(source)
        self._template.globals = dict(self._template.globals)  # each request copies them, and a ChainMap slowly
        self._special_tokens = dict(special_tokens)

    def render(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """`variables` are the client's chat_template_kwargs."""
        values = {**self._special_tokens, **variables}
        try:
            return self._template.render(
                values, messages=messages, tools=None, documents=None, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            what = f"'messages': the model's chat template refuses them: {error}"
            raise BadRequest("messages", "invalid_messages", what) from error


def load_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """None for a model that comes without one."""
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.exists() else tokenizer_config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {each["name"]: each["template"] for each in source}
        source = named.get("default")
    if not source:
        return None
    return ChatTemplate(source, _special_tokens(folder, tokenizer_config))


def _special_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    file = folder / "special_tokens_map.json"
    named = {**(json.loads(file.read_bytes()) if file.exists() else {}), **tokenizer_config}
    texts = {}
    for name in SPECIAL_TOKENS:
        token = named.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            texts[name] = text
    return texts


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up: templates depend on each of these."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """{% generation %} marks what training learns from; when serving, its content is just text."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
