"""Every configuration that ships passes the preflight, on its described cluster where it names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from disagg.config.find import shipped_folder, shipped_names
from disagg.load import load_config
from disagg.models.facts import find_facts
from disagg.planning.cluster_shape import load_shape
from disagg.planning.plan import resolve_parts
from disagg.preflight.api import check

CLUSTER = re.compile(r"--assume-cluster configs/clusters/(\S+)")


@pytest.mark.parametrize("name", shipped_names())
def test_it_passes(name: str) -> None:
    path: Path = shipped_folder() / name
    deployment = load_config(path)
    device = "cuda" if deployment.device == "auto" else deployment.device
    named = CLUSTER.search(path.read_text())
    cluster = load_shape(shipped_folder() / "clusters" / named[1]) if named else None
    for plan in resolve_parts(deployment, device):
        facts = find_facts(plan.model.path, plan.model.revision) if device != "simulated" else None
        assert check(plan, cluster, facts) == []
