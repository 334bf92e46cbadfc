"""The recipes as the tests see them: the shipped configs whose header has a `# Check:` line, each with its cluster."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from disagg.config.find import shipped_folder
from disagg.load import load_config
from disagg.planning.cluster_shape import ClusterShape, load_shape
from disagg.planning.plan import Plan, device_of, resolve

CONFIGS = shipped_folder()
PUBLISHED = Path(__file__).parent / "published"
CHECK = re.compile(
    r"^# Check: +disagg check configs/(\S+)\.yaml --assume-cluster configs/clusters/(\S+)$", re.MULTILINE
)


def _cluster_names() -> dict[str, str]:
    texts = {path.stem: path.read_text() for path in sorted(CONFIGS.glob("*.yaml"))}
    checks = {name: CHECK.search(text) for name, text in texts.items()}
    return {name: check[2] for name, check in checks.items() if check and check[1] == name}


CLUSTERS = _cluster_names()  # recipe -> its cluster's file
RECIPES = list(CLUSTERS)
WITH_PUBLISHED = [path.stem for path in sorted(PUBLISHED.glob("*.yaml"))]


def text_of(recipe: str) -> str:
    return (CONFIGS / f"{recipe}.yaml").read_text()


def cluster_of(recipe: str) -> ClusterShape:
    return cluster(CLUSTERS[recipe])


def cluster(name: str) -> ClusterShape:
    return load_shape(CONFIGS / "clusters" / name)


@cache
def plan_of(recipe: str, sets: tuple[str, ...] = ()) -> Plan:
    deployment = load_config(CONFIGS / f"{recipe}.yaml", sets)
    return resolve(deployment, device_of(deployment, 0))


def header_of(recipe: str) -> dict[str, str]:
    """`# Source:   …` and the lines that go on below it -> {"Source": "…"}; what stands before the first is ""."""
    lines = text_of(recipe).split("version:")[0].splitlines()
    said, key = {"": ""}, ""
    for line in lines:
        if started := re.match(r"# ([A-Z][A-Za-z]+): +(.*)", line):
            key = started[1]
            said[key] = started[2]
        else:
            said[key] += " " + line.lstrip("# ")
    return {name: text.strip() for name, text in said.items()}


def published(recipe: str) -> dict[str, dict[str, dict[str, Any]]]:
    tree: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load((PUBLISHED / f"{recipe}.yaml").read_text())
    return tree
