"""`disagg serve configs/simulated.yaml`: the same processes as in earnest, but for the engine."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import httpx
import openai
from deployment import serving
from streams import Stream, wait_until

from disagg.models.catalogue import cache_folder
from disagg.simulated_engine.tokens import answer


def test_it_serves_survives_and_says_that_it_is_simulated() -> None:
    with serving("configs/simulated.yaml", "ray.address=local") as deployment:
        ask = {"model": "smollm2", "prompt": [5, 6, 7], "max_tokens": 20, "ignore_eos": True, "return_token_ids": True}
        said = httpx.post(f"{deployment.url}/v1/completions", json=ask, timeout=30, trust_env=False)
        assert said.headers["x-disagg-simulated"] == "true"
        assert said.json()["choices"][0]["token_ids"] == answer([5, 6, 7], 20, ignore_eos=True)
        assert httpx.get(f"{deployment.url}/health", timeout=5, trust_env=False).headers["x-disagg-simulated"] == "true"

        (base_url,) = re.findall(r"serving smollm2 on (\S+) after", deployment.said())
        assert base_url == f"{deployment.url}/v1"
        with openai.OpenAI(base_url=base_url, api_key="none", http_client=httpx.Client(trust_env=False)) as client:
            assert [model.id for model in client.models.list()] == ["smollm2"]
            asked = client.completions.create(model="smollm2", prompt=[5, 6, 7], max_tokens=3)
            assert asked.usage is not None
            assert asked.usage.completion_tokens == 3

        undisturbed = Stream(deployment, [5, 6, 8], 300).whole(30)
        stream = Stream(deployment, [5, 6, 8], 300)
        wait_until(lambda: len(stream.events) > 5, 30)
        engines = {engine["id"]: engine for engine in deployment.get("/disagg/status")["engines"]}
        serving_now = deployment.get(f"/disagg/requests/{stream.request_id}")["decode"].partition("#")[0]
        os.kill(engines[serving_now]["pids"]["host"], signal.SIGKILL)
        assert stream.whole(30) == undisturbed
        assert deployment.timeline(stream.request_id, until="pauses_ms")["tries"] == 2


def test_no_log_folder_and_an_unread_output_stop_nothing(tmp_path: Path) -> None:
    """A file stands where the logs should go, and nobody reads what the driver and the frontend print."""
    for each in cache_folder().iterdir():
        if each.name != "logs":
            (tmp_path / each.name).symlink_to(each)
    (tmp_path / "logs").write_text("a file, where a folder should be")
    environment = {"DISAGG_CACHE": str(tmp_path)}
    with serving("configs/simulated.yaml", "ray.address=local", environment=environment, unread=True) as deployment:
        logs = httpx.get(f"{deployment.url}/disagg/logs/decode-0", timeout=30, trust_env=False)
        assert "this log lacks lines: Not a directory" in logs.text
        assert "set DISAGG_CACHE to another disk" in logs.text
        for _ in range(100):  # a line each, and the pipe holds some 40
            Stream(deployment, [5, 6, 7], 8000).cancelled(30)
        assert len(Stream(deployment, [5, 6, 8], 20).whole(30)[0]) == 20
