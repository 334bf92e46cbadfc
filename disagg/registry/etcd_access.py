"""How to come in at etcd. It travels to frontends on their standard input alone: it holds a password and a key."""

from __future__ import annotations

import msgspec


class Access(msgspec.Struct, frozen=True):
    """Of TLS the contents of PEM files; `ca` empty: the system's authorities."""

    tls: bool = False
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    server_name: str = ""  # in the members' certificate, where it is not the endpoint's
    user: str = ""
    password: str = ""
