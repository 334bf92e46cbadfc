"""What a store holds for frontends elsewhere: whoever knows the secret opens it, and nobody else."""

from __future__ import annotations

import pytest

from disagg.errors import StartError
from disagg.registry.keys import Keys
from disagg.registry.sealed import Secret

TEXT, KEYS = "0123456789abcdef" * 4, Keys("prod", "chat")
SAID = b'{"api_keys": ["a-key-of-somebody"]}'


def test_it_is_opened_by_the_same_secret_and_shows_nothing() -> None:
    one, other = Secret(TEXT, KEYS), Secret(TEXT, Keys("prod", "chat", "m"))
    sealed = one.seal(SAID)
    assert other.opened(sealed) == SAID
    assert one.plane == other.plane
    assert b"a-key" not in sealed
    assert one.seal(SAID) != sealed, "equal texts are not seen to be equal"


@pytest.mark.parametrize(
    "other", [Secret(TEXT[::-1], KEYS), Secret(TEXT, Keys("test", "chat")), Secret(TEXT, Keys("prod", "chat2"))]
)
def test_another_secret_and_another_deployment_do_not_open_it(other: Secret) -> None:
    one = Secret(TEXT, KEYS)
    with pytest.raises(StartError, match="of deployment"):
        other.opened(one.seal(SAID))
    assert other.plane != one.plane


@pytest.mark.parametrize("at", [0, 12, -1])
def test_what_was_altered_is_not_opened(at: int) -> None:
    sealed = bytearray(Secret(TEXT, KEYS).seal(SAID))
    sealed[at] ^= 1
    for altered in bytes(sealed), b"", bytes(sealed[:5]):
        with pytest.raises(StartError, match="is not the security"):
            Secret(TEXT, KEYS).opened(altered)
