"""A model hub on loopback that never gets done: it names one file of a model, and sends a byte of it now and then."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILE, FILE_BYTES = "model.safetensors", 50_000_000
BYTE_S = 0.1


class _Hub(ThreadingHTTPServer):
    daemon_threads = True
    over = False
    sent_bytes = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Hub

    def do_HEAD(self) -> None:
        self._head(FILE_BYTES)

    def do_GET(self) -> None:
        if "/resolve/" not in self.path:
            body = json.dumps({"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": FILE}]}).encode()
            if "/tree/" in self.path:
                body = json.dumps([{"type": "file", "path": FILE, "size": FILE_BYTES, "oid": COMMIT}]).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self._head(FILE_BYTES)
        while not self.server.over:
            try:
                self.wfile.write(b"x")
            except OSError:
                return
            self.server.sent_bytes += 1
            time.sleep(BYTE_S)

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("etag", f'"{COMMIT}"')
        self.send_header("content-length", str(length))
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def slow_hub() -> Iterator[tuple[_Hub, dict[str, str]]]:
    """The hub, and the environment of who is to fetch from it."""
    hub = _Hub(("127.0.0.1", 0), _Handler)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{hub.server_port}"
        yield hub, {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    finally:
        hub.over = True
        hub.shutdown()
        hub.server_close()
