"""Our connection to Ray: a cluster that runs already, or a private one that ends with us.

In:    `ray.address` of the YAML; out: a connected driver
Owns:  the private cluster's temp folder (removed by us, or by the janitor if we are killed)
Fails: StartError when the cluster is not there or does not let us in
"""

from __future__ import annotations

import logging
import os
import tempfile

import ray

from disagg.engine.spec import DEPLOYMENT_VARIABLE
from disagg.errors import StartError

OBJECT_STORE_BYTES = 80 << 20  # nothing but control messages passes through Ray's object store


def private_folder(address: str) -> str:
    """Where a private cluster will live; empty if a running one is used."""
    return tempfile.mkdtemp(prefix="disagg-ray-") if _is_private(address) else ""


def connect(
    address: str, folder: str, cpus: int | None, gpus: int | None, deployment: str, namespace: str = "disagg"
) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common = {
        "namespace": namespace,
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "configure_logging": False,
    }
    try:
        if folder:
            # So that the janitor knows Ray's own processes, too: they write no title over their environment.
            os.environ |= {DEPLOYMENT_VARIABLE: deployment, "SPT_NOENV": "1"}
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
                _node_ip_address="127.0.0.1",
                **common,
            )
        else:
            ray.init(address=address, **common)
    except Exception as error:  # Ray raises many kinds here (ConnectionError, RpcError, AuthenticationError, …)
        would_do = (
            "check that the cluster runs and, with token authentication, that `ray get-auth-token` shows its token"
        )
        raise StartError("ray.address", f"cannot connect to {address!r}: {error}", would_do) from error


def _is_private(address: str) -> bool:
    if address == "local":
        return True
    if address != "auto" or os.environ.get("RAY_ADDRESS"):
        return False
    from ray._private.services import find_gcs_addresses

    return not find_gcs_addresses()
