"""An engine's record says where it is: what Ray gave it, what its node's GPUs say, and what an operator says."""

from __future__ import annotations

import dataclasses

import pytest
from scene import SETTING, scene

from disagg.cluster.node_labels import labels_of
from disagg.config.schema import NodeLabels
from disagg.planning.cluster_shape import NodeShape
from disagg.preflight.node_facts import NodeFacts
from disagg.roles import Role

pytestmark = pytest.mark.usefixtures("quick")


def node(name: str, address: str, nvlink: str = "") -> NodeFacts:
    return NodeFacts(NodeShape(name, 8.0, address=address, nvlink=nvlink))


NODES = [node("one", "10.0.0.1", "rack:ab-0"), node("two", "10.0.0.2", "node:two"), node("three", "10.0.0.3")]


def test_labels_are_by_address_and_what_is_said_counts_before_what_was_found() -> None:
    said = {
        "one": NodeLabels(rack="r1"),
        "10.0.0.2": NodeLabels(nvlink="n", rail="l", rack="r1"),
        "gone": NodeLabels(rack="r2"),
    }
    labels, unknown = labels_of(NODES, said)
    assert labels == {
        "10.0.0.1": {"nvlink": "rack:ab-0", "rack": "r1"},
        "10.0.0.2": {"nvlink": "n", "rail": "l", "rack": "r1"},
        "10.0.0.3": {},
    }
    assert unknown == ["transfer.places.gone: the cluster has no such node; its labels do nothing"]
    assert labels_of(NODES, {"one": NodeLabels(nvlink="mine")})[0]["10.0.0.1"] == {"nvlink": "mine"}


async def test_a_record_has_its_place_once_the_engine_is_up() -> None:
    setting = dataclasses.replace(SETTING, labels={"127.0.0.1": {"rack": "r1"}})
    async with scene(Role.PREFILL, Role.DECODE, setting=setting) as s:
        assert s.record("decode-0").place == {"rack": "r1", "node": "127.0.0.1"}
