"""How to come in at etcd. It travels to frontends on their standard input alone: it holds a password and a key."""

from __future__ import annotations

import os

import msgspec

# Read when gRPC is imported. Else its threads begin anew in a child between fork and exec; now and then they end it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


class Access(msgspec.Struct, frozen=True):
    """Of TLS the contents of PEM files; `ca` empty: the system's authorities."""

    tls: bool = False
    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    server_name: str = ""  # in the members' certificate, where it is not the endpoint's
    user: str = ""
    password: str = ""
