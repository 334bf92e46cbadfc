"""A Ray Serve application that keeps `disagg serve` running: what a RayService needs to have something to serve.

Way:   RayService -> Ray Serve -> [replica on the head node] -> `disagg serve` -> engines
In:    {"command": [words of `disagg serve`], "stop_s": what it may take to end}, from the RayService's serveConfigV2
Out:   the deployment lives as long as the application; its end is a failed health check, and Serve starts it anew
Owns:  the process of `disagg serve`, which does not outlive the replica
Fails: RuntimeError from the health check

Requests do not come this way. The frontend listens on the head pod and has a Service of its own: tokens pass through
neither Ray Serve's proxy nor its replicas. A request that comes here is answered with the address to use.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from typing import Any

ELSEWHERE = "requests go to the frontend's own Service, NAME-frontend; nothing is served here\n"


class ServeProcess:
    """`disagg serve` as a child that ends with us, in order when there is time for it."""

    def __init__(self, command: Sequence[str]) -> None:
        # setpriv: a SIGKILL of this process is a SIGTERM of that one.
        self._process = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", *command], start_new_session=True)

    def check(self) -> None:
        status = self._process.poll()
        if status is not None:
            raise RuntimeError(f"disagg serve has ended with {status}; its log is this replica's")

    def stop(self, limit_s: float) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def application(arguments: dict[str, Any]) -> Any:
    """The builder that serveConfigV2 names."""
    from ray import serve
    from starlette.responses import PlainTextResponse

    class DisaggDeployment:
        def __init__(self, command: list[str], stop_s: float) -> None:
            self._process, self._stop_s = ServeProcess(command), stop_s

        def check_health(self) -> None:
            self._process.check()

        async def __call__(self, request: Any) -> PlainTextResponse:
            return PlainTextResponse(ELSEWHERE, status_code=421)

        def __del__(self) -> None:
            self._process.stop(self._stop_s)

    deployment = serve.deployment(
        DisaggDeployment,
        num_replicas=1,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=arguments["stop_s"] + 10,
        ray_actor_options={"num_cpus": 0, "resources": {HEAD_RESOURCE: 1}},
    )
    return deployment.bind(list(arguments["command"]), arguments["stop_s"])


HEAD_RESOURCE = "disagg_head"  # only the head node has it, and one of it
