"""`disagg status`, `logs`, `drain` and `cancel` against a frontend with keys: the key is that of DISAGG_API_KEY."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from scripted import ScriptedBackend, ask, exchange, hangs, serving, until
from typer.testing import CliRunner, Result

from disagg.cli.app import app
from disagg.errors import StartError
from disagg.frontend.keys import Keys
from disagg.tokenizer.codec import Codec

KEY, ADMIN = "first-key-0123456789", "admin-key-0123456789"
KEYS = Keys([KEY], [ADMIN])
Run = Callable[..., Awaitable[Result]]

ENGINE = {"id": "prefill-0", "role": "prefill", "incarnation": 1, "state": "ready", "detail": ""}


class _Backend(ScriptedBackend):
    def status(self, owner: bytes | None) -> dict[str, object]:
        return {**super().status(owner), "engines": [ENGINE, ENGINE | {"id": "prefill-1"}]}


@pytest.fixture
def disagg(monkeypatch: pytest.MonkeyPatch) -> Run:
    async def run(port: int, key: str | None, *words: str) -> Result:
        monkeypatch.setenv("DISAGG_URL", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("DISAGG_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("DISAGG_API_KEY", key)
        return await asyncio.to_thread(CliRunner().invoke, app, list(words))

    return run


async def test_an_admin_key_is_enough_for_all_of_them(codec: Codec, disagg: Run) -> None:
    backend = _Backend(hangs("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        request = ask().replace(b"host: localhost", f"host: localhost\r\nauthorization: Bearer {KEY}".encode())
        task = asyncio.create_task(exchange(frontend.port, request))
        await until(lambda: bool(backend.requests))
        request_id = backend.requests[0].id
        for words, said in (
            (("status", "--json"), request_id),
            (("status", "--request", request_id, "--json"), request_id),
            (("logs", "prefill-0"), "prefill-0 200"),
            (("drain", "prefill-0"), "prefill-0 drains"),
            (("cancel", request_id), "is cancelled"),
        ):
            result = await disagg(frontend.port, f" {ADMIN}\n", *words)  # as it comes out of a file
            assert (words, result.exit_code) == (words, 0), result.exception
            assert said in result.output
        task.cancel()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, r"security\.admin_keys.*put the key into DISAGG_API_KEY"),
        (KEY, r"this is one of security\.api_keys; the key here is that of \$DISAGG_API_KEY"),
        ("wrong-key-0123456789", r"no valid admin key.*the key here is that of \$DISAGG_API_KEY"),
        ("schlüssel-0123456789", r"\$DISAGG_API_KEY: is no key"),
    ],
)
async def test_the_error_says_which_key_and_where_it_goes(codec: Codec, disagg: Run, key: str, said: str) -> None:
    async with serving(_Backend(hangs("Hi")), codec, keys=KEYS) as frontend:
        for words in (("status",), ("logs", "prefill-0"), ("drain", "prefill-0")):
            result = await disagg(frontend.port, key, *words)
            with pytest.raises(StartError, match=said):
                raise result.exception or AssertionError(result.output)


async def test_names_with_signs_in_them_stay_names(codec: Codec, disagg: Run) -> None:
    async with serving(_Backend(hangs("Hi")), codec) as frontend:
        for name in ("a/../b", "a?lines=1", "é b", "#"):
            result = await disagg(frontend.port, None, "logs", name)
            assert f"there is no engine '{name}' here" in str(result.exception)
