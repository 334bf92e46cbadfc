"""`make demo`: the main job from nothing, on this machine: serve, ask one question, show the way the answer took.

Usage: python -m disagg.cli.demo [CONFIG]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx

from disagg import stopping
from disagg.cli.observe import ask
from disagg.cluster.ports import free_port

QUESTION = "Explain why Roger Federer is considered one of the greatest tennis players of all time"
MAX_TOKENS = 30
START_S = 660.0  # deadlines.start_s, and some: the deployment itself tells why it does not start
FACTS_S = 3.0  # prefill's last word, with the KV bytes, may come after the answer's


def main() -> int:
    with stopping.heed():
        try:
            with stopping.unwinding():
                return _demonstrate()
        except stopping.Stopped as stopped:
            stopping.leave(128 + stopped.number)


def _demonstrate() -> int:
    config = sys.argv[1] if len(sys.argv) > 1 else "local-cpu"
    port, program = free_port(), [sys.executable, "-P", "-m", "disagg.cli.main"]
    url, command = f"http://127.0.0.1:{port}", [*program, "serve", config, "--set", f"frontend.port={port}"]
    # In a session of its own: a Ctrl-C is ours, and would come to it twice.
    server = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True)
    with stopping.farewell(server.kill):
        try:
            if not _wait_until_ready(server, url):
                return 1
            request_id, ttft_ms = _ask_aloud(url)
            _tell_the_way(url, request_id, ttft_ms)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    sys.stdout.write(f"\nto stay, until Ctrl-C: {_program()} serve {config}\n")
    return 0


def _program() -> str:
    """`disagg` as it can be called from here, whatever the PATH is."""
    program = Path(sys.executable).with_name("disagg")
    return str(program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program)


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> bool:
    until = time.monotonic() + START_S
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=2.0, trust_env=False).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    sys.stderr.write("the deployment did not become ready\n")
    return False


def _ask_aloud(url: str) -> tuple[str, float]:
    """Streams the answer to standard output; returns the request's id and the time to the first token."""
    model = ask(url, "/v1/models")["data"][0]["id"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "stream": True,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    sys.stdout.write(f"\n> {QUESTION}\n")
    began_s, ttft_ms = time.monotonic(), 0.0
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60.0, trust_env=False) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise SystemExit(event["error"]["message"])
            text = event["choices"][0]["delta"].get("content") or ""
            if text and not ttft_ms:
                ttft_ms = (time.monotonic() - began_s) * 1e3
            sys.stdout.write(text)
            sys.stdout.flush()
        return answer.headers["x-request-id"], ttft_ms


def _tell_the_way(url: str, request_id: str, ttft_ms: float) -> None:
    until = time.monotonic() + FACTS_S
    while "kv_bytes" not in (way := ask(url, f"/disagg/requests/{request_id}")) and time.monotonic() < until:
        time.sleep(0.05)
    sys.stdout.write(
        f"\n\nprefill {way['prefill']}, decode {way['decode']}, room {way['room']}, "
        f"KV {way.get('kv_bytes', 0)} bytes, lane {way['lane']}, TTFT {ttft_ms:.0f} ms\n"
    )
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
