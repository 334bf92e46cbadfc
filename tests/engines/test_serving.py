"""The main job: one endpoint over a prefill and a decode engine, as clients and operators see it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from deployment import Deployment
from listeners import kind_of, open_in, told
from streams import Stream

from benchmarks.random_requests import Result, campaign, send
from disagg.folders import log_folder, run_folder
from disagg.sampling import FIELDS, SamplingField

QUESTION = "Explain why Roger Federer is considered one of the greatest tennis players of all time"
ANSWER = "Roger Federer is considered one of the greatest tennis players of all time. He is a legendary"
ASK = {"model": "smollm2", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 30}


@pytest.fixture(scope="module")
def client(pair: Deployment) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{pair.url}/v1", api_key="none", http_client=http, max_retries=0) as client:
        yield client


def test_what_it_says_to_try_first_does_what_it_says(pair: Deployment) -> None:
    said = pair.log.read_text()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = functools.partial(subprocess.run, shell=True, env=environment, capture_output=True, text=True, timeout=120)
    for what, answer in (("ask it:", '"choices"'), ("Python:", ""), ("look:", "decode-0")):
        (line,) = [each.partition(what)[2] for each in said.splitlines() if f"] {what}" in each]
        done = run(line)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip()
        assert answer in done.stdout


def test_curl_streams_the_answer(pair: Deployment) -> None:
    body = json.dumps({**ASK, "stream": True})
    command = ["curl", "-sN", "--noproxy", "*", f"{pair.url}/v1/chat/completions", "-d", body]
    out = subprocess.run([*command, "-H", "Content-Type: application/json"], capture_output=True, check=True).stdout
    events = [line.removeprefix("data: ") for line in out.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert text.startswith(ANSWER)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_openai_client_chat(pair: Deployment, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**ASK)  # type: ignore[call-overload]
    whole = raw.parse()
    assert whole.choices[0].message.content.startswith(ANSWER)
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 30)
    assert pair.timeline(raw.headers["x-request-id"])["kv_bytes"] > 0

    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options=options))  # type: ignore[call-overload]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_openai_client_completions(client: openai.OpenAI) -> None:
    ask = {"model": "smollm2", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**ask)  # type: ignore[call-overload]
    assert "Paris" in whole.choices[0].text
    parts = client.completions.create(**ask, stream=True)  # type: ignore[call-overload]
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]


def test_a_stop_string_ends_both_legs(pair: Deployment) -> None:
    answer = pair.complete("The capital of France is", max_tokens=200, stop=["Paris"])
    assert "Paris" not in answer["choices"][0]["text"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    pair.wait_until(lambda: pair.get("/disagg/status")["frontend"]["rooms"] == 0, 30)


def test_a_seed_gives_the_same_sample_again(pair: Deployment) -> None:
    def sample(seed: int) -> str:
        answer = pair.complete("Tell me a story about", max_tokens=16, temperature=1.0, min_p=0.02, seed=seed)
        return str(answer["choices"][0]["text"])

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in (1, 2, 3)}) > 1


def test_the_timeline_tells_every_step(pair: Deployment) -> None:
    request_id = pair.complete("A prompt of a few tokens", max_tokens=4)["request_id"]
    way = pair.timeline(request_id)
    steps = way["timeline_ms"]
    order = ["received", "admitted", "dispatched", "prefill_start", "prefill_end", "transfer_end", "finish"]
    times = [steps[name] for name in order]
    assert times == sorted(times), steps
    assert {"tokenised", "transfer_start", "first_token"} <= steps.keys()
    assert (way["phase"], way["prefill"], way["decode"]) == ("finished", "prefill-0#1/0", "decode-0#1/0")
    assert way["room"] > 0
    assert way["lane"] not in (None, "tcp"), "engines of one machine share memory"


def test_status_and_logs_commands(pair: Deployment) -> None:
    def disagg(*words: str) -> str:
        command = [sys.executable, "-m", "disagg.cli.main", *words, "--url", pair.url]
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout

    request_id = pair.complete("Hello", max_tokens=2)["request_id"]
    engines = {e["id"]: e for e in json.loads(disagg("status", "--json"))["engines"]}
    assert {e["state"] for e in engines.values()} == {"ready"}
    for engine in engines.values():
        for pid in (engine["pids"]["actor"], engine["pids"]["host"], *engine["pids"]["schedulers"]):
            os.kill(pid, 0)
    assert "prefill-0" in disagg("status")
    assert "first_token" in disagg("status", "--request", request_id)
    said = disagg("logs", "decode-0")
    assert request_id in said
    assert "| zero-copy |" not in said, "UCX's tables, four fifths of all that an engine prints"


def test_health_ready_metrics(pair: Deployment) -> None:
    assert httpx.get(f"{pair.url}/health", trust_env=False).status_code == 200
    assert httpx.get(f"{pair.url}/ready", trust_env=False).status_code == 200
    metrics = httpx.get(f"{pair.url}/metrics", trust_env=False).text
    assert "disagg_kv_transfer_bytes_total" in metrics
    assert 'disagg_granted_kv_tokens{dp_rank="0",engine="decode-0"} 0.0' in metrics, "an idle engine holds nothing"


BAD = [
    ({"messages": []}, 400, "messages"),
    ({"model": "no-such-model"}, 404, "model"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": -5}, 400, "max_tokens"),
    ({"max_tokens": 100_000}, 400, "max_tokens"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"n": 0}, 400, "n"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
    ({"bootstrap_room": 5}, 400, "bootstrap_room"),
    ({"bootstrap_host": "example.invalid"}, 400, "bootstrap_host"),
    ({"routed_dp_rank": 0}, 400, "routed_dp_rank"),
]


@pytest.mark.parametrize(("change", "status", "param"), BAD, ids=[json.dumps(change)[:40] for change, _, _ in BAD])
def test_bad_input_is_refused_and_the_server_goes_on(
    pair: Deployment, change: dict[str, object], status: int, param: str
) -> None:
    answer = httpx.post(f"{pair.url}/v1/chat/completions", json={**ASK, **change}, timeout=10, trust_env=False)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["code"]
    assert pair.is_ready()


AT_ONCE = 24
BYSTANDER_S = 240.0
BYSTANDER = {"prompt": "The capital of France is", "max_tokens": 32}


def _with_a_bystander(pair: Deployment, sends: Any) -> Result:
    """What came of `sends`, while a greedy stream after the other runs in the same batches and must not notice."""
    alone = _bystander(pair)

    async def both() -> Result:
        sending = asyncio.ensure_future(sends())
        while True:
            assert await asyncio.to_thread(_bystander, pair) == alone
            if sending.done():
                return await sending

    return asyncio.run(both())


def _bystander(pair: Deployment) -> tuple[list[int], str]:
    """Token ids and text; asked again while the deployment is full."""
    until = time.monotonic() + BYSTANDER_S
    while True:
        stream = Stream(pair, **BYSTANDER)
        stream.join(BYSTANDER_S)
        if stream.status != httpx.codes.TOO_MANY_REQUESTS or time.monotonic() > until:
            return stream.whole(BYSTANDER_S)
        time.sleep(1)


def _ends(field: SamplingField) -> list[Any]:
    """The least and the most that is taken; of a field that may not be 0 itself, the least float there is."""
    least = 5e-324 if field.above_least else field.least
    return [int(end) if field.is_integer else end for end in (least, field.most)]


def test_both_ends_of_every_sampling_field_and_all_pairs_of_them_harm_nobody(pair: Deployment) -> None:
    ends = {field.name: _ends(field) for field in FIELDS}
    choices = [{name: end} for name, both in ends.items() for end in both]
    for one, other in itertools.combinations(ends, 2):
        choices += [{one: a, other: b} for a, b in itertools.product(ends[one], ends[other])]
    shared = {"model": "smollm2", "prompt": [1000, 1001, 1002], "max_tokens": 2, "ignore_eos": True, "stream": False}
    bodies = [{**shared, **({"temperature": 1} | choice)} for choice in choices]
    result = _with_a_bystander(pair, lambda: send(pair.url, bodies, AT_ONCE))
    assert result.passed, result.table()
    assert result.answered == len(bodies) == 128


def test_two_hundred_random_requests_are_answered_or_refused_by_name(pair: Deployment) -> None:
    result = _with_a_bystander(pair, lambda: campaign(pair.url, 200, AT_ONCE, tokens_max=2))
    print(result.table())
    assert result.passed, result.table()
    assert result.answered > 160, result.table()


def test_what_listens_is_in_the_table_and_on_loopback_alone(pair: Deployment) -> None:
    """docs/security.md, Ports."""
    found = open_in(pair.processes(), int(pair.url.rpartition(":")[2]))
    assert {("engine host", "block + 10"), ("engine host", "block + 7"), ("zygote", "in a folder of mode 0700")} <= {
        (each.who, each.port) for each in found
    }, "the probe sees nothing"
    assert [each for each in found if not told(each)] == []
    assert [each for each in found if not each.path and each.address not in ("127.0.0.1", "::1")] == []


def test_the_planes_secret_is_where_it_is_needed_alone(pair: Deployment) -> None:
    """Not in SGLang's processes, with all that a model brings, nor in what Ray started."""
    frontend = next(each for each in pair.processes() if "disagg.frontend.main" in each.cmdline())
    secret = frontend.environ()["DISAGG_PLANE_SECRET"].encode()
    seen = {kind_of(each): secret in environment_of(each) for each in pair.processes()}
    assert "scheduler" in seen
    assert {who for who, has_it in seen.items() if has_it} == {"frontend"}
    assert [each.cmdline() for each in pair.processes() if secret in "\0".join(each.cmdline()).encode()] == []
    for file in (*run_folder(pair.name).rglob("*"), *log_folder(pair.name).rglob("*")):
        assert not file.is_file() or secret not in file.read_bytes(), file


def environment_of(process: psutil.Process) -> bytes:
    """As it was at its start."""
    return Path(f"/proc/{process.pid}/environ").read_bytes()


def test_nothing_that_it_writes_is_open_to_other_users(pair: Deployment) -> None:
    """Its umask is 0, and Ray opens its folders to all: what is around them has to be closed."""
    name = pair.name
    (raylet,) = [each for each in pair.processes() if each.name() == "raylet"]
    ray = Path(next(word for word in raylet.cmdline() if word.startswith("--temp_dir=")).partition("=")[2]).parent
    folders = [ray, run_folder(name), log_folder(name)]
    assert [oct(folder.stat().st_mode & 0o777) for folder in folders] == ["0o700"] * 3
    held = {path for process in pair.processes() for path in open_files(process)}
    assert any(path.parent == Path("/dev/shm") for path in held), "the probe sees nothing"
    assert [str(path) for path in held if is_exposed(path)] == []


def open_files(process: psutil.Process) -> set[Path]:
    """Below the folders that all users share."""
    paths = [
        line.split(maxsplit=5)[5] for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines() if "/" in line
    ]
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            paths.append(os.readlink(link))
    return {Path(path) for path in paths if path.startswith(("/tmp/", "/dev/shm/"))}


def is_exposed(path: Path) -> bool:
    """To others than its user, by its own mode and those of the folders above it."""
    if not path.exists() or path.name.startswith("disagg-test-"):  # what the test itself gave it to write on
        return False
    return bool(path.stat().st_mode & 0o006) and all(above.stat().st_mode & 0o001 for above in path.parents)
