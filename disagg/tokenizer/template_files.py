"""Finds a model's chat template and the special tokens that it may name.

Way:   model's folder -> [load_template] -> ChatTemplate
In:    as transformers and SGLang look: chat_template.jinja and additional_chat_templates/*.jinja; without these
       `chat_template` of tokenizer_config.json, a text or several with names; without it chat_template.json
Out:   of several templates the one named default, else the first; and the one named tool_use, which transformers takes
       for chats with tools
Fails: StartError with the file's name: no JSON, no UTF-8, a pointer of git-lfs, or no Jinja
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from disagg.errors import StartError
from disagg.models.text_files import read_object, read_text
from disagg.tokenizer.template import ChatTemplate
from disagg.tokenizer.tokenizer_files import CONFIG, SPECIAL_TOKENS, with_map

FILE, FOLDER, PROCESSORS = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
DEFAULT, TOOL_USE = "default", "tool_use"


def load_template(folder: Path, tokenizer_config: Mapping[str, Any], name: str = DEFAULT) -> ChatTemplate | None:
    """None for a model that comes without one, or without one of this name where it is not the default that is asked
    for."""
    file, source = _chosen(folder, tokenizer_config, name)
    return made(source, special_tokens(folder, tokenizer_config), str(file)) if source else None


def made(source: str, tokens: Mapping[str, str], where: str) -> ChatTemplate:
    try:
        return ChatTemplate(source, tokens, where)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        what = f"the chat template{f', line {line},' if line else ''} is no Jinja: {error}"
        raise StartError(where, what, "get the model again, or mend the template") from error


def _chosen(folder: Path, tokenizer_config: Mapping[str, Any], name: str) -> tuple[Path, str | None]:
    files = {DEFAULT: folder / FILE} if (folder / FILE).is_file() else {}
    files |= {file.stem: file for file in sorted((folder / FOLDER).glob("*.jinja"))}
    if files:
        file = files.get(name) or next(iter(files.values()))
        return file, read_text(file) if name in (DEFAULT, file.stem) else None
    if said := tokenizer_config.get("chat_template"):
        return folder / CONFIG, _of_several(said, folder / CONFIG, name)
    said = read_object(folder / PROCESSORS).get("chat_template")
    return folder / PROCESSORS, _of_several(said, folder / PROCESSORS, name)


def _of_several(said: Any, file: Path, name: str) -> str | None:
    """A text; texts by name; or a list of such with their names, as tokenizer_config.json has them."""
    try:
        named = {each["name"]: each["template"] for each in said} if isinstance(said, list) else said
        if not isinstance(named, dict):
            named = {DEFAULT: named}
        source = named.get(name) or (next(iter(named.values()), None) if name == DEFAULT else None)
        if source is not None and not isinstance(source, str):
            raise TypeError(f"a template is {type(source).__name__}")
    except (TypeError, KeyError) as error:
        what = f"chat_template is neither a text nor a list of name and template: {error!r}"
        raise StartError(str(file), what, "get the model again") from error
    return source


def special_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text, as transformers gives them to a template."""
    named = with_map(folder, tokenizer_config)
    texts = {}
    for name, token in named.items():
        text = token.get("content") if isinstance(token, dict) and name in SPECIAL_TOKENS else token
        if name.endswith("_token") and isinstance(text, str):
            texts[name] = text
    extra = named.get("extra_special_tokens")
    if isinstance(extra, dict):
        texts |= {name: text for name, text in extra.items() if isinstance(text, str)}
    return texts
