"""What a command line names: a file, or one that ships; a name that cannot be one is told, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg.config.shipped import find_cluster, find_config
from disagg.errors import ConfigError


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a" * 5000, "a\0b", "no/such/file"])
def test_a_name_that_no_file_can_have_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        find_config(name)


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a" * 5000])
def test_a_cluster_that_no_file_can_be_is_left_to_the_reader_to_tell(name: str) -> None:
    assert find_cluster(name) == Path(name)
