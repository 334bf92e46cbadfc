"""Imports SGLang's parsers without torch, transformers or triton: 0.4 s and 55 MB, and not 5 s and 500.

Way:   names.py, tools.py, reasoning.py, constraint.py, setup.py -> [sglang_parsers] -> the installed SGLang's modules
Out:   the names that are used here; the same ones at each call
Owns:  sys.modules and sys.meta_path while it imports. What it puts there, and what is imported by it, is taken out
       again, so that a later `import sglang` is whole. In a process that has SGLang already, that one is used
Fails: ImportError where SGLang is not installed, or is one whose parsers need more than what is put in place here

Heavy are modules that the parsers' modules name at their tops: `sglang` itself, `sglang.utils` (of which they want one
function), `xgrammar` (two names), from 0.5.23 `transformers` (one annotation), and what resolves server arguments.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

_LOCK = threading.Lock()
HOLLOW = ("transformers", "sglang.srt.arg_groups")  # named by the parsers' modules, and not called by what we use


@dataclass(frozen=True, slots=True)
class SglangParsers:
    """SGLang's names, untyped: what they are is said where they are used."""

    function_call_parser: Any
    json_array_parser: Any
    reasoning_parser: Any
    tool: Any
    tool_choice: Any
    chat_request: Any
    json_schema_constraint: Any
    template_detection: Any


def sglang_parsers() -> SglangParsers:
    with _LOCK:  # two threads may want them at once
        return _imported()


def are_loaded() -> bool:
    """Whether `sglang_parsers` returns at once."""
    return bool(_imported.cache_info().currsize)


@cache
def _imported() -> SglangParsers:
    with _stand_ins():
        calls = importlib.import_module("sglang.srt.function_call.function_call_parser")
        arrays = importlib.import_module("sglang.srt.function_call.json_array_parser")
        utils = importlib.import_module("sglang.srt.function_call.utils")
        reasoning = importlib.import_module("sglang.srt.parser.reasoning_parser")
        protocol = importlib.import_module("sglang.srt.entrypoints.openai.protocol")
        detection = importlib.import_module("sglang.srt.parser.template_detection")
    return SglangParsers(
        function_call_parser=calls.FunctionCallParser,
        json_array_parser=arrays.JsonArrayParser,
        reasoning_parser=reasoning.ReasoningParser,
        tool=protocol.Tool,
        tool_choice=protocol.ToolChoice,
        chat_request=protocol.ChatCompletionRequest,
        json_schema_constraint=utils.get_json_schema_constraint,
        template_detection=detection,
    )


@contextmanager
def _stand_ins() -> Iterator[None]:
    if "sglang" in sys.modules:
        yield
        return
    standing_in = [name for name in ("sglang", "xgrammar", "transformers") if name not in sys.modules]
    hollow = _HollowModules([name for name in HOLLOW if name not in sys.modules])
    sys.meta_path.insert(0, hollow)
    try:
        _bare("sglang")
        utils = sys.modules["sglang.utils"] = types.ModuleType("sglang.utils")
        utils.__dict__["convert_json_schema_to_str"] = _schema_text
        if "xgrammar" in standing_in and importlib.util.find_spec("xgrammar") is not None:
            xgrammar = _bare("xgrammar").__dict__
            xgrammar["StructuralTag"] = _name("xgrammar.structural_tag", "StructuralTag")
            xgrammar["get_model_structural_tag"] = _name("xgrammar.builtin_structural_tag", "get_model_structural_tag")
        # Their parsers log an error at each token that they cannot read: a client's text, at a client's pace.
        logging.getLogger("sglang").setLevel(logging.CRITICAL)
        yield
        _complete_models(standing_in)
    finally:
        sys.meta_path.remove(hollow)
        for name in list(sys.modules):
            if name.split(".")[0] in standing_in:
                del sys.modules[name]


def _complete_models(packages: Sequence[str]) -> None:
    """What a model names and was not there yet, pydantic would look for in sys.modules at its first use: too late."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in packages:
            for each in list(vars(module).values()):
                is_own = isinstance(each, type) and each.__module__ == name
                if is_own and getattr(each, "__pydantic_complete__", True) is False:
                    each.model_rebuild(raise_errors=False)


def _bare(name: str) -> types.ModuleType:
    """A package with its folder, and nothing of its `__init__`."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    module = types.ModuleType(name)
    module.__path__ = [str(Path(spec.origin).parent)]
    sys.modules[name] = module
    return module


def _name(module: str, name: str) -> Any:
    """None: an older xgrammar has no tags of models, and then no parser asks for them."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _schema_text(schema: Any) -> str:
    if isinstance(schema, str):
        return schema
    return json.dumps(schema if isinstance(schema, dict) else schema.model_json_schema())


class _Hollow(types.ModuleType):
    """Has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


class _HollowModules:
    """Finds hollow modules: those packages, and whatever is asked of them."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        is_hollow = any(name == package or name.startswith(f"{package}.") for package in self._packages)
        return ModuleSpec(name, self, is_package=True) if is_hollow else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Hollow(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass
