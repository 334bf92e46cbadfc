"""Programs that others wrote for OpenAI's, vLLM's or SGLang's servers, as they come from the registry.

Each in a venv of its own (venvs.py), against the real frontend with a scripted backend. Nothing is fetched from a hub.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripted import MODEL, Running, ScriptedBackend, make_model_folder, serving
from venvs import INSTALL_S, LIMIT_S, packages_of, program_of, run, run_client

from disagg.cpu_profile.paths import standin_environment
from disagg.frontend.app import Frontend
from disagg.tokenizer.codec import load_codec

HERE = Path(__file__).parent
pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S + LIMIT_S)]

TASK: dict[str, Any] = {
    "task": "two_questions",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


async def alphabet(running: Running) -> None:
    count = min(running.request.max_tokens, 8)
    for index in range(count):
        await asyncio.sleep(0.001)
        await running.say(chr(ord("a") + index), [64 + index], "length" if index == count - 1 else None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return make_model_folder(folder)


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend(alphabet)


@pytest.fixture
async def frontend(model: Path, backend: ScriptedBackend) -> AsyncIterator[Frontend]:
    async with serving(backend, load_codec(model), refuses_unknown=False) as serving_now:  # as a deployment's
        yield serving_now


async def test_lm_eval_with_texts_with_token_ids_and_with_chats(
    frontend: Frontend, backend: ScriptedBackend, model: Path, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    questions = [{"question": "Who are you?", "answer": "abcdefgh"}, {"question": "One", "answer": "x"}]
    (tasks / "data.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    files = {"dataset_kwargs": {"data_files": {"test": str(tasks / "data.jsonl")}}}
    (tasks / "task.yaml").write_text(json.dumps(TASK | files))
    url = f"http://127.0.0.1:{frontend.port}"
    said = await run_client(
        tmp_path, "lm-eval", "python", str(HERE / "run_lm_eval.py"), url, MODEL, str(model), str(tasks)
    )
    assert json.loads(said.splitlines()[-1]) == [["abcdefgh"] * 2] * 3
    texts, ids, chats = (backend.requests[start : start + 2] for start in (0, 2, 4))
    assert len(backend.requests) == 6
    assert sorted(each.prompt_ids for each in texts) == sorted(each.prompt_ids for each in ids)
    assert all(len(each.prompt_ids) > 12 for each in chats)  # with the template around them


async def test_guidellm(frontend: Frontend, backend: ScriptedBackend, model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    await run_client(
        tmp_path,
        "guidellm",
        "guidellm",
        "run",
        *("--backend", f"kind=openai_http,target=http://127.0.0.1:{frontend.port},model={MODEL}"),
        *("--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=4"),
        *("--tokenizer", f"kind=huggingface_auto,model={model}"),
        *("--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=8"),
        *("--output", f"kind=json,path={report}", "--disable-progress"),
    )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (4, 0)
    assert len(backend.requests) >= 4


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_aiperf(frontend: Frontend, backend: ScriptedBackend, model: Path, tmp_path: Path, endpoint: str) -> None:
    """Not with HF_HUB_OFFLINE: aiperf then takes a folder for a name on the hub. It asks nobody for a folder."""
    out = tmp_path / "out"
    words = ["profile", "--model", MODEL, "--url", f"http://127.0.0.1:{frontend.port}"]
    words += ["--endpoint-type", endpoint, "--streaming", "--tokenizer", str(model)]
    words += ["--use-server-token-count", *(["--per-chunk-usage"] if endpoint == "chat" else [])]
    words += ["--concurrency", "2", "--request-count", "4", "--prompt-input-tokens-mean", "16", "--osl", "8"]
    words += ["--no-server-metrics", "--no-gpu-telemetry", "--ui", "none", "--workers-max", "1"]
    await run_client(tmp_path, "aiperf", "aiperf", *words, "--output-artifact-dir", str(out), hub=None)
    report = json.loads((out / "profile_export_aiperf.json").read_text())
    assert report["request_count"]["avg"] == 4
    assert report["error_summary"] == []
    assert report["usage_completion_tokens"]["sum"] == 4 * 8
    assert len(backend.requests) >= 4


async def test_sglangs_bench_serving_with_its_three_backends(
    frontend: Frontend, backend: ScriptedBackend, model: Path, tmp_path: Path
) -> None:
    """It is in SGLang's wheel, and so in our venv; `datasets`, which none of its three needs here, is lm-eval's."""
    out, packages = tmp_path / "out.jsonl", packages_of(await asyncio.to_thread(program_of, "lm-eval"))
    words = [str(HERE / "run_bench_serving.py"), f"http://127.0.0.1:{frontend.port}"]
    words += [MODEL, str(model), str(out), str(packages)]
    environment = standin_environment(os.environ) | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    await run([sys.executable, *words], tmp_path, environment)
    reports = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["backend"] for each in reports] == ["sglang-oai", "sglang-oai-chat", "sglang"]
    assert [(each["completed"], each["total_output_tokens"]) for each in reports] == [(4, 4 * 8)] * 3
    assert all(each["median_ttft_ms"] > 0 and each["median_itl_ms"] > 0 for each in reports)
    assert len(backend.requests) >= 3 * 4
