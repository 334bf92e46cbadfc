"""`--set path.to.key=value`: applied before the checks, on one pool or on all pools of a role."""

import copy

import pytest

from disagg.config.overrides import apply_sets
from disagg.config.schema import Deployment
from disagg.errors import ConfigError
from disagg.load import parse_config

ONE = "version: 1\nmodel: {path: smollm2}\nprefill: {engine: {page-size: 8}}\ndecode: {engine: {page_size: 8}}\n"
MANY = ONE.replace("prefill: {engine: {page-size: 8}}", "prefill: [{engine: {page_size: 8}}, null]")


def engine_of(deployment: Deployment, role: str, index: int = 0) -> dict[str, object]:
    return dict(getattr(deployment, role)[index].engine)


def test_a_value_is_read_as_yaml_and_sections_come_into_being() -> None:
    deployment = parse_config(ONE, ["frontend.port=8001", "model.name='7'", "deadlines.stop_s=2.5", "ray={cpus: 3}"])
    assert (deployment.frontend.port, deployment.model.name) == (8001, "7")
    assert (deployment.deadlines.stop_s, deployment.ray.cpus) == (2.5, 3)


def test_a_value_may_hold_equals_signs_and_be_empty() -> None:
    deployment = parse_config(ONE, ["prefill.env.FLAGS='a=b'", "frontend="])
    assert deployment.prefill[0].env == {"FLAGS": "a=b"}


def test_the_last_of_two_wins() -> None:
    assert parse_config(ONE, ["frontend.port=1", "frontend.port=2"]).frontend.port == 2


def test_an_index_names_one_pool_however_the_role_was_written() -> None:
    sets = ["prefill.0.engine.page-size=16", "decode.engine.page_size=16"]
    deployment = parse_config(ONE, sets)
    assert engine_of(deployment, "prefill") == engine_of(deployment, "decode") == {"page_size": 16}


def test_without_an_index_all_pools_of_the_role_are_meant() -> None:
    deployment = parse_config(MANY, ["prefill.engine.page_size=16", "decode.engine.page_size=16"])
    assert [engine_of(deployment, "prefill", index)["page_size"] for index in (0, 1)] == [16, 16]


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_mapping_that_two_roles_share_by_an_alias_is_set_in_one_only(role: str, listed: bool) -> None:
    pool = "[&pool {engine: {page_size: 8}}]" if listed else "&pool {engine: {page_size: 8}}"
    text = f"version: 1\nmodel: {{path: smollm2}}\nprefill: {pool}\ndecode: {'[*pool, *pool]' if listed else '*pool'}\n"
    deployment = parse_config(text, [f"{role}.0.engine.max_running_requests=4"])
    given = {(role, i): pool.engine.get("max_running_requests") for role, i, pool in deployment.pools()}
    assert given == {key: 4 if key == (role, 0) else None for key in given}


def test_what_was_passed_in_is_left_as_it_was() -> None:
    tree = {"prefill": [{"engine": {"a": 1}}, None], "ray": None}
    before = copy.deepcopy(tree)
    sets = ["prefill.engine.b=2", "ray.cpus=1", "prefill.1.replicas=2"]
    assert apply_sets(tree, sets)[0] == {
        "prefill": [{"engine": {"a": 1, "b": 2}}, {"engine": {"b": 2}, "replicas": 2}],
        "ray": {"cpus": 1},
    }
    assert tree == before


@pytest.mark.parametrize(
    ("override", "path", "message"),
    [
        ("frontend.port", "--set frontend.port", "no path and value"),
        ("=1", "--set =1", "no path and value"),
        ("a..b=1", "--set a..b=1", "no path and value"),
        ("frontend.port=[", "--set frontend.port", "is not YAML"),
        ("frontend.prot=1", "frontend.prot", "did you mean port?"),
        ("frontend.port.x=1", "frontend.port", "must be a whole number"),
        ("model.path.x=1", "--set model.path.x", "path is 'smollm2' and has no keys below it"),
        ("prefill.2.replicas=1", "--set prefill.2.replicas", "prefill has 2 pools, and they count from 0"),
        ("prefill.0={}", "--set prefill.0", "replaces a whole pool"),
        ("prefill.1.replicas=0", "prefill.1.replicas", "must be at least 1"),
        ("version=2", "version", "must be 1, is 2"),
    ],
)
def test_nonsense_is_told(override: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(MANY, ["prefill.1.engine.page_size=8", override])
    (problem,) = caught.value.problems
    assert problem.path == path
    assert message in str(problem)


def test_a_number_that_yaml_reads_as_another_is_no_text() -> None:
    with pytest.raises(ConfigError, match="YAML reads 010 as 8; quote the text you mean"):
        parse_config(ONE, ["prefill.env.A=010"])
    assert parse_config(ONE, ["prefill.env.A='010'", "prefill.env.B=10"]).prefill[0].env == {"A": "010", "B": "10"}
