"""The model's chat template: messages in, the prompt's text out.

Way:   checked messages -> [ChatTemplate] -> tokenizer
In:    a template's source (disagg/tokenizer/template_files.py finds it); messages as disagg/frontend/messages.py makes
       them; tools as OpenAI has them
Out:   the text transformers' `apply_chat_template` would tokenise, letter for letter (a test compares)
Owns:  a compiled template, and what it was found to show (disagg/tokenizer/template_probe.py)
Fails: BadRequest when the template refuses the conversation (a role it does not know, ...), or when it leaves out
       what a message says, the tools, or the documents
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NoReturn

from disagg.errors import BadRequest
from disagg.tokenizer.continuation import continued, marked
from disagg.tokenizer.jinja_environment import TEMPLATE_ERRORS, environment
from disagg.tokenizer.shown_words import is_in
from disagg.tokenizer.template_probe import Form, probed

log = logging.getLogger(__name__)

SPOKEN = frozenset({"user", "system", "developer"})  # templates may cut an assistant's words: its reasoning, say

Message = dict[str, Any]
Variables = Mapping[str, Any]
Tools = list[dict[str, Any]]
Documents = list[dict[str, Any]] | None


class ChatTemplate:
    """`where`: the file it comes from, for the log."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str = "chat template") -> None:
        self.source = source
        jinja = environment()
        self._template = jinja.from_string(source)
        self._template.globals = dict(self._template.globals)  # each request copies them, and a ChainMap slowly
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source
        self._shown = probed(jinja, source, self._render_probe)
        self._splits, self._keeps, self._checked = self._shown.splits, self._shown.keeps, SPOKEN | self._shown.mute
        if mute := sorted(self._shown.mute - {"tool"}):
            log.warning("%s: it shows nothing of what these say: %s", where, ", ".join(mute))

    @property
    def mute(self) -> frozenset[str]:
        """Roles whose words it never shows."""
        return self._shown.mute

    def render(
        self,
        messages: list[Message],
        variables: Variables,
        *,
        tools: Tools | None = None,
        documents: Documents = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """`variables` are chat_template_kwargs. `continue_final_message`: the prompt ends where the last message's text
        ends, for the model to go on there."""
        formed = [self._formed(message) for message in messages]
        said = ""
        if continue_final_message:
            formed, said = marked(formed)
            add_generation_prompt = False
        try:
            if tools is None and documents is None:  # nearly all
                prompt = self._once(formed, variables, None, None, add_generation_prompt)
            else:
                prompt = self._with_more(formed, variables, tools, documents, add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            what = f"'messages': the model's chat template refuses them: {error}"
            raise BadRequest("messages", "invalid_messages", what) from error
        if continue_final_message:
            prompt = continued(prompt, said)
        self._check_shown(messages, prompt)
        return prompt

    def _with_more(
        self, messages: list[Message], variables: Variables, tools: Tools | None, documents: Documents, begins: bool
    ) -> str:
        """With tools in OpenAI's wrapper, as SGLang gives them first; without it where the template shows nothing of
        wrapped ones, or refuses them. Raises BadRequest where it shows none, or no documents."""

        def once(tools: Tools | None, documents: Documents) -> str:
            return self._once(messages, variables, tools, documents, begins)

        bare = [tool.get("function", tool) for tool in tools or ()] or None
        first = bare if self._shown.tools is Form.BARE else tools
        try:
            prompt = once(first, documents)
        except TEMPLATE_ERRORS as of_first:
            first = bare
            try:
                prompt = once(bare, documents)
            except TEMPLATE_ERRORS:
                raise of_first from None
        # Where none were seen at the start, a variable of this request may have shown them.
        if tools and self._shown.tools is None and prompt == once(None, documents):
            what = "'tools': the model's chat template shows none, so the model would not know of them; leave them out"
            raise BadRequest("tools", "unsupported_parameter", what)
        if documents and prompt == once(first, None):
            what = "'documents': the model's chat template shows none; put their texts into a message"
            raise BadRequest("documents", "unsupported_parameter", what)
        return prompt

    def _once(
        self, messages: list[Message], variables: Variables, tools: Tools | None, documents: Documents, begins: bool
    ) -> str:
        values = {**self._special_tokens, **variables}
        return self._template.render(
            values, messages=messages, tools=tools, documents=documents, add_generation_prompt=begins
        )

    def _render_probe(self, messages: list[Message], tools: Tools | None) -> str | None:
        """With each content in the form it has; None where the template refuses the chat."""
        try:
            return self._once(messages, {}, tools, None, True)
        except TEMPLATE_ERRORS:
            return None

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

    def _check_shown(self, messages: list[Message], prompt: str) -> None:
        for index, message in enumerate(messages):
            role, content = message["role"], message.get("content")
            if content and role in self._checked and not is_in(content, prompt):
                _refuse_left_out(f"messages[{index}]", f"what this message ({role}) says")
        if self._shown.hides_calls:
            for index, message in enumerate(messages):
                if any(call["function"]["name"] not in prompt for call in message.get("tool_calls", ())):
                    _refuse_left_out(f"messages[{index}].tool_calls", "the calls of this message")


def _refuse_left_out(where: str, what: str) -> NoReturn:
    what = f"'{where}': the model's chat template leaves out {what}"
    raise BadRequest(where, "invalid_messages", what)


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
