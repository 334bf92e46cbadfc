"""`chat_template` of a model: a template's text, or the path of a file that has it.

Way:   tree + overrides + environment values -> [with_template_text] -> Deployment
In:    a path counts from the folder of the YAML that says it
Out:   a tree with the text itself: it means the same on another machine
Fails: never by itself: a file that cannot be read, or holds no template, is a Problem
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from disagg.config.extends import Layer, folder_of
from disagg.config.model_texts import ModelText, of_each_model
from disagg.errors import Problem

WOULD_DO = "name the template's file, from the folder of this YAML, or put its text here"
FILE_BYTES_MAX = 1 << 20
TEMPLATE_TAGS = ("{{", "{%")  # a template without either says the same whatever a client sends


def with_template_text(
    tree: dict[str, Any], layers: Sequence[Layer], file: Path | None
) -> tuple[dict[str, Any], list[Problem]]:
    return of_each_model(tree, partial(_with_text_of, layers=layers, file=file))


def _with_text_of(
    of_model: ModelText, tree: dict[str, Any], layers: Sequence[Layer], file: Path | None
) -> tuple[dict[str, Any], list[Problem]]:
    model, here = of_model.section, f"{of_model.path}.chat_template"
    if not isinstance(said := model.get("chat_template"), str) or any(tag in said for tag in TEMPLATE_TAGS):
        return tree, []
    path = folder_of(layers, (*of_model.keys, "chat_template"), said, file) / Path(said)
    without = of_model.put(tree, {key: value for key, value in model.items() if key != "chat_template"})
    try:
        with path.open("rb") as opened:
            text = opened.read(FILE_BYTES_MAX + 1).decode()
    except (OSError, ValueError) as error:  # also of a NUL in it, and of what is not UTF-8
        why = getattr(error, "strerror", None) or error
        return without, [Problem(here, f"{str(path)[:200]} cannot be read: {why}", WOULD_DO)]
    if len(text.encode()) > FILE_BYTES_MAX or not any(tag in text for tag in TEMPLATE_TAGS):
        what = f"{path} holds no chat template: it has no {{{{ and no {{%, or more than {FILE_BYTES_MAX >> 20} MiB"
        return without, [Problem(here, what, WOULD_DO)]
    return of_model.put(tree, {**model, "chat_template": text}), []
