"""Torch's stores listen on the address that they are given, and work as ever."""

from __future__ import annotations

import sys

import psutil
import pytest

from disagg.cluster.ports import free_port
from disagg.sglang.plugins import loopback


@pytest.fixture
def distributed(monkeypatch: pytest.MonkeyPatch):
    import torch.distributed as distributed

    # What `activate` replaces comes back afterwards.
    monkeypatch.setattr(distributed, "TCPStore", distributed.TCPStore)
    rendezvous = sys.modules["torch.distributed.rendezvous"]
    monkeypatch.setattr(rendezvous, "TCPStore", rendezvous.TCPStore)
    monkeypatch.setenv(loopback.ONE_ADDRESS_VARIABLE, "1")
    loopback.activate()
    loopback.activate()  # in a fork, again
    return distributed


def listeners() -> dict[int, str]:
    return {
        each.laddr.port: each.laddr.ip for each in psutil.Process().net_connections("tcp") if each.status == "LISTEN"
    }


def test_the_store_of_a_group_is_on_loopback_and_its_port_is_given_back(distributed) -> None:
    port = free_port()
    rendezvous = sys.modules["torch.distributed.rendezvous"].rendezvous  # what init_process_group asks
    store, _, _ = next(rendezvous(f"tcp://127.0.0.1:{port}", rank=0, world_size=1))
    assert listeners()[port] == "127.0.0.1"
    store.set("key", "value")
    assert store.get("key") == b"value"
    again = sys.modules["torch.distributed.rendezvous"].TCPStore(
        "127.0.0.1", port, 1, is_master=True, multi_tenant=True
    )
    assert again.get("key") == b"value", "one process shares its store"
    del store, again
    assert port not in listeners()


def test_a_taken_port_is_an_error_as_ever(distributed) -> None:
    port = free_port()
    first = distributed.TCPStore("127.0.0.1", port, 1, is_master=True)
    with pytest.raises(OSError, match="Address already in use"):
        distributed.TCPStore("127.0.0.1", port, 1, is_master=True)
    assert distributed.TCPStore("127.0.0.1", port, 1, is_master=False).port == port
    del first


def test_without_its_variable_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as distributed

    before = distributed.TCPStore
    monkeypatch.delenv(loopback.ONE_ADDRESS_VARIABLE, raising=False)
    loopback.activate()
    assert distributed.TCPStore is before
