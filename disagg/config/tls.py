"""TLS of the HTTP endpoint: the files that the YAML names, and what they make.

Way:   Deployment.frontend.tls -> [TlsSection.problems] -> preflight; -> [server_context] -> frontend/tls.py
Fails: problems, and BadFiles, name the key of the YAML, the file, and what is wrong with it
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from disagg.config.section import Section

PROTOCOLS = ["http/1.1"]
READABLE = "name a file that `disagg serve` may read"
CERT, KEY, CLIENT_CA = "frontend.tls.cert", "frontend.tls.key", "frontend.tls.client_ca"
_SEQUENCE, _VERSION = 0x30, 0xA0  # tags of DER
_UTC_TIME = 0x17


class TlsSection(Section):
    """PEM files, on the node of `disagg serve`. They are read again when they change."""

    cert: Annotated[str, Field(min_length=1)]
    """The certificate, and those between it and its authority."""
    key: Annotated[str, Field(min_length=1)]
    """Its private key, without a password."""
    client_ca: str = ""
    """Authorities: clients need a certificate of theirs. Default: any client may come."""


class BadFiles(Exception):
    """`path`: the key of the YAML."""

    def __init__(self, path: str, what: str, would_do: str) -> None:
        super().__init__(path, what, would_do)
        self.path, self.what, self.would_do = path, what, would_do

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.would_do}"


def server_context(cert: str, key: str, client_ca: str = "") -> ssl.SSLContext:
    """Raises BadFiles."""
    for path, file in ((CERT, cert), (KEY, key), *([(CLIENT_CA, client_ca)] if client_ca else [])):
        try:
            text = Path(file).expanduser().read_bytes()
        except OSError as error:
            raise BadFiles(path, f"{file} cannot be read: {error.strerror}", READABLE) from None
        if b"-----BEGIN " not in text:
            raise BadFiles(path, f"{file} is no PEM file", "convert it: openssl x509 -inform der, or openssl pkcs12")
    cert, key = os.path.expanduser(cert), os.path.expanduser(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(PROTOCOLS)
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadFiles(KEY, f"{key} is not the key of {cert}", "name the key that it was made with") from None
        raise BadFiles(CERT, f"{cert} and {key} cannot be used: {error.reason or error}", "make them anew") from None
    except OSError as error:  # gone, or closed to us, since it was read above: a renewal that is half done
        raise BadFiles(CERT, f"{cert} and {key} cannot be read: {error.strerror}", READABLE) from None
    except _Encrypted:
        raise BadFiles(KEY, f"{key} has a password", "take it off: openssl pkey -in FILE -out FILE") from None
    if client_ca:
        try:
            context.load_verify_locations(os.path.expanduser(client_ca))
        except ssl.SSLError as error:
            what = f"{client_ca} cannot be used: {error.reason or error}"
            raise BadFiles(CLIENT_CA, what, "name certificates of authorities") from None
        except OSError as error:
            raise BadFiles(CLIENT_CA, f"{client_ca} cannot be read: {error.strerror}", READABLE) from None
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0  # who comes again shows his certificate again
        context.options |= ssl.OP_NO_TICKET
    return context


def problems(cert: str, key: str, client_ca: str = "") -> Iterator[BadFiles]:
    try:
        server_context(cert, key, client_ca)
        check_time(cert)
    except BadFiles as error:
        yield error


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted


def check_time(cert: str, now_s: float | None = None) -> None:
    """Raises BadFiles for a certificate that is not valid now."""
    now_s = time.time() if now_s is None else now_s
    try:
        begins_s, ends_s = valid_between(Path(cert).expanduser().read_text(encoding="latin-1"))
    except (ValueError, IndexError, OSError):
        return  # OpenSSL has taken it, and it may be gone since
    if now_s > ends_s:
        raise BadFiles(CERT, f"{cert} has expired: {_date(ends_s)}", "renew it")
    if now_s < begins_s:
        raise BadFiles(CERT, f"{cert} is not valid before {_date(begins_s)}", "set this machine's clock, or wait")


def valid_between(pem: str) -> tuple[float, float]:
    """Of the first certificate, in seconds since the epoch. Python's ssl reads no file's dates. Raises ValueError."""
    begin = pem.index("-----BEGIN CERTIFICATE-----")
    end = pem.index("-----END CERTIFICATE-----", begin)
    der = ssl.PEM_cert_to_DER_cert(pem[begin:end] + "-----END CERTIFICATE-----\n")
    _, certificate, _ = _value(der)
    _, rest, _ = _value(certificate)  # what is signed
    tag, _, after = _value(rest)
    if tag == _VERSION:
        rest = after
    for _ in ("serial number", "signature", "issuer"):
        _, _, rest = _value(rest)
    tag, validity, _ = _value(rest)
    if tag != _SEQUENCE:
        raise ValueError("no certificate")
    begins_tag, begins, rest = _value(validity)
    ends_tag, ends, _ = _value(rest)
    return _seconds(begins_tag, begins), _seconds(ends_tag, ends)


def _value(der: bytes) -> tuple[int, bytes, bytes]:
    """(tag, value, what follows)."""
    size, at = der[1], 2
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(der[2:at], "big")
    return der[0], der[at : at + size], der[at + size :]


def _seconds(tag: int, said: bytes) -> float:
    text = said.decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _date(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")
