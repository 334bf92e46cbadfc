"""One YAML for all supported releases: names of any of them are understood, and each gets its own spelling."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from disagg.config.engine_arguments import check_arguments
from disagg.config.rules import PoolText
from disagg.errors import ConfigError
from disagg.load import parse_config
from disagg.planning.plan import resolve, shown_arguments
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.sglang.engine import SGLangEngine, SGLangMember
from disagg.sglang.releases import RELEASES, installed_release, nearest, release, spans
from disagg.sglang.versions import RENAMED, emit, neutral

ATTENTION_DP = {"tp_size": 8, "dp_size": 8, "enable_dp_attention": True}


@pytest.mark.parametrize("version", RELEASES)
def test_attention_data_parallelism_is_spelled_by_release(version: str) -> None:
    new = version in ("0.5.22", "0.5.23")
    assert emit(ATTENTION_DP, version) == ({"tp_size": 8, "dp_size": 1, "attn_dp_size": 8} if new else ATTENTION_DP)


def test_without_attention_dp_the_new_releases_get_no_word_of_it() -> None:
    assert emit({"tp_size": 2, "enable_dp_attention": False}, "0.5.23") == {"tp_size": 2}
    assert emit({"dp_size": 2}, "0.5.23") == {"dp_size": 2}


@pytest.mark.parametrize("version", RELEASES)
def test_a_decode_engine_on_a_cpu_gets_no_argument_that_its_release_lacks(version: str) -> None:
    arguments = emit(ROLES[Role.DECODE].arguments({}, device="cpu", bootstrap_port=1), version)
    assert set(arguments) <= set(release(version).arguments)
    assert ("disaggregation_decode_retraction_backup" in arguments) == (version >= "0.5.18")


def test_the_new_name_is_folded_into_the_neutral_ones() -> None:
    assert neutral({"tp_size": 8, "attn_dp_size": 8}) == ATTENTION_DP
    assert neutral({"attn_dp_size": 8, "dp_size": 1}) == {"dp_size": 8, "enable_dp_attention": True}
    assert neutral({"attn_dp_size": 1}) == {}


@pytest.mark.parametrize("version", RELEASES)
def test_a_renamed_argument_is_understood_and_emitted_under_a_name_the_release_has(version: str) -> None:
    for old, new in RENAMED.items():
        assert neutral({old: "x"}) == {new: "x"}
        (emitted,) = emit({new: "x"}, version)
        last = spans(new)[-1][1] if spans(new) else RELEASES[-1]
        assert emitted in release(version).arguments or version > last


@pytest.mark.parametrize(
    ("version", "is_taken_for"),
    [
        ("0.5.20", "0.5.20"),
        ("0.5.20.post1", "0.5.20"),
        ("0.5.23+cu130", "0.5.23"),
        ("0.5.24", "0.5.23"),
        ("0.6.0rc1", "0.5.23"),
        ("0.5.9", "0.5.16"),
        ("(of unknown version)", "0.5.20"),
    ],
)
def test_a_version_is_taken_for_the_nearest_release(version: str, is_taken_for: str) -> None:
    assert nearest(version) == is_taken_for


def test_a_pool_written_for_a_newer_release_plans_the_same_engine() -> None:
    deployment = parse_config("version: 1\nmodel: {path: a}\naggregated: {engine: {tp-size: 2, attn-dp-size: 2}}")
    (pool,) = deployment.aggregated
    assert pool.engine == {"tp_size": 2, "dp_size": 2, "enable_dp_attention": True}


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{attn_dp_size: 2, dp_size: 2}", "engine.attn_dp_size: is 2 beside dp_size or enable_dp_attention"),
        ("{attn_dp_size: 2, enable_dp_attention: true}", "say attn_dp_size alone, or the other two"),
        ("{attn_dp_size: '2'}", "engine.attn_dp_size: must be a whole number from 1, is '2'"),
        ("{cuda_graph_max_bs: 1, cuda_graph_max_bs_decode: 2}", "said 2 times, as cuda_graph_max_bs and"),
        ("{prefill_cp_mode: in-seq-split}", "one of 0.5.16 to 0.5.19; say cp_strategy: zigzag for in-seq-split"),
        ("{torchao_config: int8dq}", "it is one of 0.5.16 to 0.5.17; say quantization"),
        ("{enable_watermark: true}", "one of 0.5.22 to 0.5.23; leave it out, or install a release that has it"),
        ("{fp8_gemm_backend: triton}", "is a command-line alias in sglang 0.5.20; say fp8_gemm_runner_backend"),
        ("{stream_output: true}", "incremental_streaming_output: is not set here"),
        ("{preferred_sampling_params: '{}'}", "engine.preferred_sampling_params: must be a mapping, is the text '{}'"),
    ],
)
def test_what_cannot_be_folded_is_told(engine: str, message: str) -> None:
    sglang = installed_release()
    if sglang is None or sglang.version != "0.5.20":
        pytest.skip("the messages are those of sglang 0.5.20")
    text = f"version: 1\nmodel: {{path: a}}\naggregated: {{engine: {engine}}}"
    with pytest.raises(ConfigError) as failed:
        parse_config(text)
    assert message in str(failed.value)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_memory_pool_that_only_mooncake_moves_is_refused_where_kv_moves(role: str) -> None:
    text = "version: 1\nmodel: {path: a}\n"
    with pytest.raises(ConfigError, match=f"{role}.engine.enable_unified_memory: SGLang moves a unified memory pool"):
        parse_config(f"{text}prefill: {{}}\ndecode: {{}}", [f"{role}.engine.enable_unified_memory=true"])
    parse_config(f"{text}aggregated: {{engine: {{enable_unified_memory: true}}}}")


def test_a_pool_is_checked_against_the_names_of_the_release_that_runs() -> None:
    old, new = release("0.5.16"), release("0.5.17")
    pool = _pool(enable_linear_replayssm_spec=True)
    assert check_arguments(pool, old) == check_arguments(pool, new) == ([], [])
    (problem,) = check_arguments(_pool(dwdp_size=2), old)[0]
    assert "sglang 0.5.16 has no argument 'dwdp_size': it is one of 0.5.17 to 0.5.23" in str(problem)


def test_a_release_that_is_not_supported_is_a_warning() -> None:
    later = replace(release("0.5.23"), version="0.5.24")
    problems, warnings = check_arguments(_pool(page_size=16), later)
    assert (problems, warnings) == (
        [],
        ["sglang 0.5.24 is not one of 0.5.16 to 0.5.23: its arguments are spelled as in 0.5.23"],
    )


def test_an_engine_host_speaks_to_the_release_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class Engine:
        def __init__(self, **arguments: Any) -> None:
            raise Stopped(arguments)

    module = ModuleType("sglang.srt.entrypoints.engine")
    module.Engine = Engine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("importlib.metadata.version", {"sglang": "0.5.23"}.__getitem__)
    for kind in (SGLangEngine, SGLangMember):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        engine = kind(dict(ATTENTION_DP), fork=False, scratch=folder)
        with pytest.raises(Stopped) as stopped:
            engine.start()
        assert engine._stages is not None
        engine._stages.close()
        assert stopped.value.args == ({"tp_size": 8, "dp_size": 1, "attn_dp_size": 8},)


def test_the_plan_shows_what_the_release_here_would_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.planning.plan.installed_release", lambda: release("0.5.23"))
    engine = "{tp_size: 2, dp_size: 2, enable_dp_attention: true}"
    plan = resolve(parse_config(f"version: 1\nmodel: {{path: a}}\naggregated: {{engine: {engine}}}"), "cuda")
    arguments = shown_arguments(plan, plan.engines[0])
    assert (arguments["attn_dp_size"], arguments["dp_size"]) == (2, 1)
    assert plan.engines[0].dp_ranks == 2


def _pool(**engine: Any) -> list[PoolText]:
    return [PoolText("prefill", "prefill", {}, engine)]
