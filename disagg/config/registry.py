"""The registry's part of the YAML as types: where it is written who is alive.

Way:   Deployment -> [RegistrySection] -> Publisher, FrontendSpec; `disagg list`
Fails: pydantic's ValidationError, as in schema.py; ConfigError from `at` where a PEM file cannot be read
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from disagg.config.section import Section, listed
from disagg.errors import Problem
from disagg.registry.etcd_access import Access
from disagg.registry.shared import EtcdAt, FileAt, StoreAt


def _an_endpoint(text: str) -> str:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(\d{1,5})", text)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError("is no host:port; say for instance etcd-0.example:2379, and TLS with registry.tls")
    return text


Endpoint = Annotated[str, AfterValidator(_an_endpoint)]
Endpoints = Annotated[tuple[Endpoint, ...], BeforeValidator(listed, json_schema_input_type=list[str])]
OF_KIND = {"path": "file", "endpoints": "etcd", "tls": "etcd", "user": "etcd", "password": "etcd"}


class EtcdTls(Section):
    """Files are read on the node of `disagg serve`; frontends get their contents."""

    ca: str = ""
    """A PEM file with the authorities that etcd's certificate may be of; default: the system's."""
    cert: str = ""
    """A PEM file with our own certificate, where etcd asks for one (--client-cert-auth)."""
    key: str = ""
    """A PEM file with its key."""
    server_name: str = ""
    """The name in etcd's certificate, where it is not that of the endpoint."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if bool(self.cert) is not bool(self.key):
            raise ValueError("has one of cert and key; say both, or neither")
        return self


class RegistrySection(Section):
    """Where it is written who is alive, for frontends and `disagg list`."""

    kind: Literal["memory", "file", "etcd"] = "memory"
    """memory: in the deployment's own process. file: in a folder of this host, or one that hosts share. etcd: in an
    etcd v3."""
    path: str | None = None
    """file: the folder."""
    endpoints: Endpoints = ()
    """etcd: host:port of its members; those not named are not used."""
    tls: EtcdTls | None = None
    """etcd: `{}` asks for TLS with the system's authorities; absent: without TLS."""
    user: str | None = None
    """etcd: a user who may read and write keys that begin with disagg/."""
    password: SecretStr | None = None
    """etcd: of that user. From the environment: "${env:NAME}"."""
    lease_s: Annotated[float, Field(ge=3, le=3600)] = 10.0
    """Seconds after which keys of a deployment that was killed are gone."""

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        for name, kind in OF_KIND.items():
            if getattr(self, name) and self.kind != kind:
                raise ValueError(f"{name} is of kind {kind}, and this is kind {self.kind}; say kind: {kind}")
        if self.kind == "file" and not (self.path and Path(self.path).expanduser().is_absolute()):
            raise ValueError("kind file needs its folder, from '/' or '~' on; say path: /shared/disagg-registry")
        if self.kind == "etcd" and not self.endpoints:
            raise ValueError("kind etcd needs its members; say endpoints: [127.0.0.1:2379]")
        if (self.user is None) is not (self.password is None):
            raise ValueError("has one of user and password; say both, or neither")
        return self

    def problems(self) -> list[Problem]:
        """What of its files cannot be read here."""
        found = []
        for name, file in self._pem_files().items():
            try:
                Path(file).read_bytes()
            except OSError as error:
                found.append(Problem(f"registry.tls.{name}", f"{file} cannot be read: {error.strerror}"))
        return found

    def at(self) -> StoreAt | None:
        """None: it is in memory. Raises OSError."""
        if self.kind == "file":
            assert self.path is not None
            return FileAt(str(Path(self.path).expanduser()))
        if self.kind == "memory":
            return None
        pem = {name: Path(file).read_bytes() for name, file in self._pem_files().items()}
        access = Access(
            tls=self.tls is not None,
            ca=pem.get("ca", b""),
            certificate=pem.get("cert", b""),
            key=pem.get("key", b""),
            server_name=self.tls.server_name if self.tls else "",
            user=self.user or "",
            password=self.password.get_secret_value() if self.password else "",
        )
        return EtcdAt(self.endpoints, access)

    def _pem_files(self) -> dict[str, str]:
        named = {name: getattr(self.tls, name) for name in ("ca", "cert", "key")} if self.tls else {}
        return {name: file for name, file in named.items() if file}
