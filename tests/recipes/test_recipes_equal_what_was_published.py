"""What a recipe gives its engines is what its source published, but for the differences named here with their reasons.

`published/*.yaml` holds each source's command line as it stands there; addresses, folders and files are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from disagg.config.rules import OWNED_ARGUMENTS
from tests.recipes.catalogue import RECIPES, WITH_PUBLISHED, plan_of, published, text_of

# SGLang's names have changed since; values too, where a flag has become a choice.
RENAMED = {
    "tp": "tp_size",
    "cuda_graph_bs": "cuda_graph_bs_decode",
    "cuda_graph_max_bs": "cuda_graph_max_bs_decode",
}
BECAME = {
    ("enable_deepep_moe", True): ("moe_a2a_backend", "deepep"),
    ("SGL_DISABLE_TP_MEMORY_INBALANCE_CHECK", "1"): ("SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK", "0"),
}
LISTS = {"cuda_graph_bs_decode"}  # one value on the command line is a list of one

# What a recipe leaves out, whatever its source says of it.
LEFT_OUT = {
    "decode_log_interval": "how often SGLang writes a line",
    "load_balance_method": "disagg names the rank of every request",
    "prefill_round_robin_balance": "disagg names the rank of every request; SGLang has dropped it",
    "deepep_config": "a file tuned for their network; without it DeepEP takes its own defaults",
    "init_expert_location": "statistics of the benchmark's prompts; others make it worse",
    "expert_distribution_recorder_mode": "records statistics that nobody here reads",
    "enable_ep_moe": "SGLang has dropped it: moe_a2a_backend deepep is enough",
    "num_reserved_decode_tokens": "made for the benchmark's 100 output tokens; SGLang's default is 512",
    "stream_interval": "tokens reach the client as they are made, not ten at a time",
    "dyn_reasoning_parser": "Dynamo's own",
    "dyn_tool_call_parser": "Dynamo's own",
}
ENV_LEFT_OUT = {
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "switches off that a dead prefill engine is noticed",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "disagg derives it from deadlines.first_token_s",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "disagg derives it from deadlines.first_token_s",
    "SGLANG_HACK_SEQ_BOOTSTRAP_ROOM": "rooms are disagg's",
    "SGLANG_MOONCAKE_CUSTOM_MEM_POOL": "needs Mooncake installed; the header tells of it",
    "MC_TE_METRIC": "Mooncake's; KV moves over NIXL",
    "SGLANG_PER_TOKEN_GROUP_QUANT_8BIT_V2": "SGLang has dropped it",
    "SGL_JIT_DEEPGEMM_PRECOMPILE": "kernels are compiled before the first request, not in it",
    "FLASHINFER_WORKSPACE_BASE": "a folder of theirs",
    "SGLANG_DUMPER_DIR": "a folder of theirs",
    "SGLANG_TORCH_PROFILER_DIR": "a folder of theirs",
    "SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR": "a folder of theirs",
    "SGLANG_LOCAL_IP_NIC": "an interface of theirs",
    "GLOO_SOCKET_IFNAME": "an interface of theirs",
    "NCCL_SOCKET_IFNAME": "an interface of theirs",
    "PYTHONUNBUFFERED": "disagg reads the engines' output as it comes",
}
MARK = "# derived"  # what a line says whose value the source does not have
ARGUMENT = re.compile(r"^    (\w+): (.*)$")


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("recipe", WITH_PUBLISHED)
def test_arguments_without_a_mark_are_the_sources(recipe: str, role: str) -> None:
    source, ours = said(published(recipe)[role]["arguments"]), emitted(recipe, role)
    source |= {name: value for name, value in benchmark(recipe, role).items() if name not in marked(recipe, role)}
    for name in ours.keys() - marked(recipe, role).keys():
        assert name in source, f"{recipe} {role}: {name} is neither published nor marked as derived"
        assert ours[name] == source[name], f"{recipe} {role}: {name}"


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("recipe", WITH_PUBLISHED)
def test_arguments_with_a_mark_are_not_the_sources(recipe: str, role: str) -> None:
    source, ours = said(published(recipe)[role]["arguments"]), emitted(recipe, role)
    for name, line in marked(recipe, role).items():
        assert name in ours
        assert ours[name] != source.get(name), f"{recipe} {role}: {name} is as published; take `derived` away"
        assert len(line.partition(MARK)[2].strip(": ")) > 4, f"{recipe} {role}: {name} does not say why"


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("recipe", WITH_PUBLISHED)
def test_nothing_published_is_left_out_without_a_reason(recipe: str, role: str) -> None:
    missing = said(published(recipe)[role]["arguments"]).keys() - emitted(recipe, role).keys()
    assert missing - OWNED_ARGUMENTS.keys() - LEFT_OUT.keys() == set()


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("recipe", WITH_PUBLISHED)
def test_the_environment_is_the_sources_or_left_out_with_a_reason(recipe: str, role: str) -> None:
    source, ours = dict(environment(published(recipe)[role].get("env", {}))), engine(recipe, role).env
    unmarked = {name for name in ours if not re.search(rf"{name}: .*{MARK}", text_of(recipe))}
    assert {name: ours[name] for name in unmarked} == {name: source.get(name) for name in unmarked}
    assert source.keys() - ours.keys() - ENV_LEFT_OUT.keys() == set()


def test_every_reason_for_leaving_something_out_is_needed() -> None:
    arguments: set[str] = set()
    variables: set[str] = set()
    for recipe in WITH_PUBLISHED:
        for role in ("prefill", "decode"):
            source = published(recipe)[role]
            arguments |= said(source["arguments"] | source.get("benchmark", {})).keys() - emitted(recipe, role).keys()
            variables |= dict(environment(source.get("env", {}))).keys() - engine(recipe, role).env.keys()
    assert variables == ENV_LEFT_OUT.keys()
    assert arguments - OWNED_ARGUMENTS.keys() == LEFT_OUT.keys() - OWNED_ARGUMENTS.keys()


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("recipe", WITH_PUBLISHED)
def test_an_engine_spans_the_published_number_of_nodes(recipe: str, role: str) -> None:
    assert engine(recipe, role).nodes == published(recipe)[role]["arguments"].get("nnodes", 1)


@pytest.mark.parametrize("recipe", WITH_PUBLISHED)
def test_code_that_comes_with_the_model_is_run_where_the_source_runs_it(recipe: str) -> None:
    source = {published(recipe)[role]["arguments"].get("trust-remote-code", False) for role in ("prefill", "decode")}
    assert source == {plan_of(recipe).model.trust_remote_code}


@pytest.mark.parametrize("recipe", ["qwen3-235b-2x8-h200", "llama-70b-8-h100"])
def test_where_no_sglang_command_is_published_every_argument_is_marked(recipe: str) -> None:
    assert recipe in RECIPES
    for role in ("prefill", "decode"):
        assert marked(recipe, role).keys() == emitted(recipe, role).keys()


def engine(recipe: str, role: str) -> Any:
    return next(engine for engine in plan_of(recipe).engines if engine.role.value == role)


def emitted(recipe: str, role: str) -> Mapping[str, Any]:
    arguments: Mapping[str, Any] = engine(recipe, role).engine
    return arguments


def said(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """By today's names."""
    found: dict[str, Any] = {}
    for written, value in arguments.items():
        name = written.replace("-", "_")
        name, value = BECAME.get((name, value), (RENAMED.get(name, name), value))
        found[name] = [value] if name in LISTS else value
    return found


def benchmark(recipe: str, role: str) -> dict[str, Any]:
    """What the source adds for its benchmark; a recipe that follows it says so above the lines."""
    return said(published(recipe)[role].get("benchmark", {}))


def environment(env: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in env.items():
        yield BECAME.get((name, value), (name, value))


def marked(recipe: str, role: str) -> dict[str, str]:
    """The arguments of a role whose line says `# derived: why`."""
    block = re.search(rf"^{role}:\n((?:  .*\n|\n)*?)  engine:.*\n((?:    .*\n)*)", text_of(recipe), re.MULTILINE)
    assert block, f"{recipe} has no {role}.engine block"
    lines = [match for line in block[2].splitlines() if (match := ARGUMENT.match(line))]
    return {match[1]: match[2] for match in lines if MARK in match[2]}
