"""The plan: engine ids, what each takes of the cluster, what is printed; and that the shipped configs make one."""

import json
from pathlib import Path

import pytest

from decode import pace
from disagg.errors import ConfigError
from disagg.load import load_config, parse_config
from disagg.planning.assess import assess
from disagg.planning.plan import Plan, device_of, resolve, resolve_parts
from disagg.planning.report import render, to_json

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
HEAD = "version: 1\nmodel: {path: smollm2}\n"


def test_ids_are_counted_a_role_over_its_pools() -> None:
    text = HEAD + "prefill: [{replicas: 2, name: small}, {}]\ndecode: {env: {A: 1}, resources: {cpus: 0.5}}"
    plan = resolve(parse_config(text), "cpu")
    assert [(engine.id, engine.pool, engine.pool_index) for engine in plan.engines] == [
        ("prefill-0", "small", 0),
        ("prefill-1", "small", 0),
        ("prefill-2", "prefill.1", 1),
        ("decode-0", "decode.0", 0),
    ]
    decode = plan.engines[-1]
    assert (decode.cpus, decode.gpus) == (0.5, 0)
    environment = decode.environment(device="cpu", deadlines=plan.deadlines)
    assert (environment["A"], environment["OMP_NUM_THREADS"]) == ("1", "1")
    assert pace.VARIABLE not in environment


def test_a_decode_pool_s_pace_is_in_its_engines_environment() -> None:
    text = HEAD + "prefill: {resources: {gpus: 0.5}}\ndecode: {pace_ms: 12.5, resources: {gpus: 0.5}}"
    plan = resolve(parse_config(text), "cuda")
    prefill, decode = (engine.environment(device="cuda", deadlines=plan.deadlines) for engine in plan.engines)
    assert decode[pace.VARIABLE] == "12.5"
    assert pace.VARIABLE not in prefill


@pytest.mark.parametrize(
    ("pool", "device", "gpus", "ranks", "dp_ranks"),
    [
        ("{}", "cuda", 1, 1, 1),
        ("{engine: {tp_size: 4, pp_size: 2}}", "cuda", 8, 8, 1),
        ("{engine: {tp_size: 4, dp_size: 4, enable-dp-attention: true}}", "cuda", 4, 4, 4),
        ("{resources: {gpus: 0.45}}", "cuda", 0.45, 1, 1),
        ("{engine: {tp_size: 2}}", "cpu", 0, 2, 1),
    ],
)
def test_gpus_follow_the_ranks(pool: str, device: str, gpus: float, ranks: int, dp_ranks: int) -> None:
    (engine,) = resolve(parse_config(HEAD + f"aggregated: {pool}"), device).engines
    assert (engine.id, engine.gpus, engine.ranks, engine.dp_ranks) == ("aggregated-0", gpus, ranks, dp_ranks)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cuda"), (0.5, "cpu")])
def test_gpus_that_contradict_the_device_are_refused(gpus: float, device: str) -> None:
    deployment = parse_config(HEAD + f"aggregated: {{resources: {{gpus: {gpus}}}}}")
    with pytest.raises(ConfigError, match=rf"aggregated.resources.gpus: is {gpus}, but .* runs on {device}"):
        resolve(deployment, device)


def test_of_several_pools_the_one_is_named() -> None:
    with pytest.raises(ConfigError, match=r"aggregated\.1\.resources\.gpus: is 0"):
        resolve(parse_config(HEAD + "aggregated: [{}, {resources: {gpus: 0}}]"), "cuda")


@pytest.mark.parametrize(
    ("said", "cluster_gpus", "device"),
    [("auto", 0, "cpu"), ("auto", 1, "cuda"), ("cpu", 8, "cpu"), ("cuda", 0, "cuda")],
)
def test_auto_takes_gpus_where_there_are_any(said: str, cluster_gpus: float, device: str) -> None:
    assert device_of(parse_config(HEAD + f"device: {said}\naggregated: {{}}"), cluster_gpus) == device


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_makes_a_plan_that_can_be_printed(path: Path) -> None:
    deployment = load_config(path)
    for plan in resolve_parts(deployment, device_of(deployment, 0)):
        _assert_told(plan)


def _assert_told(plan: Plan) -> None:
    assert plan.warnings == ()
    shown, data = render(assess(plan)), json.loads(to_json([assess(plan)]))
    for engine in plan.engines:
        assert f"\n{engine.id}  ({engine.role.value}, pool " in shown
    assert [engine["id"] for engine in data["engines"]] == [engine.id for engine in plan.engines]
    for engine in data["engines"]:
        ports = {"bootstrap_port"} if plan.device == "simulated" else {"port", "nccl_port"}
        assert all(engine["arguments"].get(port, "auto") == "auto" for port in ports)
    assert len({engine["arguments"].get("page_size") for engine in data["engines"]}) == 1


def test_the_shipped_configs_are_the_ones_we_name() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"local-cpu", "local-cpu-aggregated", "local-cpu-2p2d", "one-gpu", "two-gpus"}
