"""The model's chat template: messages in, the prompt's text out.

Way:   parsed messages -> [ChatTemplate] -> tokenizer
In:    a template's source (disagg/tokenizer/template_files.py finds it)
Out:   the text transformers' `apply_chat_template` would tokenise, letter for letter (a test compares)
Owns:  the Jinja environment: sandboxed, as a model's folder is not code that we trust
Fails: BadRequest when the template refuses the conversation (a role it does not know, ...), or when it leaves out
       what a message says

A template may want a content as one text or as typed parts, and given the other form it renders without the words. So
each template is tried once with both forms, role by role, and from then on gets the form whose words it shows.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from disagg.errors import BadRequest
from disagg.tokenizer.content_format import loops_over_parts

log = logging.getLogger(__name__)

PROBE = "Two words"
PRINTED_PARTS = (f"'text': '{PROBE}'", f'"text": "{PROBE}"', f'"text":"{PROBE}"')  # a list as it is: no template's aim
ROLES = ("user", "system", "assistant")  # the first one's form is used to try the others
SPOKEN = frozenset({"user", "system", "developer"})  # templates may cut an assistant's words: its reasoning, say
CUT_WORDS_MAX = 16  # words of a text that its template cut or wrote otherwise: /no_think, "quoted", <tags>
OF_A_LOOP = frozenset({"first", "last", "index", "index0", "length", "previtem", "nextitem"})
TEMPLATE_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    *(RecursionError, MemoryError),  # of a variable nested a thousand deep, or repeated as often as a client says
)

Message = dict[str, Any]


class ChatTemplate:
    """`where`: the file it comes from, for the log."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = "chat template") -> None:
        self.source = source
        jinja = environment()
        self._template = jinja.from_string(source)
        self._template.globals = dict(self._template.globals)  # each request copies them, and a ChainMap slowly
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source
        self._splits: set[str] = set()  # roles whose content it gets as parts also where the client sent a text
        self._keeps: set[str] = set()  # and where the client sent parts; all others get one text
        self._mute: set[str] = set()  # roles whose words it never shows
        self._try_both_forms(loops_over_parts(jinja, source))
        if self._mute:
            log.warning("%s: it shows nothing of what these say: %s", where, ", ".join(sorted(self._mute)))

    def render(self, messages: list[Message], variables: Mapping[str, Any]) -> str:
        """`variables` are the client's chat_template_kwargs."""
        try:
            prompt = self._rendered([self._formed(message) for message in messages], variables)
        except TEMPLATE_ERRORS as error:
            what = f"'messages': the model's chat template refuses them: {error}"
            raise BadRequest("messages", "invalid_messages", what) from error
        for index, message in enumerate(messages):
            role, content = message["role"], message.get("content")
            if content and (role in SPOKEN or role in self._mute) and not _is_in(content, prompt):
                where = f"messages[{index}]"
                what = f"'{where}': the model's chat template leaves out what this message ({role}) says"
                raise BadRequest(where, "invalid_messages", what)
        return prompt

    def _rendered(self, messages: list[Message], variables: Mapping[str, Any]) -> str:
        values = {**self._special_tokens, **variables}
        return self._template.render(values, messages=messages, tools=None, documents=None, add_generation_prompt=True)

    def _formed(self, message: Message) -> Message:
        """The message in the form the template takes. `developer` becomes `system`, its older name, which templates
        know."""
        role, content = message["role"], message.get("content")
        if role == "developer" and not self._knows_developer:
            role = "system"
            message = message | {"role": role}
        if type(content) is str:
            return message | {"content": _parts(content)} if role in self._splits else message
        if content is None or role in self._keeps or role in self._splits:
            return message
        # As SGLang joins them for templates that take one text.
        return message | {"content": " ".join(part["text"] for part in content)}

    def _try_both_forms(self, takes_parts: bool) -> None:
        for role in ROLES:
            as_text, as_parts = self._shows(role, PROBE), self._shows(role, _parts(PROBE))
            if takes_parts and as_parts:
                self._keeps.add(role)
            if as_parts and not as_text:
                self._splits.add(role)
            elif as_text is False and as_parts is not True:
                self._mute.add(role)

    def _shows(self, role: str, content: str | list[dict[str, str]]) -> bool | None:
        """Whether a message's words are in the rendered text; None where the template refuses such a message."""
        user = self._formed({"role": "user", "content": "Hi"})
        message = {"role": role, "content": content}
        chat = {"user": [message], "system": [message, user], "assistant": [user, message, user]}[role]
        try:
            prompt = self._rendered(chat, {})
        except TEMPLATE_ERRORS:
            return None
        return PROBE in prompt and not any(printed in prompt for printed in PRINTED_PARTS)


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _is_in(content: str | list[dict[str, str]], prompt: str) -> bool:
    if type(content) is str:
        return _stands_in(content, prompt) or content.strip() in prompt or _words_are_in(content, prompt)
    return all(_is_in(part["text"], prompt) for part in content if isinstance(part, dict))


def _stands_in(text: str, prompt: str) -> bool:
    """`text in prompt`; a search for a long text costs more than one for its beginning."""
    at = prompt.find(text[:32])
    return at >= 0 and (prompt.startswith(text, at) or text in prompt)


def _words_are_in(text: str, prompt: str) -> bool:
    """For a template that writes a text otherwise, or takes its own commands out of it (/no_think)."""
    there = set(prompt.split())
    others = {word for word in text.split() if word not in there}
    return len(others) <= CUT_WORDS_MAX and all(
        word[0] in "/<" or any(form in prompt for form in _written(word)) for word in others
    )


def _written(word: str) -> tuple[str, ...]:
    as_html = str(jinja2.filters.FILTERS["escape"](word))
    return word, json.dumps(word)[1:-1], json.dumps(word, ensure_ascii=False)[1:-1], as_html


class _Environment(ImmutableSandboxedEnvironment):
    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """What nearly every template asks for each message is known to be: the whole check costs more than the rest."""
        return (type(obj) is LoopContext and attr in OF_A_LOOP) or super().is_safe_attribute(obj, attr, value)


def environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up: templates depend on each of these."""
    environment = _Environment(
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
