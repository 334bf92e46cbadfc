"""SGLang's arguments, by name and type, from both shapes its ServerArgs has had, and without importing it."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from disagg.config.engine_arguments import UNCHECKED, check_arguments
from disagg.config.rules import PoolText
from disagg.sglang.server_args import ServerArgs, installed_server_args, read_arguments

# As in 0.5.16: one dataclass. Bases, quoted types and | are not SGLang's today; another release may have them.
ONE_CLASS = {
    "srt/server_args.py": """
        import dataclasses
        from typing import ClassVar, List, Literal, Optional, Union
        from sglang.srt.arg_groups.arg_utils import A, Arg
        from sglang.srt.more import More
        raise RuntimeError("this file is read, never run")

        LOAD_FORMATS = ["auto", "safetensors"]

        @dataclasses.dataclass
        class ServerArgs(More):
            model_path: A[str, Arg(help="...", aliases=["--model"])]
            page_size: A[Optional[int], "tokens"] = None
            tp_size: A[int, Arg(help="...", aliases=["--tensor-parallel-size", "--tp"])] = 1
            load_format: A[str, Arg(help="...", choices=LOAD_FORMATS)] = "auto"
            mode: A[Literal["null", "prefill", "decode"], "..."] = "null"
            backup: A[Optional[str], Arg(choices=["cpu_tensor", "host_pool"])] = None
            fraction: "Optional[float]" = None
            sleep: bool = False
            names: A[Optional[List[str]], "..."] = None
            either: Union[bool, Literal["x"], None] = None
            newer: int | str = 3
            hook: Optional[SomeClass] = None
            LIMIT: ClassVar[int] = 3
            _private: int = 0

            def method(self) -> None:
                local: int = 3
    """,
    "srt/more.py": """
        class More:
            inherited: int = 0
            page_size: str = "the subclass says it better"
    """,
}
# As in 0.5.20: fields in classes of their own, joined by a call.
FIELD_CLASSES = {
    "srt/server_args.py": """
        import msgspec
        from sglang.srt.arg_groups.fields import collect_input_fields
        from sglang.srt.arg_groups.fields.memory import Memory
        from .arg_groups.fields.spec import Spec as Speculation

        class ServerArgs:
            "The fields live elsewhere."

        _INPUT_NAMESPACES = [Memory, Speculation]
        _annotations, _defaults, _namespaces = collect_input_fields(_INPUT_NAMESPACES)
        ServerArgs = msgspec.defstruct("ServerArgs", [])
    """,
    "srt/arg_groups/fields/__init__.py": "def collect_input_fields(sources): ...",
    "srt/arg_groups/fields/memory.py": """
        from sglang.srt.arg_groups.arg_utils import A, Arg
        from sglang.srt.arg_groups.choices import FORMATS

        class Memory(msgspec.Struct):
            _NS_PATH = "memory"
            page_size: A[Optional[int], Arg(help="...", resolvable=True)] = None
            load_format: A[str, Arg(choices=FORMATS)] = "auto"
            derived = Derived(fn="x")

        class NotCollected(msgspec.Struct):
            secret: int = 0
    """,
    "srt/arg_groups/fields/spec.py": "class Spec(msgspec.Struct):\n    draft: A[bool, '...'] = False",
    "srt/arg_groups/choices.py": 'FORMATS = ["auto", "gguf"]\n',
}


def package(folder: Path, files: dict[str, str]) -> Path:
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(textwrap.dedent(source))
    return folder


def complaints(sglang: ServerArgs, **engine: Any) -> tuple[list[str], list[str]]:
    pools = [PoolText("prefill", "prefill", {}, {name.replace("-", "_"): value for name, value in engine.items()})]
    problems, warnings = check_arguments(pools, sglang)
    return [str(problem) for problem in problems], warnings


@pytest.fixture
def one_class(tmp_path: Path) -> ServerArgs:
    return ServerArgs("0.5.16", read_arguments(package(tmp_path, ONE_CLASS)))


def test_one_class_with_its_bases(one_class: ServerArgs) -> None:
    assert set(one_class.arguments) == {
        *("model_path", "page_size", "tp_size", "load_format", "mode", "backup", "fraction", "sleep"),
        *("names", "either", "newer", "hook", "inherited"),
    }
    assert one_class.arguments["page_size"].types == {"int", "None"}
    assert one_class.arguments["newer"].types == {"int", "str"}
    assert one_class.arguments["hook"].types is None


def test_classes_of_fields_that_a_call_joins(tmp_path: Path) -> None:
    arguments = read_arguments(package(tmp_path, FIELD_CLASSES))
    assert set(arguments) == {"page_size", "load_format", "draft"}
    assert arguments["page_size"].types == {"int", "None"}
    assert arguments["load_format"].choices == ("auto", "gguf")


def test_a_shape_unknown_to_us_is_no_argument_at_all(tmp_path: Path) -> None:
    assert read_arguments(tmp_path) == {}
    assert read_arguments(package(tmp_path, {"srt/server_args.py": "class Other:\n    x: int = 1"})) == {}
    assert read_arguments(package(tmp_path, {"srt/server_args.py": "not python"})) == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pagesize", 16, "sglang 0.5.16 has no argument 'pagesize'; did you mean page_size?"),
        ("PageSize", 16, "did you mean page_size?"),
        ("page_sice", 16, "did you mean page_size?"),
        ("page", 16, "has no argument 'page'; did you mean page_size?"),
        ("quantum", 1, "has no argument 'quantum'; see `python -m sglang.launch_server --help`"),
        ("tensor_parallel_size", 2, "is a command-line alias in sglang 0.5.16; say tp_size"),
        ("page_size", "16", "prefill.engine.page_size: must be a whole number, is the text '16'; take the quotes off"),
        ("page_size", 1.5, "must be a whole number, is 1.5"),
        ("page_size", True, "must be a whole number, is True"),
        ("sleep", 1, "must be true or false, is 1"),
        ("sleep", None, "must be true or false, is empty"),
        ("names", "a", "must be a list, is the text 'a'"),
        ("inherited", "x", "must be a whole number"),
        ("mode", "prefil", "'prefil' is not among the choices of sglang 0.5.16; they are null, prefill, decode"),
        ("backup", "tensor", "they are cpu_tensor, host_pool"),
    ],
)
def test_what_sglang_would_not_take(one_class: ServerArgs, name: str, value: Any, message: str) -> None:
    (problem,), warnings = complaints(one_class, **{name: value})
    assert message in problem
    assert not warnings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("page_size", 16),
            ("page_size", None),
            ("fraction", 1),
            ("fraction", 0.5),
            ("names", ["a"]),
            ("names", None),
        ],
        *[("either", True), ("either", "x"), ("either", "y"), ("newer", "y"), ("hook", object()), ("mode", "decode")],
    ],
)
def test_what_sglang_takes(one_class: ServerArgs, name: str, value: Any) -> None:
    assert complaints(one_class, **{name: value}) == ([], [])


def test_a_choice_that_a_plugin_may_have_added_is_a_warning(one_class: ServerArgs) -> None:
    problems, (warning,) = complaints(one_class, load_format="saftensors")
    assert not problems
    assert "they are auto, safetensors" in warning


def test_without_sglang_nothing_is_checked_and_that_is_said() -> None:
    assert check_arguments([PoolText("prefill", "prefill", {}, {"pagesize": 1})], None) == ([], [UNCHECKED])
    assert check_arguments([PoolText("prefill", "prefill", {}, {})], None) == ([], [])


def test_the_installed_sglang_is_understood() -> None:
    sglang = installed_server_args()
    if sglang is None:
        pytest.skip("sglang is not installed here")
    assert len(sglang.arguments) > 300
    assert sglang.arguments["page_size"].types == {"int", "None"}
    assert sglang.arguments["trust_remote_code"].types == {"bool"}
    assert "nixl" in (sglang.arguments["disaggregation_transfer_backend"].choices or ())


def test_a_check_imports_neither_sglang_nor_ray_nor_torch() -> None:
    program = """
        import sys
        from disagg.load import parse_config
        from disagg.planning.plan import device_of, resolve
        from disagg.planning.assess import assess
        from disagg.planning.report import render
        deployment = parse_config("version: 1\\nmodel: {path: a}\\naggregated: {engine: {page_size: 1}}")
        render(assess(resolve(deployment, device_of(deployment, 0))))
        assert not {"sglang", "ray", "torch"} & set(sys.modules), sorted(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=30)
