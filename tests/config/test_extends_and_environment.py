"""A configuration can be built on another, and can take values from the environment; mistakes name file and path."""

import time
from pathlib import Path

import pytest

from disagg.config.find import shipped_names
from disagg.errors import ConfigError, Problem
from disagg.load import load_config, parse_config
from disagg.planning.plan import resolve

PAIR = "version: 1\nmodel: {path: smollm2}\nprefill: {}\ndecode: {}\n"


def problems_in(path: Path) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return caught.value.problems


def write(folder: Path, **files: str) -> Path:
    """Returns the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_mappings_merge_and_pools_replace(tmp_path: Path) -> None:
    base = """
        version: 1
        device: cuda
        model: {path: /m, name: m}
        deadlines: {start_s: 100, queue_s: 7}
        prefill: {replicas: 3, engine: {page_size: 16, tp_size: 2}}
        decode: [{replicas: 2, engine: {page_size: 16}}, {engine: {page_size: 16}}]
    """
    above = """
        extends: base.yaml
        model: {name: mine}
        deadlines: {queue_s: 8}
        prefill: {engine: {page_size: 16}}
    """
    deployment = load_config(write(tmp_path, above=above, base=base))
    assert (deployment.model.path, deployment.model.name, deployment.device) == ("/m", "mine", "cuda")
    assert (deployment.deadlines.start_s, deployment.deadlines.queue_s) == (100, 8)
    assert (deployment.prefill[0].replicas, deployment.prefill[0].engine) == (1, {"page_size": 16})
    assert [pool.replicas for pool in deployment.decode] == [2, 1]
    assert (deployment.extends, deployment.name) == (None, "above")


def test_a_role_of_the_file_below_can_be_taken_away(tmp_path: Path) -> None:
    above = "extends: base.yaml\nprefill: null\ndecode: null\naggregated: {}"
    assert len(load_config(write(tmp_path, above=above, base=PAIR)).aggregated) == 1


def test_a_chain_of_files_in_other_folders_each_named_from_the_one_that_says_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "two.yaml").write_text("extends: ../three.yaml\nrouting: {queue_max: 2, retry_limit: 2}")
    one = "extends: deep/two.yaml\nrouting: {queue_max: 1}"
    routing = load_config(write(tmp_path, one=one, three=PAIR + "routing: {migration_limit: 3}")).routing
    assert (routing.queue_max, routing.retry_limit, routing.migration_limit) == (1, 2, 3)


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_config_can_be_extended_by_its_name(name: str, tmp_path: Path) -> None:
    above = f"extends: {name.removesuffix('.yaml')}\nfrontend: {{port: 1234}}"
    deployment = load_config(write(tmp_path, above=above))
    assert deployment.frontend.port == 1234
    assert all(part.model.path for part in deployment.parts())


def test_a_file_is_looked_for_beside_the_one_that_names_it_not_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    write(tmp_path / "here", base=PAIR)
    monkeypatch.chdir(tmp_path / "here")
    assert problems_in(write(tmp_path, above="extends: base.yaml"))[0].path == "extends"


def test_what_set_says_goes_over_the_whole_chain(tmp_path: Path) -> None:
    path = write(tmp_path, above="extends: base.yaml", base=PAIR)
    assert load_config(path, ["prefill.replicas=4"]).prefill[0].replicas == 4


BAD_CHAINS = {
    "a file that is not there": ({"a": "extends: b.yaml"}, "b.yaml is not a file"),
    "no name": ({"a": "extends: [1]"}, "is no name of a configuration"),
    "itself": ({"a": "extends: a.yaml"}, "comes back to"),
    "a circle": ({"a": "extends: b.yaml", "b": "extends: c.yaml", "c": "extends: b.yaml"}, "comes back to"),
    "too long": (
        {f"f{index}": f"extends: f{index + 1}.yaml" for index in range(12)} | {"f12": PAIR},
        "goes through more than 8 files",
    ),
    "a near miss of a shipped one": ({"a": "extends: local-cpo"}, "is not a file; did you mean local-cpu.yaml?"),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_a_chain_that_leads_nowhere_is_told(name: str, tmp_path: Path) -> None:
    files, message = BAD_CHAINS[name]
    (problem,) = problems_in(write(tmp_path, **files))
    assert problem.path == "extends"
    assert message in str(problem)


def test_a_problem_names_the_file_that_said_it(tmp_path: Path) -> None:
    above = "extends: base.yaml\nmodel: {path: m}\nfrontend: {port: 0}\nprefill: {engine: {page_sise: 1}}\ndecode: {}"
    base = "version: 1\nrouting: {queue_max: -1, retry_limt: 1}\nhealth: {canary_s: x}"
    told = {problem.path: problem.what for problem in problems_in(write(tmp_path, above=above, base=base))}
    in_base = {path for path, what in told.items() if what.endswith(f"(in {tmp_path / 'base.yaml'})")}
    assert in_base == {"routing.queue_max", "routing.retry_limt", "health.canary_s"}
    assert {"frontend.port", "prefill.engine.page_sise"} <= set(told) - in_base


def test_what_is_no_yaml_below_is_told_with_its_line(tmp_path: Path) -> None:
    problems = problems_in(write(tmp_path, above=PAIR + "extends: base.yaml", base="version: 1\nray: ["))
    assert [problem.path for problem in problems] == [f"{tmp_path / 'base.yaml'}:2:7"]


def test_the_environment_fills_values_in_their_own_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("EMPTY", "")
    deployment = parse_config(
        "version: 1\nmodel: {path: '${env:MODELS:-/models}/m', name: '${env:EMPTY:-fallback}'}\n"
        "frontend: {port: '${env:PORT}', host: '${env:HOST_OF_IT:-0.0.0.0}'}\n"
        "aggregated: {engine: {page_size: '${env:PAGE:-16}'}, env: {A: '${env:PORT}', B: 'x${env:PORT}y'}}\n"
    )
    assert (deployment.model.path, deployment.model.name) == ("/models/m", "fallback")
    assert (deployment.frontend.port, deployment.frontend.host) == (8123, "0.0.0.0")
    assert deployment.aggregated[0].engine["page_size"] == 16
    assert deployment.aggregated[0].env == {"A": "8123", "B": "x8123y"}


def test_what_has_to_be_text_is_text_whatever_the_variable_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P1", "123")
    monkeypatch.setenv("DAY", "2026-01-02")
    text = "version: 1\nmodel: {path: '${env:P1}', name: '${env:DAY}', revision: '${env:NO_REVISION:-}'}\n"
    deployment = parse_config(text + "aggregated: [{name: '${env:P1}'}]")
    assert (deployment.model.path, deployment.model.name, deployment.model.revision) == ("123", "2026-01-02", None)
    assert deployment.aggregated[0].name == "123"


def test_set_may_name_a_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "8123")
    assert parse_config(PAIR, ["frontend.port=${env:PORT}"]).frontend.port == 8123


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${env:NOT_SET_ANYWHERE}", "names the environment variable NOT_SET_ANYWHERE, which is not set"),
        ("a${env:NOT CLOSED", "has a reference that cannot be read"),
        ("${env:}", "has a reference that cannot be read"),
    ],
)
def test_a_variable_that_is_not_there_is_told_with_its_path(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(PAIR.replace("prefill: {}", f"prefill: [{{}}, {{env: {{A: '{value}'}}}}]"))
    (problem,) = caught.value.problems
    assert problem.path == "prefill.1.env.A"
    assert message in problem.what
    assert problem.would_do


def test_values_that_contain_themselves_or_grow_without_end_are_walked_once(tmp_path: Path) -> None:
    bomb = "\n".join(
        ["b0: &b0 {x: '${env:HOME}'}", *(f"b{i}: &b{i} {{l: *b{i - 1}, r: *b{i - 1}}}" for i in range(1, 40))]
    )
    text = PAIR + "frontend: &f {host: *f}\n" + bomb
    started_s = time.monotonic()
    assert len(problems_in(write(tmp_path, a=text + "\nextends: b.yaml", b=text))) < 60
    assert time.monotonic() - started_s < 120, "each of 2**39 was walked"


def test_one_page_size_for_all_that_hand_kv_over() -> None:
    pools = "prefill: [null, {engine: {}}]\ndecode: {engine: {page-size: 32}}"
    plan = resolve(parse_config("version: 1\nmodel: {path: m}\ntransfer: {page_size: 32}\n" + pools), "cpu")
    assert [engine.engine["page_size"] for engine in plan.engines] == [32, 32, 32]
    aggregated = parse_config("version: 1\nmodel: {path: m}\ntransfer: {page_size: 32}\naggregated: {}")
    assert aggregated.aggregated[0].engine == {}


@pytest.mark.parametrize(
    ("file", "name"),
    [("local-cpu", "local-cpu"), ("My Model_v2", "my-model-v2"), ("___", "disagg"), ("a" * 80, "a" * 63)],
)
def test_a_deployment_is_named_after_its_file(file: str, name: str, tmp_path: Path) -> None:
    assert load_config(write(tmp_path, **{file: PAIR})).name == name
    assert load_config(write(tmp_path, **{file: PAIR + "name: other"})).name == "other"


def test_code_of_the_model_runs_in_engines_only_when_the_deployment_trusts_it() -> None:
    text = "version: 1\nmodel: {path: m, trust_remote_code: %s}\naggregated: {}"
    (trusting,), (careful,) = (resolve(parse_config(text % said), "cpu").engines for said in ("true", "false"))
    assert trusting.engine == {"trust_remote_code": True}
    assert careful.engine == {}
