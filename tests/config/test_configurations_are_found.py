"""What a command line names: a file, or one that ships; a name that cannot be one is told, whatever it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from disagg.config.find import find_cluster, find_config, shipped_folder
from disagg.errors import ConfigError


@pytest.mark.parametrize("find", [find_config, find_cluster])
@pytest.mark.parametrize("name", ["~nosuchuser/x", "a" * 5000, "a\0b", "no/such/file", "../local-cpu.yaml", "."])
def test_a_name_that_no_file_can_have_is_told(find: Callable[[str], Path], name: str) -> None:
    with pytest.raises(ConfigError, match="is not a file; "):
        find(name)


@pytest.mark.parametrize("name", ["local-cpu", "local-cpu.yaml", "configs/local-cpu", "configs/local-cpu.yaml"])
def test_a_configuration_that_ships_is_found_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == shipped_folder() / "local-cpu.yaml"


@pytest.mark.parametrize("before", ["", "clusters/", "configs/clusters/"])
@pytest.mark.parametrize("after", ["", ".yaml"])
def test_a_described_cluster_that_ships_is_found_from_any_folder(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_cluster(f"{before}2x8-h200{after}") == shipped_folder() / "clusters" / "2x8-h200.yaml"


def test_a_file_of_ones_own_comes_before_one_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "configs" / "clusters" / "2x8-h200.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_cluster("configs/clusters/2x8-h200.yaml").samefile(own)


def test_a_cluster_with_a_slip_in_its_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 2x8-h200\.yaml\?"):
        find_cluster("configs/clusters/2x8-h20.yaml")
