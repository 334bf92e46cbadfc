"""Our connection to Ray: a cluster that runs already, or a private one that ends with us.

In:    `ray.address` of the YAML; out: a connected driver
Owns:  the private cluster's folder (removed by us, or by the janitor if we are killed): 0700, and in it all that Ray
       writes, its token too. It listens on loopback alone, and ignores the variables that would change that
Fails: StartError when the cluster is not there or does not let us in
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.job_config import JobConfig

from disagg.cluster import ray_address
from disagg.cluster.ray_address import PRIVATE_PREFIX, Meant
from disagg.errors import StartError
from disagg.host_spec import DEPLOYMENT_VARIABLE

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 << 20  # nothing but control messages passes through Ray's object store
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in a job's driver: the job's runtime environment
SOCKET_PATH_MAX_BYTES = 107  # of a Unix socket
_LONGEST_SOCKET = "r/session_2026-11-29_01-22-06_867708_1234567/sockets/plasma_store"  # below the private folder
# Variables that others set for their clusters. With them a private one would share their storage, ports, token or
# files.
_NOT_OF_A_PRIVATE_ONE = (
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_GCS_SERVER_PORT",
    "RAY_NAMESPACE",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV",
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING",
    "RAY_RAYLET_PID",
    "RAY_REDIS_ADDRESS",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_TMPDIR",
    "RAY_USE_TLS",
    "RAY_gcs_storage",
    "RAY_gcs_storage_path",
    "RAY_grpc_enable_http_proxy",
    "RAY_object_spilling_config",
    JOB_CONFIG,
)
# Ray for Linux replaces 127.0.0.1 by an address that others reach, and listens on all addresses; except where it takes
# its cluster for a desktop's.
_ON_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def private_folder(address: str) -> str:
    """Where a private cluster will live; empty if a running one is used."""
    if ray_address.meant(address, os.environ).address:
        return ""
    for other in ray_address.others_here():
        log.info("a Ray cluster runs here at %s and is left alone; --set ray.address=HOST:PORT would join it", other)
    folder = tempfile.mkdtemp(prefix=PRIVATE_PREFIX)
    longest = len(os.fsencode(f"{folder}/{_LONGEST_SOCKET}"))
    if longest > SOCKET_PATH_MAX_BYTES:
        os.rmdir(folder)
        what = f"Ray's sockets there would have names of {longest} bytes, and {SOCKET_PATH_MAX_BYTES} are allowed"
        raise StartError(f"TMPDIR={tempfile.gettempdir()}", what, "set TMPDIR to a shorter folder, /tmp for one")
    return folder


def connect(
    address: str, folder: str, cpus: int | None, gpus: int | None, deployment: str, namespace: str = "disagg"
) -> None:
    """`folder`: of a private cluster, from `private_folder`; empty: join one that runs."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common = {
        "namespace": namespace,
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "configure_logging": False,
        # As for a driver elsewhere: else Ray puts the folder where this one was started in front of its workers' path.
        "job_config": JobConfig(_client_job=True),
    }
    if folder:
        _start_private(folder, cpus, gpus, deployment, common)
    else:
        _join(address, common)


def _start_private(folder: str, cpus: int | None, gpus: int | None, deployment: str, common: dict[str, Any]) -> None:
    # So that the janitor knows Ray's own processes, too: they write no title over their environment.
    os.environ |= {DEPLOYMENT_VARIABLE: deployment, "SPT_NOENV": "1"}
    for name in _NOT_OF_A_PRIVATE_ONE:
        if os.environ.pop(name, None) is not None:
            log.info("%s is for another cluster: the private one is started without it", name)
    os.environ["PYTHONSAFEPATH"] = "1"  # Ray's own processes import nothing from the folder where this was started
    _give_a_token(Path(folder))
    _on_loopback(True)
    try:
        with _any_free_ports():
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(Path(folder) / "r"),  # Ray opens it to all (0777): that `folder` is closed has to do
                _node_ip_address="127.0.0.1",
                **common,
            )
    except Exception as error:  # Ray raises many kinds here
        raise StartError("ray.address", f"no private Ray cluster could be started: {error}", f"see {folder}") from error


def _join(address: str, common: dict[str, Any]) -> None:
    at = ray_address.meant(address, os.environ)
    if not at.address:
        would_do = "start one (`ray start --head`), or say ray.address: HOST:PORT"
        raise StartError(
            at.said_by or f"ray.address: {address}", "no Ray cluster of yours runs on this machine", would_do
        )
    _on_loopback(False)
    ray_address.refuse_a_silent_one(at, _where_ray_goes(at))
    _outside_of_the_working_folder()
    if "auto" in at.said_by or at.said_by.startswith(ray_address.VARIABLE):
        _use_a_token_that_is_there()
    try:
        ray.init(address=at.address, **common)
    except Exception as error:  # Ray raises many kinds here (ConnectionError, RpcError, AuthenticationError, …)
        would_do = "with token authentication, RAY_AUTH_MODE=token and the cluster's own token (`ray get-auth-token`)"
        raise StartError(at.said_by, f"cannot connect to {at.address}: {error}", would_do) from error


def _where_ray_goes(at: Meant) -> str:
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address(at.address))
    except (ValueError, OSError) as error:
        raise StartError(
            at.said_by, f"the address cannot be used: {error}", "say HOST:PORT of the cluster's head"
        ) from None


def _give_a_token(folder: Path) -> None:
    """Gives the private cluster a token of its own. Ray would write one into the user's home, and from then on ask for
    it everywhere."""
    path = folder / "auth_token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # it would tell how to turn it off


def _use_a_token_that_is_there() -> None:
    """Uses the user's token, if there is one, as Ray does for a cluster that it has found by itself."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    try:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    except ImportError:
        return  # a Ray from before its tokens
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextlib.contextmanager
def _any_free_ports() -> Iterator[None]:
    """Makes Ray use any free ports. It has three fixed ones, and a cluster that the user starts later would lack them
    and take no jobs. Its raylet gives up after 30 s without its agents, so nothing else is started beside them."""
    from ray._private import parameter

    ours = {"dashboard_agent_listen_port": 0, "include_log_monitor": False}

    class AnyFree(parameter.RayParams):  # type: ignore[misc]
        def __init__(self, **said: Any) -> None:
            super().__init__(**said | ours)

    os.environ |= {"AUTOSCALER_METRIC_PORT": "0", "DASHBOARD_METRIC_PORT": "0"}
    usual, parameter.RayParams = parameter.RayParams, AnyFree
    try:
        yield
    finally:
        parameter.RayParams = usual


def _on_loopback(wanted: bool) -> None:
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = not wanted  # here, where it has been imported
    if wanted:
        os.environ[_ON_LOOPBACK] = "0"  # and in the processes that are started
    else:
        os.environ.pop(_ON_LOOPBACK, None)


def _outside_of_the_working_folder() -> None:
    """Takes a job's working folder out of our workers' environment: it would come first on their path. What they need
    is installed, or has a full path."""
    said = os.environ.get(JOB_CONFIG)
    if not said:
        return
    try:
        job = json.loads(said)
        runtime_env = job.get("runtime_env") or {}
        runtime_env.pop("working_dir", None)
    except (ValueError, AttributeError):
        raise StartError(JOB_CONFIG, "is no job's configuration", "unset it: `ray job submit` sets it anew") from None
    os.environ[JOB_CONFIG] = json.dumps(job | {"runtime_env": runtime_env})
