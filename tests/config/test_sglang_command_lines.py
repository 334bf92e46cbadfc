"""Each release's parser reads our command line as the arguments it was made from.

Here the parsers are rebuilt from the table of arguments, but for the installed release, which is asked itself. All
eight are asked by `python -m tests.config.sglang_wheels`, which needs their wheels.
"""

import json

import pytest

from disagg.sglang.command_line import PROGRAM, command_line
from disagg.sglang.releases import RELEASES, TABLE, installed_release
from tests.config.sglang_asked import command_lines, misread, parsed
from tests.config.sglang_engines import ENGINES
from tests.config.sglang_parser import parser_of
from tests.config.sglang_table import table
from tests.config.sglang_wheels import ask


@pytest.mark.parametrize("version", RELEASES)
def test_every_engine_and_every_argument_that_passes_is_read_as_meant(version: str) -> None:
    lines = dict(command_lines(version))
    assert len(lines["all arguments, on"]) > 300
    assert [
        wrong for name, arguments in lines.items() for wrong in misread(parser_of(version), name, arguments, version)
    ] == []


def test_what_another_release_renamed_is_seen_by_these_tests() -> None:
    """The tests above would fail without the spelling by version."""
    attention_dp = {"model_path": "m", "dp_size": 8, "enable_dp_attention": True}
    new, old = (command_line(attention_dp, version)[len(PROGRAM) :] for version in ("0.5.22", "0.5.21"))
    assert "--attn-dp-size" in str(parsed(parser_of("0.5.21"), new))
    assert parsed(parser_of("0.5.22"), old) != parsed(parser_of("0.5.22"), new)


def test_a_line_reads_as_one_would_type_it() -> None:
    arguments = {
        "model_path": "/m",
        "tp_size": 8,
        "dp_size": 8,
        "enable_dp_attention": True,
        "chunked_prefill_size": -1,
        "disable_radix_cache": False,
        "max_total_tokens": None,
        "cuda_graph_bs_decode": [1, 2],
        "lora_paths": {"a": "/a b"},
        "lora_strict_loading": False,
        "fp8_gemm_runner_backend": "triton",
        "extra_metric_labels": {"a": "b"},
        "weight_version": "-x",
    }
    said = "--cuda-graph-bs-decode 1 2 --lora-paths|a=/a b|--no-lora-strict-loading --fp8-gemm-backend triton"
    words = ["--model-path", "/m", "--tp-size", "8", "--dp-size", "8", "--enable-dp-attention"]
    words += ["--chunked-prefill-size", "-1", *(word for part in said.split("|") for word in _words(part))]
    words += ["--extra-metric-labels", '{"a": "b"}', "--weight-version=-x"]
    assert command_line(arguments, "0.5.20") == [*PROGRAM, *words]


def _words(part: str) -> list[str]:
    return [part] if part.startswith("a=") else part.split()


def test_an_argument_of_a_release_to_come_is_written_as_its_value_suggests() -> None:
    words = command_line({"new_switch": True, "new_size": 3, "new_list": ["a", "b"]}, "0.6.0")
    assert words[3:] == ["--new-switch", "--new-size", "3", "--new-list", "a", "b"]


@pytest.mark.engine
def test_the_installed_release_itself_reads_every_line_as_meant() -> None:
    sglang = installed_release()
    if sglang is None or sglang.version not in RELEASES:
        pytest.skip("no supported sglang is installed here")
    answer = ask(None, sglang.version)
    assert answer["lines"] == len(ENGINES) + 2
    assert answer["complaints"] == []
    says = [json.loads(line) for line in table({sglang.version: answer["arguments"]}).splitlines()]
    only = {"since": sglang.version, "until": sglang.version}
    rows = [json.loads(line) for line in TABLE.read_text().splitlines()]
    assert says == [row | only for row in rows if row["since"] <= sglang.version <= row["until"]]
