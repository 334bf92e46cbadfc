"""`disagg serve` with frontend.tls, two frontends, and the commands that ask it; the engines are simulated."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from certificates import Authority
from deployment import Deployment, end, launch
from streams import wait_until

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


def _disagg(url: str, *words: str, ca: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DISAGG_CA"} | {"DISAGG_URL": url}
    return subprocess.run(
        [sys.executable, "-m", "disagg.cli.main", *(("--ca", str(ca)) if ca else ()), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def _stream(url: str, trust: ssl.SSLContext) -> str:
    body = {"model": "smollm2", "prompt": [5, 6, 7], "max_tokens": 20, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30, verify=trust, trust_env=False) as answer:
        return "".join(answer.iter_text())


def test_it_serves_https_and_is_asked_with_its_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    signed, renewed = authority.sign("server"), authority.sign("renewed")
    tls = f"frontend.tls={{cert: {signed.cert}, key: {signed.key}}}"
    deployment = launch("configs/simulated.yaml", "ray.address=local", "frontend.count=2", tls)
    try:
        _asked(deployment, authority, tmp_path)
        trust = ssl.create_default_context(cafile=str(authority.cert))
        url = deployment.url.replace("http:", "https:")
        shutil.copy(renewed.cert, signed.cert)
        shutil.copy(renewed.key, signed.key)
        wait_until(lambda: deployment.log.read_text().count("TLS uses the new files") == 2, 30)
        assert "[DONE]" in _stream(url, trust)
    finally:
        assert end(deployment) == 0


def _asked(deployment: Deployment, authority: Authority, folder: Path) -> None:
    url = deployment.url.replace("http:", "https:")
    wait_until(lambda: _disagg(url, "status", ca=authority.cert).stdout.startswith("smollm2: ready"), 60)
    assert f"serving smollm2 on {url}/v1" in deployment.log.read_text()
    trust = ssl.create_default_context(cafile=str(authority.cert))
    for _ in range(8):  # on either frontend
        assert "[DONE]" in _stream(url, trust)
    told = _disagg(url, "status")
    assert told.returncode == 1
    assert "disagg --ca FILE" in told.stderr
    absent = _disagg(url, "status", ca=folder / "absent.pem")
    assert "$DISAGG_CA: cannot be used" in absent.stderr
    assert json.loads(_disagg(url, "status", "--json", ca=authority.cert).stdout)["ready"]
    assert _disagg(url, "events", ca=authority.cert).returncode == 0
