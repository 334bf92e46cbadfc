"""Streams of real deployments for tests: opened side by side, read in threads, their events kept with times."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from deployment import Deployment


class Stream(threading.Thread):
    """A streamed completion. `leave` closes the connection, as a client does that goes away."""

    def __init__(self, deployment: Deployment, prompt: list[int] | str, max_tokens: int, **more: Any) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection(deployment.url.removeprefix("http://"), timeout=120)
        self._body = {
            "model": "smollm2",
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            **more,
        }
        self.events: list[tuple[float, dict[str, Any]]] = []
        self.status = 0
        self.request_id = ""
        self.failure = ""
        self.start()

    def run(self) -> None:
        try:
            self._connection.request(
                "POST", "/v1/completions", json.dumps(self._body), {"Content-Type": "application/json"}
            )
            answer = self._connection.getresponse()
            self.status, self.request_id = answer.status, answer.headers.get("x-request-id", "")
            if self.status != 200:
                self.events.append((time.monotonic(), json.loads(answer.read())))
            while line := answer.readline():
                if line.startswith(b"data: {"):
                    self.events.append((time.monotonic(), json.loads(line.removeprefix(b"data: "))))
        except (OSError, http.client.HTTPException) as error:
            self.failure = repr(error)
        finally:
            self._connection.close()

    def cancelled(self, limit_s: float) -> None:
        """Once it runs, by its id, as `disagg cancel` does it."""
        wait_until(lambda: self.request_id or self.failure, limit_s)
        url = f"http://{self._connection.host}:{self._connection.port}/v1/requests/{self.request_id}"
        httpx.delete(url, timeout=limit_s, trust_env=False).raise_for_status()
        self.join(limit_s)
        assert self.error is not None

    def leave(self) -> None:
        self._connection.sock.shutdown(socket.SHUT_RDWR)

    @property
    def text(self) -> str:
        return "".join(c["text"] for _, e in self.events for c in e.get("choices") or ())

    @property
    def token_ids(self) -> list[int]:
        return [each for _, e in self.events for c in e.get("choices") or () for each in c["token_ids"]]

    @property
    def error(self) -> dict[str, Any] | None:
        return next((e["error"] for _, e in self.events if "error" in e), None)

    @property
    def usage(self) -> dict[str, Any] | None:
        return next((e["usage"] for _, e in self.events if e.get("usage")), None)

    def whole(self, limit_s: float) -> tuple[list[int], str]:
        """Token ids and text of a stream that ended well, with every token that was asked for."""
        self.join(limit_s)
        assert not self.is_alive(), f"the stream hangs after {len(self.events)} events"
        assert self.usage, f"it did not end well: {self.status} {self.failure} {self.events[-1:]}"
        assert len(self.token_ids) == self.usage["completion_tokens"] == self._body["max_tokens"]
        return self.token_ids, self.text


def kv_tokens_used(deployment: Deployment) -> dict[str, int]:
    """KV tokens that each engine's own snapshot calls used, over its ranks."""
    return {
        life: sum(rank["kv_tokens_used"] for rank in ranks) for life, ranks in deployment.get("/disagg/loads").items()
    }


def wait_until(
    what: Callable[[], Any], limit_s: float, why: Callable[[], Any] = lambda: "", pause_s: float = 0.05
) -> float:
    """Waits until `what()` is true and returns how long that took. `pause_s`: between two looks."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s, f"not within {limit_s} s: {why()}"
        time.sleep(pause_s)
    return time.monotonic() - began


@contextmanager
def all_the_time(some: Callable[[int], list[Stream]]) -> Iterator[list[Stream]]:
    """Streams that `some` begins, of how many there were before; once they have ended, the next ones."""
    streams: list[Stream] = []
    ends = threading.Event()

    def run() -> None:
        while not ends.is_set():
            begun = some(len(streams))
            streams.extend(begun)
            for stream in begun:
                stream.join(180)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield streams
    finally:
        ends.set()
        thread.join(200)
