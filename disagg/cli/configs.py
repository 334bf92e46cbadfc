"""`disagg configs`: the configurations that ship, each with its first sentence; or one of them, whole."""

from __future__ import annotations

from typing import Annotated

import typer

from disagg.config.find import find_config, shipped_folder, shipped_names


def names_like(begun: str) -> list[str]:
    """For a shell that completes a configuration's name."""
    return [name for each in shipped_names() if (name := each.removesuffix(".yaml")).startswith(begun)]


Config = Annotated[
    str, typer.Argument(help="A YAML file, or the name of a shipped one (local-cpu).", autocompletion=names_like)
]


def configs(
    name: Annotated[str | None, typer.Argument(help="One of them, to print.", autocompletion=names_like)] = None,
) -> None:
    """List the configurations that ship, or print one: what `serve` and `check` take by name."""
    if name is not None:
        print(find_config(name).read_text(), end="")
        return
    texts = {each: (shipped_folder() / each).read_text() for each in shipped_names()}
    width = max(map(len, texts)) - len(".yaml")
    for each, text in texts.items():
        print(f"{each.removesuffix('.yaml'):{width}}  {_first_sentence(text)}")


def _first_sentence(text: str) -> str:
    """Of the comment that it begins with."""
    comment: list[str] = []
    for line in text.splitlines():
        if not line.startswith("# ") or line.startswith("# Source:"):
            break
        comment.append(line.removeprefix("# "))
    return " ".join(comment).partition(". ")[0].removesuffix(".")
