"""What a probe finds out on its node; nvidia-smi is played by a script that says what it said on 2 H100s."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from disagg.cluster.node_inspect import inspect_node
from disagg.planning.cluster_shape import UNLIMITED

# nvidia-smi 580.159.04 on two NVIDIA H100 80GB HBM3 of one host; shortened.
H100 = "NVIDIA H100 80GB HBM3, 81559, 9.0, 580.159.04"
LINKS = "\n".join(f"\t Link {number}: 26.562 GB/s" for number in range(18))
FABRIC = """    Fabric
        State                                          : Completed
        Status                                         : Success
        CliqueId                                       : 7
        ClusterUUID                                    : %s
"""
NO_CLUSTER = "00000000-0000-0000-0000-000000000000"


def play_smi(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *gpus: str, links: str = LINKS, uuid: str = NO_CLUSTER
) -> None:
    status = "\n".join(f"GPU {index}: {gpu}\n{links}" for index, gpu in enumerate(gpus))
    for name, text in (("query", "\n".join(gpus)), ("nvlink", status), ("details", FABRIC % uuid)):
        (folder / name).write_text(text + "\n")
    script = folder / "nvidia-smi"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in\n  nvlink) cat {folder}/nvlink ;;\n  -q) cat {folder}/details ;;\n'
        f"  *) cat {folder}/query ;;\nesac\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_two_h100_joined_by_nvlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_smi(tmp_path, monkeypatch, H100, H100)
    node = inspect_node("a", 32, 2)
    assert node.shape.gpu is not None
    assert (node.shape.gpu.name, node.shape.gpu.memory_mib, node.shape.gpu.nvlink_gbyte_s) == ("h100-80g", 81559, 478.1)
    assert (node.capability, node.driver, node.shape.nvlink) == (9.0, "580.159.04", "node:a")


def test_a_rack_of_gpus_is_one_nvlink_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    play_smi(tmp_path, monkeypatch, "NVIDIA GB200, 189471, 10.0, 580.1", uuid=uuid)
    assert inspect_node("a", 32, 1).shape.nvlink == inspect_node("b", 32, 1).shape.nvlink == f"rack:{uuid}-7"


def test_gpus_of_two_kinds_are_told_as_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "NVIDIA GeForce RTX 3060, 12288, 8.6, 580.1"
    play_smi(tmp_path, monkeypatch, H100, other, links="")
    node = inspect_node("a", 32, 2)
    assert node.shape.gpu is not None
    assert (node.shape.gpu.name, node.shape.gpu.memory_mib) == ("h100-80g and NVIDIA GeForce RTX 3060", 12288)
    assert (node.capability, node.shape.nvlink) == (8.6, "")


def test_what_nvidia_smi_cannot_tell_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play_smi(tmp_path, monkeypatch, "NVIDIA GB10, [N/A], 12.1, 580.1", links="")
    assert (inspect_node("a", 32, 1).shape.gpu, inspect_node("a", 32, 1).capability) == (None, 12.1)
    play_smi(tmp_path, monkeypatch, "NVIDIA H100 80GB HBM3, 81559, [N/A], 580.1", links="")
    node = inspect_node("a", 32, 1)
    assert node.shape.gpu is not None
    assert (node.shape.gpu.name, node.capability) == ("h100-80g", None)


def test_a_port_that_another_address_has_is_free_on_ours() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert inspect_node("here", 2, 0, listeners=(("127.0.0.1", port),)).busy_ports == ()
        assert inspect_node("here", 2, 0, listeners=(("0.0.0.0", port),)).busy_ports == (port,)


@pytest.mark.parametrize(("capabilities", "lockable"), [("0000000000004000", UNLIMITED), ("00000000a80425fb", 65536)])
def test_a_process_with_ipc_lock_is_not_held_to_the_limit(
    capabilities: str, lockable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status").write_text(f"Name:\tlook\nCapEff:\t{capabilities}\n")
    monkeypatch.setattr("disagg.cluster.node_inspect.OWN_STATUS", tmp_path / "status")
    monkeypatch.setattr("resource.getrlimit", lambda _: (65536, 65536))
    assert inspect_node("a", 2, 0).shape.memlock_bytes == lockable


def test_this_machine_without_a_gpu() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = inspect_node("here", 2, 0, listeners=(("127.0.0.1", port),))
    assert (node.shape.gpu, node.capability, node.busy_ports, node.files) == (None, None, (port,), None)
    assert node.shape.memory_bytes
    assert node.shape.shm_bytes
    assert node.shape.memlock_bytes is not None
    assert node.shape.memlock_bytes <= UNLIMITED
    assert node.has_rdma is not None  # a probe knows
