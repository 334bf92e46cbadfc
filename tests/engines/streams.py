"""Streams of real deployments for tests: opened side by side, read in threads, their events kept with times."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from deployment import Deployment


class Stream(threading.Thread):
    """A streamed completion. `leave` closes the connection, as a client does that goes away."""

    def __init__(self, deployment: Deployment, prompt: list[int] | str, max_tokens: int, **more: Any) -> None:
        super().__init__(daemon=True)
        self._url = f"{deployment.url}/v1/completions"
        self._body = {
            "model": "smollm2",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "ignore_eos": True,
            **more,
        }
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.status = 0
        self.request_id = ""
        self.failure = ""
        self._leaving = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            timeout = httpx.Timeout(120, read=120)
            with httpx.Client(timeout=timeout, trust_env=False) as client:
                self._client = client
                with client.stream("POST", self._url, json=self._body) as answer:
                    self.status, self.request_id = answer.status_code, answer.headers.get("x-request-id", "")
                    if self.status != 200:
                        self.events.append((time.monotonic(), json.loads(answer.read())))
                    for line in answer.iter_lines():
                        if self._leaving.is_set():
                            return
                        if line.startswith("data: {"):
                            self.events.append((time.monotonic(), json.loads(line.removeprefix("data: "))))
        except httpx.HTTPError as error:
            self.failure = repr(error)

    def leave(self) -> None:
        self._leaving.set()
        self._client.close()

    @property
    def text(self) -> str:
        return "".join(c["text"] for _, e in self.events for c in e.get("choices") or ())

    @property
    def error(self) -> dict[str, Any] | None:
        return next((e["error"] for _, e in self.events if "error" in e), None)

    @property
    def usage(self) -> dict[str, Any] | None:
        return next((e["usage"] for _, e in self.events if e.get("usage")), None)

    def whole(self, limit_s: float) -> str:
        """The text of a stream that ended well."""
        self.join(limit_s)
        assert not self.is_alive(), f"the stream hangs after {len(self.events)} events"
        assert self.usage, f"it did not end well: {self.status} {self.failure} {self.events[-1:]}"
        return self.text


def kv_tokens_used(deployment: Deployment) -> dict[str, int]:
    """KV tokens that each engine's own snapshot calls used, over its ranks."""
    return {
        life: sum(rank["kv_tokens_used"] for rank in ranks) for life, ranks in deployment.get("/disagg/loads").items()
    }


def wait_until(what: Callable[[], Any], limit_s: float, why: Callable[[], Any] = lambda: "") -> float:
    """Waits until `what()` is true and returns how long that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s, f"not within {limit_s} s: {why()}"
        time.sleep(0.05)
    return time.monotonic() - began
