"""TLS of a frontend's port, with files that are renewed under it.

Way:   TlsSpec -> [Tls.context] -> the server's listening socket; the server's clock -> [Tls.look]
Owns:  the context of new connections; those that are open keep theirs
Fails: StartError for files that cannot be used at the start. Later the old ones stay in use, and the log says so
"""

from __future__ import annotations

import logging
import ssl
from typing import Any

import msgspec

from disagg.config.tls import BadFiles, check_time, server_context
from disagg.errors import StartError
from disagg.frontend.file_stamps import stamps

log = logging.getLogger(__name__)

LOOK_S = 5.0
HANDSHAKE_S = 10.0  # a client that takes longer is dropped; until then it is no connection that is counted


class TlsSpec(msgspec.Struct, frozen=True):
    """Paths of PEM files."""

    cert: str
    key: str
    client_ca: str = ""


class Tls:
    """Raises StartError."""

    def __init__(self, spec: TlsSpec) -> None:
        self._spec, self._seen = spec, self._stamps(spec)
        self._looked_at_s = float("-inf")
        try:
            self.context = self._newest = self._made()
        except BadFiles as error:
            raise StartError(error.path, error.what, error.would_do) from None
        # Asked at each handshake, with a name or without: a context cannot lose an authority, but it can be replaced.
        self.context.sni_callback = self._choose

    def look(self, now_s: float) -> None:
        """Takes up files that have changed, every LOOK_S at most."""
        if now_s < self._looked_at_s + LOOK_S:
            return
        self._looked_at_s = now_s
        stamps = self._stamps(self._spec)
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._newest = self._made()
        except BadFiles as error:
            log.error("TLS goes on with the files as they were: %s", error)
            return
        log.info("TLS uses the new files of %s", self._spec.cert)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def _made(self) -> ssl.SSLContext:
        """One that has expired is used nevertheless: the preflight has refused it, and clients judge by themselves."""
        made = server_context(self._spec.cert, self._spec.key, self._spec.client_ca)
        try:
            check_time(self._spec.cert)
        except BadFiles as error:
            log.error("%s", error)
        return made

    @staticmethod
    def _stamps(spec: TlsSpec) -> list[Any]:
        return stamps(filter(None, (spec.cert, spec.key, spec.client_ca)))
