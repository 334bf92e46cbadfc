"""`disagg check`: the whole plan on stdout, or every problem at once and exit status 2; nothing is started."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from disagg.cli import main as command_line
from disagg.config.find import shipped_folder, shipped_names
from disagg.config.json_schema import json_schema

CLUSTER = (
    "nodes: [{count: 13, name: h100, cpus: 128, gpus: 8, gpu_kind: h100-80g, nics: [{count: 8, kind: ib, gbit: 400}]}]"
)
GANGS = """
version: 1
model: {path: deepseek-ai/DeepSeek-R1}
transfer: {page_size: 64}
prefill: {replicas: %d, nodes: 4, engine: {tp_size: 32, dp_size: 32, enable_dp_attention: true}}
decode: {nodes: 9, engine: {tp_size: 72, dp_size: 72, enable_dp_attention: true}}
"""


class Said:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def disagg(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["disagg", *words])
        try:
            command_line.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        return Said(status, *capsys.readouterr())

    return run


@pytest.fixture
def gangs(tmp_path: Path) -> tuple[str, str]:
    config, cluster = tmp_path / "gangs.yaml", tmp_path / "cluster.yaml"
    config.write_text(GANGS % 1)
    cluster.write_text(CLUSTER)
    return str(config), str(cluster)


def test_every_shipped_config_passes(disagg: Any) -> None:
    for name in shipped_names():
        said = disagg("check", name)
        assert (said.status, said.err) == (0, ""), said.err
        assert "not checked: no cluster was looked at" in said.out


def test_a_described_cluster_that_ships_is_found_by_its_name(disagg: Any, gangs: tuple[str, str]) -> None:
    assert "13 nodes, 104 GPUs" in disagg("check", gangs[0], "--assume-cluster", "13x8-h100").out
    said = disagg("check", gangs[0], "--assume-cluster", "no-such-cluster")
    assert said.status == 2
    assert "no-such-cluster: is not a file; give a file, or one that ships: 13x8-h100.yaml" in said.err


def test_a_device_that_the_cluster_decides_is_a_guess_without_one(disagg: Any, gangs: tuple[str, str]) -> None:
    said = disagg("check", gangs[0])
    assert "device    cpu" in said.out
    assert "not checked: device: auto is cuda on a cluster with GPUs" in said.out
    assert "device: auto" not in disagg("check", gangs[0], "--assume-cluster", gangs[1]).out


def test_places_memory_and_transfers_of_gangs_are_told(disagg: Any, gangs: tuple[str, str]) -> None:
    said = disagg("check", gangs[0], "--assume-cluster", gangs[1])
    assert said.status == 0, said.err
    for line in (
        "name      gangs (namespace disagg)",
        "671.0B parameters, weights 626.8 GiB (fp8), estimated; KV 70,272 bytes a token in bfloat16",
        "prefill-0  (prefill, pool prefill.0: 1 CPU, 8 GPU on each of 4 nodes, 32 ranks in 32 data-parallel groups)",
        "  node h100-3, GPU 0-7: rank 24-31",
        "  node h100-12, GPU 0-7: rank 64-71",
        "  python -m sglang.launch_server \\\n",
        "    --disaggregation-bootstrap-port auto \\\n",
        "    --nnodes 9 \\\n",
        "    --page-size 64 \\\n",
        "RDMA, 400 Gb/s a rank, 50 GB/s, 36 pairs of members: 1.44 ms",
    ):
        assert line in said.out, said.out


def test_no_prompt_is_longer_than_the_model_can_read(disagg: Any) -> None:
    assert "KV of a prompt of 1,024 | 8,192 tokens, estimated" in disagg("check", "local-cpu").out


def test_a_command_line_is_that_of_the_release_on_the_engines_nodes(disagg: Any, gangs: tuple[str, str]) -> None:
    Path(gangs[1]).write_text(CLUSTER.replace("cpus:", "sglang: 0.5.23, cpus:"))
    said = disagg("check", gangs[0], "--assume-cluster", gangs[1])
    assert "as sglang 0.5.23 would be started by hand:" in said.out
    assert "--attn-dp-size 72" in said.out
    assert "--enable-dp-attention" not in said.out


def test_json_says_the_same(disagg: Any, gangs: tuple[str, str]) -> None:
    said = disagg("check", gangs[0], "--assume-cluster", gangs[1], "--json")
    tree = json.loads(said.out)
    prefill, decode = tree["engines"]
    assert [member["node"] for member in prefill["members"]] == [f"h100-{index}" for index in range(4)]
    assert decode["members"][8]["ranks"] == list(range(64, 72))
    assert decode["memory"]["kv_bytes_per_token"] == 70_272
    assert decode["command_line"][:3] == ["python", "-m", "sglang.launch_server"]
    assert [entry["tokens"] for entry in tree["transfers"]] == [1024, 8192, 32_768]
    assert (tree["problems"], tree["not_checked"]) == ([], [])


def test_what_does_not_fit_the_cluster_ends_with_2(disagg: Any, gangs: tuple[str, str], tmp_path: Path) -> None:
    Path(gangs[0]).write_text(GANGS % 2)
    said = disagg("check", gangs[0], "--assume-cluster", gangs[1])
    assert said.status == 2
    assert "decode: decode-0 needs 8 GPU and 1 CPU on each of 9 nodes" in said.err
    assert "1 problem(s); nothing was started" in said.err
    said = disagg("check", gangs[0], "--assume-cluster", gangs[1], "--json")
    assert said.status == 2
    assert [problem["path"] for problem in json.loads(said.out)["problems"]] == ["decode"]


def test_problems_of_both_files_are_told_at_once(disagg: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 2\nmodel: {path: m}\nprefill: {replica: 1}\ndecode: {}")
    (tmp_path / "c.yaml").write_text("nodes: [{cpus: 1, gpu: 1}]")
    words = ("check", str(tmp_path / "a.yaml"), "--assume-cluster", str(tmp_path / "c.yaml"))
    said = disagg(*words)
    assert said.status == 2
    assert said.out == ""
    assert [line.partition(":")[0] for line in said.err.splitlines()[:-1]] == [
        "nodes.0.gpu",
        "version",
        "prefill.replica",
    ]
    assert f"(in {tmp_path / 'c.yaml'})" in said.err.splitlines()[0]
    said = disagg(*words, "--json")
    assert said.status == 2
    assert {problem["path"] for problem in json.loads(said.out)["problems"]} == {
        "nodes.0.gpu",
        "version",
        "prefill.replica",
    }


def test_a_model_that_cannot_be_understood_is_not_checked(disagg: Any, tmp_path: Path) -> None:
    """As in `serve`: SGLang may know better."""
    (tmp_path / "config.json").write_text('{"model_type": "of next year"}')
    said = disagg("check", "local-cpu", "--set", f"model.path={tmp_path}")
    assert said.status == 0
    assert "not checked: the model's shape: " in said.out


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_of_the_model_is_named(disagg: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of next year"}')
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5000\n")
    said = disagg("check", "local-cpu", "--set", f"model.path={tmp_path}")
    assert said.status == 2
    assert f"{name} is a pointer of git-lfs" in said.err + said.out


def test_warnings_of_the_preflight_are_told(disagg: Any, tmp_path: Path) -> None:
    words = ("check", "two-gpus", "--set", "model.path=Qwen/Qwen3-32B", "--set", "prefill.engine.tp_size=2")
    words = (*words, "--set", "prefill.resources.gpus=2")
    said = disagg(*words)
    assert (said.status, said.err) == (0, "")
    assert "\nwarning: decode.engine.tp_size: 1 attention rank here and 2 in prefill" in said.out
    assert len(json.loads(disagg(*words, "--json").out)["warnings"]) == 1


def test_without_a_config_it_says_how(disagg: Any) -> None:
    assert disagg("check").status == 2


def test_a_dry_run_prints_and_refuses_as_check_does(disagg: Any, tmp_path: Path) -> None:
    assert disagg("serve", "local-cpu", "--dry-run").out == disagg("check", "local-cpu").out
    refusing = ("--set", "decode.engine.page_size=99")
    said = disagg("serve", "local-cpu", "--dry-run", *refusing)
    assert said.status == 2
    assert said.err == disagg("check", "local-cpu", *refusing).err


@pytest.fixture(scope="module")
def schema() -> Any:
    return json_schema()


def test_the_schema_is_printed(disagg: Any, schema: Any) -> None:
    assert json.loads(disagg("check", "--schema").out) == schema


def test_the_schema_is_valid_and_describes_every_key(schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, section in [("Deployment", schema), *schema["$defs"].items()]:
        for key, about in section["properties"].items():
            assert about.get("description"), f"{name}.{key}"


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_config_is_valid_by_the_schema(name: str, schema: Any) -> None:
    tree = yaml.safe_load((shipped_folder() / name).read_text())
    jsonschema.Draft202012Validator(schema).validate(tree)


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"prefill": [{}, {"env": {"A": 1}}], "decode": {"engine": {"tp_size": 2}}}, True),
        ({"frontend": {"port": "${env:PORT}"}}, True),
        ({"extends": "local-cpu"}, True),
        ({"device": "${env:DEVICE}", "name": "${env:NAME}", "prefill": "${env:POOLS}"}, True),
        ({"transfer": {"lanes": ["${env:LANE}"], "page_size": "${env:PAGE}", "allow_tcp": "${env:TCP}"}}, True),
        ({"frontend": None, "ray": None, "prefill": [None], "decode": None}, True),
        ({"frontend": {"port": None}}, False),
        ({"prefill": {"resources": None}}, False),
        ({"model": {"name": "m"}}, False),
        ({"frontend": {"port": "8000"}}, False),
        ({"frontend": {"port": 0}}, False),
        ({"frontned": {}}, False),
        ({"prefill": "two"}, False),
        ({"transfer": {"lanes": ["carrier-pigeon"]}}, False),
        ({"name": "A.B"}, False),
    ],
)
def test_the_schema_takes_and_refuses_as_check_does(change: dict[str, Any], valid: bool, schema: Any) -> None:
    tree = {"version": 1, "model": {"path": "m"}, "prefill": {}, "decode": {}} | change
    assert jsonschema.Draft202012Validator(schema).is_valid(tree) is valid


README = """
extends: one-gpu
model: {path: "${env:MODELS:-/models}/Qwen3-8B"}
frontend: {port: 9000}
"""


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        (README, True),
        ("extends: one-gpu\nmodel: {name: mine}", True),
        ("extends: one-gpu\nmodel: {nam: mine}", False),
        ("version: 1\nprefill: {}", False),
        ("model: {path: m}\nprefill: {}", False),
    ],
)
def test_by_the_schema_a_file_says_less_when_it_extends_another(text: str, valid: bool, schema: Any) -> None:
    assert jsonschema.Draft202012Validator(schema).is_valid(yaml.safe_load(text)) is valid
