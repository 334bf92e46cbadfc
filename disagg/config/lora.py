"""`lora` of a model: adapters that engines load at their start, and how large those may be that come later.

Way:   tree + overrides + environment values -> [with_adapters] -> Deployment -> plan: the same for every role
In:    an adapter's path counts from the folder of the YAML that says it
Out:   a tree with whole paths, and with max_lora_rank and target_modules, which are read from the adapters where the
       YAML leaves them out: engines are made for them, whatever is loaded later
Fails: never by itself; an adapter that no engine could load is a Problem
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from disagg.config.extends import Layer, folder_of
from disagg.config.model_texts import ModelText, of_each_model
from disagg.config.section import Section, listed
from disagg.errors import Problem
from disagg.models.adapters import CONFIG, AdapterFiles, read_adapter

SGLANG_PER_BATCH = 8  # its max_loras_per_batch
LACKING = {"max_lora_rank": "say 16, or more", "target_modules": "say which, as [q_proj, v_proj], or [all]"}
FOLDER = f"name a folder that holds {CONFIG} and its weights, as PEFT writes them"


class AdapterSection(Section):
    path: Annotated[str, Field(min_length=1)]
    """Its folder, on each node; from this file's folder."""
    pinned: bool = False
    """It stays in the GPU's memory, whichever others are asked for."""


def _path_alone(said: Any) -> Any:
    return {"path": said} if isinstance(said, str) else said


AdapterSaid = Annotated[AdapterSection, BeforeValidator(_path_alone, json_schema_input_type=str | AdapterSection)]
Modules = Annotated[tuple[str, ...], BeforeValidator(listed, json_schema_input_type=list[str])]


class LoraSection(Section):
    """LoRA adapters. Clients name one as `model`, or as MODEL:ADAPTER. Others can be loaded at run time."""

    adapters: dict[str, AdapterSaid] = Field({})
    """What clients say -> the folder, or {path, pinned}."""
    max_loras_per_batch: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Different adapters in one batch of an engine, the plain model counted as one; each takes memory. Default:
    SGLang's."""
    max_loaded_loras: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Adapters in an engine's host memory; it loads what it has dropped again when it is asked for. Default: all."""
    max_lora_rank: Annotated[int, Field(ge=1, le=4096)] | None = None
    """The largest rank of any adapter, also of later ones. Default: the largest of `adapters`."""
    target_modules: Modules = ()
    """What adapters may change: q_proj, or [all]. Default: what `adapters` change."""

    @field_validator("max_loaded_loras")
    @classmethod
    def _holds_a_batch(cls, loaded: int | None, info: ValidationInfo) -> int | None:
        """As SGLang asserts."""
        of_batch = info.data.get("max_loras_per_batch") or SGLANG_PER_BATCH
        if loaded is not None and loaded < of_batch:
            raise ValueError(f"is {loaded}, below max_loras_per_batch, which is {of_batch}; lower that, or raise this")
        return loaded

    @property
    def arguments(self) -> dict[str, Any]:
        """Of every engine, in SGLang's names. The adapters themselves are loaded when it is up."""
        said = {
            "max_loras_per_batch": self.max_loras_per_batch,
            "max_loaded_loras": self.max_loaded_loras,
            "max_lora_rank": self.max_lora_rank,
            "lora_target_modules": list(self.target_modules),
        }
        return {"enable_lora": True, **{name: value for name, value in said.items() if value}}


def with_adapters(
    tree: dict[str, Any], layers: Sequence[Layer], file: Path | None
) -> tuple[dict[str, Any], list[Problem]]:
    return of_each_model(tree, partial(_with_adapters_of, layers=layers, file=file))


def _with_adapters_of(
    of_model: ModelText, tree: dict[str, Any], layers: Sequence[Layer], file: Path | None
) -> tuple[dict[str, Any], list[Problem]]:
    here = (*of_model.keys, "lora")
    if not isinstance(lora := of_model.section.get("lora"), dict):
        return tree, []
    said = lora.get("adapters") or {}
    if not isinstance(said, dict):  # the schema says so
        return tree, []
    adapters = {name: _with_path((*here, "adapters", name), each, layers, file) for name, each in said.items()}
    found = {name: read_adapter(each["path"]) for name, each in adapters.items() if _has_path(each)}
    sizes, problems = _sizes(".".join(here), lora, found)
    whole = {**lora, **sizes, **({"adapters": adapters} if adapters else {})}
    return of_model.put(tree, {**of_model.section, "lora": whole}), problems


def _with_path(keys: Sequence[str], said: Any, layers: Sequence[Layer], file: Path | None) -> Any:
    """What is no path, nor has one, stays as it is: the schema refuses it."""
    adapter = {"path": said} if isinstance(said, str) else said
    if not isinstance(adapter, dict) or not isinstance(path := adapter.get("path"), str) or not path or "\0" in path:
        return said
    folder = folder_of(layers, keys, said, file)
    return {**adapter, "path": str((folder / Path(path)).absolute())}


def _has_path(adapter: Any) -> bool:
    return isinstance(adapter, dict) and isinstance(adapter.get("path"), str)


def _sizes(here: str, lora: dict[str, Any], found: dict[str, AdapterFiles]) -> tuple[dict[str, Any], list[Problem]]:
    """What the YAML leaves out, from the adapters; and which of them do not fit what it says, or cannot be read."""
    problems = [problem for name, files in found.items() for problem in _unfit(here, name, files, lora)]
    read = [files for files in found.values() if not files.absent]
    sizes: dict[str, Any] = {}
    if lora.get("max_lora_rank") is None:
        sizes["max_lora_rank"] = max((files.rank for files in read), default=None)
    if not lora.get("target_modules"):
        listed_by_all = all(files.modules for files in read)
        sizes["target_modules"] = sorted({name for files in read for name in files.modules}) if listed_by_all else []
    if problems:
        return sizes, problems
    for name, would_do in LACKING.items():
        if name in sizes and not sizes[name]:
            problems.append(Problem(f"{here}.{name}", "is not said, and no adapter here tells it", would_do))
    return sizes, problems


def _unfit(here: str, name: str, files: AdapterFiles, lora: dict[str, Any]) -> list[Problem]:
    path = f"{here}.adapters.{name}"
    rank, modules = lora.get("max_lora_rank"), lora.get("target_modules")
    if files.absent == "is not there" and rank and modules:
        return []  # it may be on the nodes alone, and there it is looked for
    if files.absent:
        return [Problem(path, f"{files.folder} {files.absent}", FOLDER)]
    problems = []
    if isinstance(rank, int) and files.rank > rank:
        what = f"has rank {files.rank}, and {here}.max_lora_rank is {rank}"
        problems.append(Problem(path, what, f"say max_lora_rank: {files.rank}"))
    if isinstance(modules, list) and modules and "all" not in modules:
        more = [name for name in files.modules if name not in modules]
        if more:
            what = f"changes {', '.join(more)}, which {here}.target_modules does not list"
            problems.append(Problem(path, what, "add them there"))
    return problems
