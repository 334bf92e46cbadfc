"""Whether a request comes from a program on this machine: no other machine, no proxy, no web page.

Way:   keys -> [why_not_here] -> an operator's action, or a 403 that says why not
In:    the peer's address, and what browsers and proxies say of themselves in a head
Fails: never

A page in a browser on this machine reaches loopback, too. Its Origin shows it, or the Host it asked for, if a name was
made to point here (DNS rebinding). A proxy that adds no header looks like a program: behind one, set
security.admin_keys.
"""

from __future__ import annotations

import socket
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

from disagg.frontend.exchange import Exchange

FORWARDED = frozenset(
    b"forwarded via x-real-ip x-client-ip x-cluster-client-ip true-client-ip cf-connecting-ip fly-client-ip "
    b"x-envoy-external-address x-original-host x-original-url".split()
)
FORWARDED_PREFIX = b"x-forwarded"
OWN_FETCHES = (b"same-origin", b"none")  # of Sec-Fetch-Site: a page of ours, or typed by the user
OR_ADMIN = "set security.admin_keys and send one of them"


def why_not_here(exchange: Exchange) -> str | None:
    if not is_loopback(exchange.call.client):
        return f"this is for the frontend's own machine only; from elsewhere, {OR_ADMIN}"
    name = next(
        (name for name, _ in exchange.request_headers if name in FORWARDED or name.startswith(FORWARDED_PREFIX)), None
    )
    if name is not None:
        return f"this came through a proxy (header '{name.decode('latin-1')}'); behind one, {OR_ADMIN}"
    if exchange.call.head.minor == 0:
        return f"this came through a proxy (HTTP/1.0); behind one, {OR_ADMIN}"
    host = exchange.request_header(b"host")
    if host is not None and not _is_own_name(host_of(host.decode("latin-1"))):
        return "this was sent to a name that is not this machine's; use localhost, or an address"
    return why_not_a_program(exchange)


def why_not_a_program(exchange: Exchange) -> str | None:
    """Why the request is a web page's, of another origin: a browser sends it without its user's will, whatever its
    key."""
    origin = exchange.request_header(b"origin")
    if origin is not None and not _is_same(origin, exchange):
        return "this came from a web page of another origin; operators use `disagg`"
    site = exchange.request_header(b"sec-fetch-site")
    if site is not None and site not in OWN_FETCHES:
        return "this came from a web page of another site; operators use `disagg`"
    return None


def is_loopback(host: str | None) -> bool:
    """Of a peer's address, also one of IPv4 that came in through an IPv6 socket."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def host_of(authority: str) -> str:
    """Without its port, in lower case; IPv6 without its brackets. Empty when it is no authority."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _is_own_name(host: str) -> bool:
    """Addresses cannot be made to point elsewhere; names can, but for those that are ours."""
    if host == "localhost" or host.endswith(".localhost") or host == socket.gethostname().lower():
        return True
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_same(origin: bytes, exchange: Exchange) -> bool:
    host, scheme = exchange.request_header(b"host"), b"https://" if exchange.call.is_tls else b"http://"
    return host is not None and origin.lower() == scheme + host.lower()
