"""What pools say under `engine` against the arguments of the release that runs, from the table and without SGLang."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Any

import pytest

from disagg.config.engine_arguments import UNCHECKED, as_meant, check_arguments
from disagg.config.rules import PoolText
from disagg.sglang.releases import Argument, Release, release

# Shapes of arguments that SGLang has, or may have.
ONE_OF_EACH = Release(
    "0.5.16",
    {
        "model_path": Argument(frozenset({"str"}), None, aliases=("model",)),
        "page_size": Argument(frozenset({"int", "None"}), None),
        "tp_size": Argument(frozenset({"int"}), None, aliases=("tensor_parallel_size", "tp")),
        "load_format": Argument(frozenset({"str"}), ("auto", "safetensors"), choices_open=True),
        "mode": Argument(frozenset({"str"}), ("null", "prefill", "decode")),
        "backup": Argument(frozenset({"str", "None"}), ("cpu_tensor", "host_pool")),
        "fraction": Argument(frozenset({"float", "None"}), None),
        "sleep": Argument(frozenset({"bool"}), None),
        "names": Argument(frozenset({"list", "None"}), None),
        "either": Argument(frozenset({"bool", "str", "None"}), None),
        "newer": Argument(frozenset({"int", "str"}), None),
        "hook": Argument(None, None),
        "inherited": Argument(frozenset({"int"}), None),
    },
    {},
)


def complaints(sglang: Release, **engine: Any) -> tuple[list[str], list[str]]:
    pools = [PoolText("prefill", "prefill", {}, {name.replace("-", "_"): value for name, value in engine.items()})]
    problems, warnings = check_arguments(pools, sglang)
    return [str(problem) for problem in problems], warnings


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
def test_what_sglang_would_not_take(name: str, value: Any, message: str) -> None:
    (problem,), warnings = complaints(ONE_OF_EACH, **{name: value})
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
def test_what_sglang_takes(name: str, value: Any) -> None:
    assert complaints(ONE_OF_EACH, **{name: value}) == ([], [])


def test_a_choice_that_a_plugin_may_have_added_is_a_warning() -> None:
    problems, (warning,) = complaints(ONE_OF_EACH, load_format="saftensors")
    assert not problems
    assert "they are auto, safetensors" in warning


def test_without_sglang_nothing_is_checked_and_that_is_said() -> None:
    assert check_arguments([PoolText("prefill", "prefill", {}, {"pagesize": 1})], None) == ([], [UNCHECKED])
    assert check_arguments([PoolText("prefill", "prefill", {}, {})], None) == ([], [])


@pytest.mark.parametrize("version", ["0.5.15", "0.5.24", "0.6.0rc1"])
def test_of_a_release_that_the_table_lacks_nothing_is_refused_and_all_is_told(version: str) -> None:
    nearest = release(version)
    unknown = replace(nearest, version=version)
    problems, warnings = complaints(unknown, new_in_it=1, page_sice=16, attention_backend="new", sleep_on_idle=1)
    assert not problems
    about_release, *about_arguments = warnings
    assert about_release.startswith(f"sglang {version} is not one of 0.5.16 to 0.5.23")
    lacks, near_miss, mistyped, not_a_choice = sorted(about_arguments, key=lambda each: "choices" in each)
    assert f"sglang {nearest.version} has no argument 'new_in_it'" in lacks
    assert "did you mean page_size?" in near_miss
    assert "prefill.engine.sleep_on_idle: must be true or false, is 1" in mistyped
    assert f"'new' is not among the choices of sglang {nearest.version}" in not_a_choice
    assert all(each.endswith(f"; sglang {version} gets it all the same") for each in about_arguments)


def test_a_name_that_is_not_refused_stands_for_no_other() -> None:
    """Rules between arguments read `page_sice` as page_size where it is refused with that proposal, and only there."""
    pool = PoolText("prefill", "prefill", {}, {"page_sice": 16})
    (known,), (unknown,) = (
        as_meant([pool], each) for each in (release("0.5.23"), replace(release("0.5.23"), version="0.5.24"))
    )
    assert (known.engine, unknown.engine) == ({"page_size": 16}, {"page_sice": 16})


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
