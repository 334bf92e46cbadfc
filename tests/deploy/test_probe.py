"""The head pod's readiness: Ray, and the frontend once there is one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from disagg.cluster.ports import free_port
from disagg.deploy import probe


@contextmanager
def answering(path: str, status: int) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == path else 404)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_before_there_is_a_frontend_the_pod_is_ready() -> None:
    """KubeRay starts `disagg serve` only on a cluster whose pods are ready."""
    with answering("/api/healthz", 200) as ray_port:
        assert probe.trouble(free_port(), ray_port) == ""


@pytest.mark.parametrize(("status", "wrong"), [(200, ""), (503, "the frontend is not ready: 503")])
def test_a_frontend_decides_once_it_is_there(status: int, wrong: str) -> None:
    with answering("/api/healthz", 200) as ray_port, answering("/ready", status) as port:
        assert probe.trouble(port, ray_port) == wrong


def test_a_sick_ray_makes_the_pod_unready_whatever_the_frontend_says() -> None:
    with answering("/api/healthz", 503) as ray_port, answering("/ready", 200) as port:
        assert "503" in probe.trouble(port, ray_port)
        assert "nothing listens" in probe.trouble(port, free_port())


def test_a_frontend_that_hangs_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LIMIT_S", 0.1)
    with answering("/api/healthz", 200) as ray_port, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "timed out" in probe.trouble(silent.getsockname()[1], ray_port)
