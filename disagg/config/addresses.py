"""Addresses and origins as they are written in a configuration.

Way:   schema, preflight, serve -> [is_loopback_host, checked_origin] -> what they mean
Fails: ValueError with "what is wrong; what would do"
"""

from __future__ import annotations

import re
from ipaddress import ip_address

ANY_ORIGIN, NO_ORIGIN = "*", "null"  # a page without an origin (a file, a sandboxed frame) says null
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def is_loopback_host(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def checked_origin(origin: str) -> str:
    """Returns the origin, or raises ValueError: browsers compare letter for letter, so one slash too many never
    fits."""
    if origin in (ANY_ORIGIN, NO_ORIGIN) or _ORIGIN.fullmatch(origin):
        return origin
    found = re.match(_ORIGIN.pattern, origin.lower())
    would_do = f"say {found[0]}" if found else "say it as in https://chat.example.org, with a port unless it is usual"
    raise ValueError(f"{origin!r} is no origin (scheme, host and port in lower case, and nothing after); {would_do}")
