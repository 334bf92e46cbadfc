"""Two models of different sizes and tokenizers behind two frontends, their engines simulated: all but the engines is as
in earnest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deployment import Deployment, serving
from scripted import make_model_folder

LIMIT_S = 60.0
LORA = {"max_lora_rank": 8, "target_modules": ["q_proj"]}
POOL = {"resources": {"cpus": 0.1}, "engine": {"step_s": 0.001}}
SAID = {
    "version": 1,
    "name": "two",
    "device": "simulated",
    "models": {
        "chat": {
            "path": "smollm2",
            "name": "org/chat",
            "lora": LORA,
            "prefill": POOL,
            "decode": {**POOL, "replicas": 2},
        },
        "tiny": {"path": "tiny", "lora": LORA, "aggregated": POOL},
    },
    "ray": {"address": "local", "cpus": 2},
    "frontend": {"count": 2},
    "deadlines": {"no_pair_s": 0.5, "queue_s": 2.0},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "tiny").mkdir()
    tiny = f"models.tiny.path={make_model_folder(folder / 'tiny')}"
    registry = {"kind": "file", "path": str(folder / "registry")}
    (folder / "two.yaml").write_text(yaml.safe_dump({**SAID, "registry": registry}))
    with serving(str(folder / "two.yaml"), tiny) as deployment:
        deployment.registry = registry["path"]  # type: ignore[attr-defined]
        deployment.config = folder / "two.yaml"  # type: ignore[attr-defined]
        deployment.sets = (tiny, f"frontend.port={deployment.url.rpartition(':')[2]}")  # type: ignore[attr-defined]
        yield deployment


def post(deployment: Deployment, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{deployment.url}{path}", json=body, timeout=30, trust_env=False)


def ask(deployment: Deployment, model: str, prompt: str = "Say hello.") -> httpx.Response:
    return post(deployment, "/v1/completions", model=model, prompt=prompt, max_tokens=4)


def test_each_goes_to_engines_of_its_model_whichever_frontend_is_asked(two: Deployment) -> None:
    assert [model["id"] for model in two.get("/v1/models")["data"]] == ["org/chat", "tiny"]
    read = {}
    for model, key in (("org/chat", "chat"), ("tiny", "tiny")) * 4:
        answer = ask(two, model)
        assert answer.status_code == 200, answer.text
        timeline = two.timeline(answer.headers["x-request-id"], until="decode")
        assert timeline["model"] == model
        places = {timeline[each] for each in ("prefill", "decode") if timeline.get(each)}
        assert places
        assert all(place.startswith(f"{key}.") for place in places), places
        read[model] = post(two, "/tokenize", model=model, prompt="Say hello.").json()
    assert read["org/chat"]["max_model_len"] > read["tiny"]["max_model_len"]
    assert read["org/chat"]["count"] < read["tiny"]["count"] == len("Say hello."), "each by its own tokenizer"
    assert ask(two, "gpt-5").status_code == 404


def test_only_engines_of_one_model_have_met(two: Deployment) -> None:
    for engine in two.get("/disagg/status")["engines"]:
        assert engine["model"] == {"chat": "org/chat", "tiny": "tiny"}[engine["group"]]
        assert all(peer.startswith(f"{engine['group']}.") for peer in engine["peers"])


def test_metrics_of_both_frontends_tell_the_model(two: Deployment) -> None:
    ask(two, "tiny")
    text = httpx.get(f"{two.url}/metrics", timeout=30, trust_env=False).text
    assert 'disagg_engines_ready{model="org/chat"} 3.0' in text
    assert 'disagg_engines_ready{model="tiny"} 1.0' in text
    for number in (0, 1):
        assert f'disagg_requests_total{{frontend="{number}",model="tiny",phase="finished"}}' in text
    assert "\ndisagg_tasks " in text


def test_operators_see_the_models(two: Deployment) -> None:
    command = [sys.executable, "-m", "disagg.cli.main"]
    shown = subprocess.run([*command, "status", "--url", two.url], capture_output=True, text=True, check=True).stdout
    assert "org/chat: ready" in shown
    assert "tiny: ready" in shown
    where = f"file:{two.registry}"  # type: ignore[attr-defined]
    listed = subprocess.run([*command, "list", "--registry", where, "--json"], capture_output=True, check=True).stdout
    (found,) = json.loads(listed)
    assert found["models"] == ["chat", "tiny"]
    assert {engine["id"] for engine in found["engines"]} == {
        "chat.prefill-0",
        "chat.decode-0",
        "chat.decode-1",
        "tiny.aggregated-0",
    }


def test_adapters_of_one_name_are_each_models_own(two: Deployment, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]})
    )
    for model in ("org/chat", "tiny"):
        loaded = post(two, "/load_lora_adapter", model=model, lora_name="sql", lora_path=str(tmp_path))
        assert loaded.status_code == 200, loaded.text
    listed = [(each["id"], each.get("parent")) for each in two.get("/v1/models")["data"]]
    assert listed == [("org/chat", None), ("sql", "org/chat"), ("tiny", None), ("sql", "tiny")]
    for name, key in (("org/chat:sql", "chat"), ("tiny:sql", "tiny")):
        answer = ask(two, name)
        assert (answer.status_code, answer.json()["model"]) == (200, name)
        decode = two.timeline(answer.headers["x-request-id"], until="decode")["decode"]
        assert decode.startswith(f"{key}.")
    assert ask(two, "sql").json()["error"]["code"] == "ambiguous_model"
    assert post(two, "/unload_lora_adapter", model="tiny", lora_name="sql").status_code == 200
    assert ask(two, "sql").json()["model"] == "sql", "one model alone has it now"
    assert post(two, "/unload_lora_adapter", model="org/chat", lora_name="sql").status_code == 200


def test_one_model_is_dead_and_the_other_serves(two: Deployment) -> None:
    def is_ready(query: str = "") -> bool:
        return httpx.get(f"{two.url}/ready{query}", timeout=30, trust_env=False).status_code == 200

    os.kill(two.engine("tiny.aggregated-0")["pids"]["host"], signal.SIGKILL)
    two.wait_until(lambda: two.engine("tiny.aggregated-0")["incarnation"] == 2, LIMIT_S)
    assert ask(two, "org/chat").status_code == 200
    two.wait_until(two.all_ready, LIMIT_S)
    assert ask(two, "tiny").status_code == 200, "it came back"

    drain = "/disagg/engines/tiny.aggregated-0/drain"
    assert post(two, drain).status_code == 200
    two.wait_until(lambda: two.engine("tiny.aggregated-0")["state"] == "dead", LIMIT_S)
    two.wait_until(lambda: not any(is_ready("?model=tiny") for _ in range(8)), LIMIT_S)
    assert is_ready()
    assert ask(two, "org/chat").status_code == 200
    refused = ask(two, "tiny")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert post(two, f"{drain}?restart=1").status_code == 200
    two.wait_until(two.all_ready, LIMIT_S)
    assert ask(two, "tiny").status_code == 200


def disagg(deployment: Deployment, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "disagg.cli.main", *words, "--url", deployment.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def apply(deployment: Deployment, more: dict[str, Any], *words: str) -> subprocess.CompletedProcess[str]:
    """The configuration with `more` among its models."""
    config: Path = deployment.config  # type: ignore[attr-defined]
    said = yaml.safe_load(config.read_text())
    changed = config.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump({**said, "models": {**said["models"], **more}}, sort_keys=False))
    sets = [word for each in deployment.sets for word in ("--set", each)]  # type: ignore[attr-defined]
    return disagg(deployment, "apply", str(changed), *sets, *words)


def test_a_model_comes_and_goes_behind_both_frontends(two: Deployment) -> None:
    more = {"extra": {"path": "smollm2", "name": "org/extra", "aggregated": POOL}}
    came = apply(two, more, "--wait")
    assert came.returncode == 0, came.stdout + came.stderr
    assert "models.extra: (absent) -> smollm2" in came.stdout
    assert "model org/extra is served" in came.stdout

    def names() -> set[tuple[str, ...]]:
        return {tuple(model["id"] for model in two.get("/v1/models")["data"]) for _ in range(8)}

    two.wait_until(lambda: names() == {("org/chat", "tiny", "org/extra")}, LIMIT_S)
    for _ in range(8):
        answer = ask(two, "org/extra")
        assert answer.status_code == 200, answer.text
    assert two.timeline(answer.headers["x-request-id"], until="decode")["decode"].startswith("extra.aggregated-0#1")
    assert 'disagg_engines_ready{model="org/extra"} 1.0' in httpx.get(f"{two.url}/metrics", trust_env=False).text
    scaled = disagg(two, "scale", "extra.aggregated=2", "--wait")
    assert "extra.aggregated-1#1 is ready" in scaled.stdout, scaled.stdout + scaled.stderr

    gone = apply(two, {}, "--yes", "--wait")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert "model org/extra takes no new requests" in gone.stdout
    two.wait_until(lambda: names() == {("org/chat", "tiny")}, LIMIT_S)
    refused = ask(two, "org/extra")
    assert refused.status_code == 404
    assert "there are 'org/chat', 'tiny'" in refused.json()["error"]["message"]
    two.wait_until(lambda: len(two.get("/disagg/status")["models"]) == 2, LIMIT_S)
    assert [each["id"] for each in two.get("/disagg/status")["engines"] if each["group"] == "extra"] == []


def test_a_model_whose_files_are_not_there_is_refused_before_anything_begins(two: Deployment) -> None:
    refused = apply(two, {"extra": {"path": "/no/such/folder", "aggregated": POOL}}, "--wait")
    assert refused.returncode == 1
    assert "is no folder here" in refused.stderr
    assert ask(two, "tiny").status_code == 200
