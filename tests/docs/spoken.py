"""Looks up what pages and messages name: commands, options, keys of the YAML, engine arguments, variables, packages.

In:    a command, or a few words; what is not ours to know (docker, kubectl, …) passes
Fails: AssertionError, naming the word that nothing answers to
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel

from disagg.cli.app import app
from disagg.config.find import find_cluster, find_config, shipped_names
from disagg.config.schema import Deployment
from disagg.cpu_profile.profile import pins
from disagg.load import load_config
from disagg.sglang.releases import RELEASES, release
from disagg.simulated_engine.arguments import SETTABLE

ROOT = Path(__file__).resolve().parents[2]
ENDS = {"|", "||", "&&", "&", ";", ">", ">>", "<", "do", "done"}
ROOTS = "|".join(Deployment.model_fields)
YAML_PATH = re.compile(rf"(?<![\w/.`-])(?:{ROOTS})\.[a-z_][\w.]*\w(?![\w/(])")
VARIABLE = re.compile(r"\bDISAGG_[A-Z_]+\b")


def refuse_unknown_words(said: str) -> None:
    """Each `disagg …` and `ray …` in a command line or in a few words of one."""
    for words in _calls(said):
        program, *rest = words
        if not rest or not re.fullmatch(r"[a-z-]+", rest[0]):
            continue  # the program as such
        command, name = (_ray() if program == "ray" else typer.main.get_command(app)), program
        while hasattr(command, "commands"):
            if not rest or rest[0].startswith("-"):
                break
            assert rest[0] in command.commands, f"`{said}`: there is no `{name} {rest[0]}`"
            command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
        _refuse_unknown_options(command, name, rest, said)
        if name in ("disagg serve", "disagg check"):
            _refuse_what_it_cannot_read(rest, said)
    refuse_unknown_packages(said)
    for match in re.finditer(r"python -m ((?:tests|benchmarks|disagg|transfer)[\w.]*)", said):
        assert importlib.util.find_spec(match[1]), f"`{said}`: there is no module {match[1]}"


def refuse_unknown_yaml(said: str, folder: Path) -> None:
    """A key (`deadlines.start_s`), with its value or without."""
    found = re.fullmatch(rf"((?:{ROOTS})(?:\.[\w.]+)?)(?:: (.*)|=.*)?", said)
    if (
        not found
        or not ((found[2] or "").startswith("{") or "." in found[1])
        or (_is_module(found[1]) and not found[2])
    ):
        return
    refuse_unknown_path(found[1])
    if found[2] and found[2].startswith("{") and "." not in found[1]:
        file = folder / "said.yaml"
        file.write_text("extends: local-cpu\n" + re.sub(r"\$\{env:(\w+)\}", r"some-value-of-\1", said) + "\n")
        load_config(file)


def refuse_unknown_path(path: str) -> None:
    """Of the YAML. What stands under `engine` is SGLang's or the simulated engine's."""
    model: type[BaseModel] | None = Deployment
    parts = [part for part in path.split(".") if not part.isdigit()]
    if parts[0] == "models":
        del parts[1:2]  # a name that the user chose
    for index, part in enumerate(parts):
        assert model is not None, f"{path}: {parts[index - 1]} has nothing below it"
        assert part in model.model_fields, f"{path}: there is no {part} in {model.__name__}"
        if part == "engine":
            assert all(each in engine_arguments() for each in parts[index + 1 : index + 2]), (
                f"{path}: unknown to engines"
            )
            return
        if part == "env":
            return
        model = next(_models_in(model.model_fields[part].annotation), None)


def refuse_unknown_variables(said: str) -> None:
    for name in VARIABLE.findall(said):
        assert name in _variables_read(), f"{said!r}: nothing reads {name}"


def refuse_unknown_packages(said: str) -> None:
    for match in re.finditer(r"pip install (?:-{1,2}[a-z-]+ (?:/\S+ )?)*'?(?!failed)([A-Za-z0-9.][\w.\[\]-]*)", said):
        _refuse_unknown_package(match[1])


def _refuse_unknown_package(named: str) -> None:
    """disagg itself is on no package index: it is installed from a folder."""
    package = re.split(r"[\[<>=!~]", named)[0].lower().replace("_", "-")
    if package in ("", "."):
        extra = named.partition("[")[2].rstrip("]")
        assert not extra or extra in _project()["optional-dependencies"], f"pip install {named}: no such extra"
        return
    lines = [
        *_project()["dependencies"],
        *(line for extra in _project()["optional-dependencies"].values() for line in extra),
    ]
    known = {re.split(r"[\[<>=!~]", line)[0].lower() for line in lines} | {name.lower() for name in pins()}
    assert package in known, f"pip install {named}: neither ours to ask for, nor on an index"


def commands() -> list[str]:
    return list(typer.main.get_command(app).commands)


def options() -> set[str]:
    """Of all commands of disagg, of SGLang's and of `ray start`."""
    found = {f"--{name.replace('_', '-')}" for name in engine_arguments()}
    waiting: list[Any] = [typer.main.get_command(app), _ray().commands["start"]]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        found |= {option for each in command.params for option in each.opts}
    return found


@functools.cache
def engine_arguments() -> frozenset[str]:
    return frozenset(SETTABLE).union(*(release(version).arguments for version in RELEASES))


def _calls(said: str) -> Iterator[list[str]]:
    """Word lists that begin with disagg or ray."""
    said = said.replace("\\\n", " ")
    if "…" in said:
        said = said.partition("…")[0]
    try:
        words = shlex.split(said.replace("$(", " ").replace("\n", " ; ") if "'" not in said else said, comments=True)
    except ValueError:
        return
    call: list[str] | None = None
    for word in [*words, ";"]:
        if word in ENDS or word == "--":
            if call:
                yield call
            call = None
            continue
        if call is None and Path(word).name in ("disagg", "ray") and "=" not in word:
            call = [Path(word).name]
        elif call is not None:
            call.append(word.rstrip(";)"))


def _refuse_unknown_options(command: Any, name: str, words: list[str], said: str) -> None:
    try:
        command.make_context(name, list(words))
    except Exception as error:  # click's, or the copy of it in typer: they share no base
        kind = type(error).__name__
        is_a_placeholder = kind == "BadParameter" and re.search(r"[A-Z]{2}", said)
        if not is_a_placeholder and kind not in ("MissingParameter", "BadOptionUsage", "Exit", "NoArgsIsHelpError"):
            raise AssertionError(f"`{said}`: {error}") from error


def _refuse_what_it_cannot_read(words: list[str], said: str) -> None:
    """A configuration or a cluster that ships, and what is `--set` in it. Others (CONFIG, a.yaml) are the reader's."""
    sets = [word for before, word in itertools.pairwise(words) if before == "--set"]
    for before, word in zip(["", *words], words, strict=False):
        if before == "--assume-cluster" and word != "FILE":
            find_cluster(word)
        is_shipped = word.startswith("configs/") or f"{word.removesuffix('.yaml')}.yaml" in shipped_names()
        if is_shipped and not before.startswith("-"):
            load_config(find_config(word), sets)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from _models_in(each)


def _is_module(dotted: str) -> bool:
    """`ray.init`, `decode.pace`: roots of the YAML are packages, too."""
    root, _, rest = dotted.partition(".")
    if root == "ray":
        import ray

        return hasattr(ray, rest)
    return root in ("prefill", "decode", "transfer") and (ROOT / root / f"{rest}.py").exists()


@functools.cache
def _ray() -> Any:
    from ray.scripts.scripts import cli

    return cli


@functools.cache
def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


@functools.cache
def _variables_read() -> frozenset[str]:
    """Those that a line of code names alone, in quotes: to read, or to set."""
    files = [file for package in ("disagg", "prefill", "decode", "transfer") for file in (ROOT / package).rglob("*.py")]
    files.append(ROOT / "tests" / "todays.py")
    return frozenset(name for file in files for name in re.findall(r'["\'](DISAGG_[A-Z_]+)["\']', file.read_text()))
