"""Finds a model's chat template and the special tokens that it may name.

Way:   model's folder -> [load_template] -> ChatTemplate
In:    as transformers and SGLang look: chat_template.jinja and additional_chat_templates/*.jinja; without these
       `chat_template` of tokenizer_config.json, a text or several with names; without it chat_template.json
Out:   of several templates the one named default, else the first
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


def load_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """None for a model that comes without one."""
    file, source = _chosen(folder, tokenizer_config)
    if not source:
        return None
    try:
        return ChatTemplate(source, special_tokens(folder, tokenizer_config), str(file))
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        what = f"the chat template{f', line {line},' if line else ''} is no Jinja: {error}"
        raise StartError(str(file), what, "get the model again, or mend the template") from error


def _chosen(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[Path, str | None]:
    files = {"default": folder / FILE} if (folder / FILE).is_file() else {}
    files |= {file.stem: file for file in sorted((folder / FOLDER).glob("*.jinja"))}
    if files:
        file = files.get("default") or next(iter(files.values()))
        return file, read_text(file)
    if said := tokenizer_config.get("chat_template"):
        return folder / CONFIG, _of_several(said, folder / CONFIG)
    return folder / PROCESSORS, _of_several(read_object(folder / PROCESSORS).get("chat_template"), folder / PROCESSORS)


def _of_several(said: Any, file: Path) -> str | None:
    """A text; texts by name; or a list of such with their names, as tokenizer_config.json has them."""
    try:
        named = {each["name"]: each["template"] for each in said} if isinstance(said, list) else said
        source = (named.get("default") or next(iter(named.values()), None)) if isinstance(named, dict) else named
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
