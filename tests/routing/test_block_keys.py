"""Block keys: equal for equal prefixes of one namespace of one deployment, and for nothing else."""

from __future__ import annotations

from array import array

import pytest
from xxhash import xxh3_64_intdigest

from disagg.kv_events.blocks import BlockHasher

IDS = list(range(1000, 1000 + 64 * 5 + 63))
OCTETS = array("I", IDS).tobytes()
HASHER = BlockHasher(b"a secret", 64)


def test_each_full_block_has_a_key_that_chains_to_the_one_before() -> None:
    path = HASHER.path(IDS)
    assert path.typecode == "Q"
    assert len(path) == 5
    assert path[0] == xxh3_64_intdigest(array("I", IDS[:64]).tobytes(), HASHER.root())
    assert path[1] == xxh3_64_intdigest(array("I", IDS[64:128]).tobytes(), path[0])


def test_equal_prefixes_have_equal_keys_up_to_where_they_part() -> None:
    other = [*IDS[:130], 5, *IDS[131:]]
    path, parted = HASHER.path(IDS), HASHER.path(other)
    assert path[:2] == parted[:2]
    assert not set(path[2:]) & set(parted[2:])


@pytest.mark.parametrize("ids", [OCTETS, bytearray(OCTETS), memoryview(OCTETS), tuple(IDS), array("q", IDS)])
def test_ids_may_come_as_numbers_or_as_their_bytes(ids: bytes) -> None:
    assert HASHER.path(ids) == HASHER.path(IDS)


def test_a_path_grows_by_the_keys_of_what_follows() -> None:
    path = HASHER.path(IDS[:128], "french", "salt")
    path.extend(HASHER.after(path[-1], IDS[128:]))
    assert path == HASHER.path(IDS, "french", "salt")


def test_adapters_salts_secrets_and_block_sizes_have_no_key_in_common() -> None:
    paths = [HASHER.path(IDS, adapter, salt) for adapter, salt in
             [("", ""), ("a", ""), ("", "a"), ("a", "b"), ("ab", ""), ("", "ab"), ("1 ", ""), ("", "1 ")]]  # fmt: skip
    paths += [BlockHasher(b"another", 64).path(IDS), BlockHasher(b"a secret", 32).path(IDS)]
    keys = [key for path in paths for key in path]
    assert len(set(keys)) == len(keys)


def test_half_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="258 bytes"):
        HASHER.path(b"\0" * 258)
    with pytest.raises(ValueError, match="block_tokens is 0"):
        BlockHasher(b"", 0)


def test_an_id_beyond_32_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        HASHER.path([1 << 32] * 64)
