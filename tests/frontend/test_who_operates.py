"""Without admin keys whoever is on this machine operates it: not a web page in his browser, not a proxy's client."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from scripted import ScriptedBackend, ask, exchange, hangs, http_request, says, serving, until

from disagg.frontend.exchange import Exchange
from disagg.frontend.here import host_of, is_loopback, why_not_here
from disagg.frontend.keys import Keys, Right
from disagg.tokenizer.codec import Codec

KEY, ADMIN = "first-key-0123456789", "admin-key-0123456789"
DRAIN = "/disagg/engines/prefill-0/drain"

BY_PAGES = [
    "origin: http://evil.example",
    "origin: null",
    "origin: https://localhost",  # the host is ours, the scheme is not: another origin
    "origin: http://localhost:1",
    "sec-fetch-site: cross-site",
    "sec-fetch-site: same-site",
]
BY_PROXIES = [
    "x-forwarded-for: 203.0.113.7",
    "X-Forwarded-For: 127.0.0.1",
    "x-forwarded-proto: https",
    "x-forwarded-host: localhost",
    "forwarded: for=203.0.113.7",
    "via: 1.1 proxy",
    "x-real-ip: 203.0.113.7",
    "cf-connecting-ip: 203.0.113.7",
    "true-client-ip: 203.0.113.7",
]
FOREIGN_HOSTS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io"]
OWN_HOSTS = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7", socket.gethostname()]


def drain(*headers: str, host: str = "localhost", version: str = "1.1") -> bytes:
    lines = [f"POST {DRAIN} HTTP/{version}", f"host: {host}", "content-length: 0", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("header", BY_PAGES + BY_PROXIES)
async def test_what_a_page_or_a_proxy_sends_drains_nothing(codec: Codec, header: str) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, drain(header))
        assert (answer.status, answer.json["error"]["code"]) == (403, "forbidden")
        logs = await exchange(frontend.port, http_request("GET", "/disagg/logs/prefill-0", headers=[header]))
        assert logs.status == 403
    assert backend.drained == []


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_nor_what_was_sent_to_a_name_that_only_points_here(codec: Codec, host: str) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, drain(f"origin: http://{host}", host=host))
        assert answer.status == (403 if host else 400)  # no host at all is no HTTP
    assert backend.drained == []


@pytest.mark.parametrize("sent", [*BY_PAGES, *(f"host: {host}" for host in FOREIGN_HOSTS)])
async def test_nor_anything_else_that_is_for_operators(codec: Codec, sent: str) -> None:
    """Whatever routes there are: by a page, and by a page whose name was made to point here (DNS rebinding)."""
    name, _, value = sent.partition(": ")
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        routes = {path: route for path, route in frontend._routes.all.items() if route.right is Right.OPERATE}
        assert len(routes) > 6
        for path, route in routes.items():
            for method in route.methods:
                lines = [f"{method} {path}{'x' * path.endswith('/')} HTTP/1.1", "content-length: 0", sent]
                lines += [f"origin: http://{value}"] if name == "host" else ["host: localhost"]
                answer = await exchange(frontend.port, "\r\n".join([*lines, "", ""]).encode())
                assert (path, method, answer.status) == (path, method, 403)


async def test_nor_http_1_0_which_proxies_speak_by_default(codec: Codec) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        assert (await exchange(frontend.port, drain(version="1.0"))).status == 403
    assert backend.drained == []


@pytest.mark.parametrize("host", OWN_HOSTS)
async def test_a_program_here_drains(codec: Codec, host: str) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        assert (await exchange(frontend.port, drain(host=host))).status == 200
        own_page = drain(f"origin: http://{host}", "sec-fetch-site: same-origin", host=host)
        assert (await exchange(frontend.port, own_page)).status == 200
    assert len(backend.drained) == 2


@pytest.mark.parametrize("header", BY_PAGES)
async def test_not_even_with_an_admin_key_a_page_of_another_origin(codec: Codec, header: str) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=Keys([], [ADMIN])) as frontend:
        assert (await exchange(frontend.port, drain(header, f"authorization: Bearer {ADMIN}"))).status == 403


@pytest.mark.parametrize("header", BY_PROXIES)
async def test_with_an_admin_key_through_a_proxy(codec: Codec, header: str) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=Keys([], [ADMIN])) as frontend:
        asked = drain(header, f"authorization: Bearer {ADMIN}", host="llm.example")
        assert (await exchange(frontend.port, asked)).status == 200


async def test_a_clients_key_drains_from_here_alone(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=Keys([KEY])) as frontend:
        key = f"authorization: Bearer {KEY}"
        assert (await exchange(frontend.port, drain(key))).status == 200
        assert (await exchange(frontend.port, drain(key, "x-forwarded-for: 203.0.113.7"))).status == 403


async def test_only_who_is_here_is_told_the_ids_of_requests(codec: Codec) -> None:
    backend = ScriptedBackend(hangs("Hi"))
    async with serving(backend, codec) as frontend:
        task = asyncio.create_task(exchange(frontend.port, ask()))
        await until(lambda: bool(backend.requests))
        here = await exchange(frontend.port, http_request("GET", "/disagg/status"))
        assert here.json["live"] == [backend.requests[0].id]
        for header in (BY_PAGES[0], BY_PROXIES[0]):
            elsewhere = await exchange(frontend.port, http_request("GET", "/disagg/status", headers=[header]))
            assert (elsewhere.status, elsewhere.json["live"]) == (200, [])
        task.cancel()


@pytest.mark.parametrize(
    ("client", "is_here"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.0.1", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),  # by IPv4 to a socket that takes both
        (("::ffff:10.0.0.1", 1), False),
        (("10.0.0.1", 1), False),
        (("fe80::1%eth0", 1), False),
        (("", 1), False),
        (None, False),
    ],
)
def test_where_a_peer_is(client: Any, is_here: bool) -> None:
    call = SimpleNamespace(
        head=SimpleNamespace(method="POST", path=DRAIN, fields=[], minor=1),
        client=client and client[0],
        chunk_writer=None,
    )
    assert (why_not_here(Exchange(call)) is None) == is_here  # type: ignore[arg-type]
    assert is_loopback(client and client[0]) == is_here


@pytest.mark.parametrize(
    ("authority", "host"),
    [("a:1", "a"), ("A", "a"), ("[::1]:1", "::1"), ("u@a:1", "a"), ("", ""), ("[", ""), ("a:x", "a")],
)
def test_the_host_of_an_authority(authority: str, host: str) -> None:
    assert host_of(authority) == host
