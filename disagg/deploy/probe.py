"""Readiness probe of the head pod: Ray is healthy, and so is the frontend, if it listens already.

Usage: python -m disagg.deploy.probe [--port 8000]
In:    Ray's own health on this node, and /ready of the frontend
Fails: exit 1, with the reason

KubeRay starts nothing before the head pod is ready, and the frontend is what it then starts. So a frontend that does
not listen yet is no reason to be unready; one that listens and is not ready (engines load, or drain) is.
"""

from __future__ import annotations

import argparse
import sys
import urllib.error
import urllib.request

RAY_PORT = 52365  # the node's dashboard agent
LIMIT_S = 4.0


def trouble(frontend_port: int, ray_port: int = RAY_PORT) -> str:
    """Why the pod is not ready; empty if it is."""
    ray = _get(f"http://127.0.0.1:{ray_port}/api/healthz")
    if ray != "200":
        return f"Ray on this node is not well: {ray}"
    frontend = _get(f"http://127.0.0.1:{frontend_port}/ready")
    return "" if frontend in ("200", REFUSED) else f"the frontend is not ready: {frontend}"


REFUSED = "nothing listens"


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=LIMIT_S) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return str(error.code)
    except OSError as error:
        reason = getattr(error, "reason", error)
        return REFUSED if isinstance(reason, ConnectionRefusedError) else str(reason)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    wrong = trouble(parser.parse_args().port)
    if wrong:
        sys.stderr.write(f"{wrong}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
