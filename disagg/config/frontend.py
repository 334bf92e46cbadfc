"""The frontend's part of the YAML as types: where it listens, which pages and which keys it serves.

Way:   Deployment -> [FrontendSection, Security] -> FrontendSpec
Fails: pydantic's ValidationError, as in schema.py
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from disagg.config.addresses import ANY_ORIGIN, checked_origin, is_loopback_host
from disagg.config.section import Section, listed
from disagg.config.tls import TlsSection

Origins = Annotated[tuple[str, ...], BeforeValidator(listed, json_schema_input_type=list[str])]


class Cors(Section):
    """Which web pages may use the endpoint from a browser. Paths for operators (/disagg) are never opened to pages."""

    origins: Origins | None = None
    """Origins of pages, as https://chat.example.org; ["*"]: any. Default: any while host is loopback and there are no
    keys, else none."""
    max_age_s: Annotated[int, Field(ge=0, le=86_400)] = 600
    """How long a browser may remember what it was allowed."""

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if origins is None else tuple(map(checked_origin, origins))


class FrontendSection(Section):
    """The OpenAI-compatible HTTP endpoint."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address it listens on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The port it listens on."""
    count: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share the port, for more requests than one core of Python takes. What follows is of each of
    them."""
    body_limit_mib: Annotated[int, Field(ge=1, le=1024)] = 8
    """Larger requests get 413."""
    connections_max: Annotated[int, Field(ge=16, le=1_000_000)] = 10_000
    """Open at the same time; fewer where `ulimit -n` is lower. Beyond it the longest idle one closes, or a new one gets
    503."""
    held_limit_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    """Memory for requests that have not arrived in full, all together. A request beyond it gets 503."""
    unknown_fields: Literal["ignore", "refuse"] = "ignore"
    """Fields of a request that nobody here knows, as clients send some: they are left out and named in the header
    `x-disagg-ignored-fields`, or the request gets 400."""
    cors: Cors = Cors()
    """Which web pages may use it."""
    tls: TlsSection | None = None
    """HTTPS instead of HTTP; default: HTTP."""

    @property
    def base_url(self) -> str:
        return base_url(self.host, self.port, is_tls=self.tls is not None)


def base_url(host: str, port: int, *, is_tls: bool = False) -> str:
    """As OpenAI's clients want it."""
    return f"{'https' if is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _a_key(key: SecretStr) -> SecretStr:
    """Refuses a key that an HTTP header would change: a blank at its end is lost, letters beyond ASCII are altered."""
    if not re.fullmatch(r"[!-~]+", key.get_secret_value()):
        raise ValueError("has a blank, a line end or a letter beyond ASCII; use letters, digits and signs")
    return key


DIGEST_DIGITS = 8  # of a key, hexadecimal: its name, where it has no other
KEY_NAME = r"^[A-Za-z0-9._-]{1,64}$"
Models = Annotated[tuple[str, ...], BeforeValidator(listed, json_schema_input_type=list[str])]
Key = Annotated[SecretStr, Field(min_length=16, max_length=512), AfterValidator(_a_key)]
KeyList = Annotated[tuple[Key, ...], BeforeValidator(lambda keys: tuple(keys) if isinstance(keys, list) else keys)]


def _moment(said: Any) -> datetime:
    """YAML reads 2027-01-31 as a date, and what has a time as that."""
    if isinstance(said, str):
        said = datetime.fromisoformat(said)
    if isinstance(said, date) and not isinstance(said, datetime):
        said = datetime(said.year, said.month, said.day, tzinfo=UTC)
    if not isinstance(said, datetime):
        raise ValueError("must be a moment, such as 2027-01-31T18:00:00Z, or a day")
    return said if said.tzinfo else said.replace(tzinfo=UTC)


Moment = Annotated[datetime, BeforeValidator(_moment, json_schema_input_type=str)]


class ApiKey(Section):
    """A key of api_keys. Limits are those of each frontend process. A bare key has none, and no name."""

    key: Key
    """From the environment: "${env:NAME}"."""
    name: Annotated[str, Field(pattern=KEY_NAME)] | None = None
    """What metrics and errors call it; default: key- and the first letters of its SHA-256."""
    requests_per_minute: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    """More get 429, with Retry-After."""
    tokens_per_minute: Annotated[int, Field(ge=1, le=1 << 40)] | None = None
    """Of prompts and answers together; more get 429."""
    concurrent: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Requests that run at once; one more gets 429."""
    models: Models = ()
    """What requests may name; an adapter is a name of its own, as NAME or MODEL:NAME. Default: all."""
    expires: Moment | None = None
    """From then on it opens nothing: 2027-01-31T18:00:00Z, or a day, whose beginning in UTC is meant."""

    @property
    def is_metered(self) -> bool:
        return self.model_fields_set != {"key"}

    @property
    def known_as(self) -> str:
        """Wherever in a list it is."""
        return self.name or f"key-{hashlib.sha256(self.key.get_secret_value().encode()).hexdigest()[:DIGEST_DIGITS]}"


def why_no_secret(text: str) -> str:
    """Empty: it has 32 random bytes, as far as that can be seen."""
    letters_min = 64 if re.fullmatch("[0-9a-fA-F]*", text) else 43  # of 32 bytes, in hexadecimal and in base64
    if len(text) < letters_min or len(set(text)) < 10:
        return "has less than 32 random bytes; make one with `openssl rand -hex 32`"
    return ""


def _a_secret(secret: SecretStr) -> SecretStr:
    if why_not := why_no_secret(secret.get_secret_value()):
        raise ValueError(why_not)
    return secret


Secret = Annotated[SecretStr, Field(max_length=1024), AfterValidator(_a_secret)]


def _keys_as_sections(keys: Any) -> Any:
    """A bare key is one without a name and without limits."""
    return tuple({"key": key} if isinstance(key, str | SecretStr) else key for key in listed(keys))


ApiKeys = Annotated[tuple[ApiKey, ...], BeforeValidator(_keys_as_sections, json_schema_input_type=list[str | ApiKey])]


class KeyLists(Section):
    """Of the YAML, or of security.keys_file."""

    api_keys: ApiKeys = ()
    """Each opens /v1 and /metrics, as `Authorization: Bearer KEY`; none: everybody may. From the environment:
    "${env:NAME}". With a name and limits: {key: …, name: …, requests_per_minute: …}."""
    admin_keys: KeyList = ()
    """Each opens /disagg (status, logs, drain) too, and cancels every request; none: what an api_keys key opens, and
    drain and logs for this machine alone."""

    @model_validator(mode="after")
    def _no_key_is_both(self) -> Self:
        keys = [each.key.get_secret_value() for each in self.api_keys]
        if len(keys) != len(set(keys)):
            raise ValueError("api_keys has a key twice; leave one out")
        names = [each.known_as for each in self.api_keys if each.is_metered]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"api_keys has two keys of the same name, {twice}; give each its own")
        both = set(keys) & {key.get_secret_value() for key in self.admin_keys}
        if both:
            raise ValueError("admin_keys and api_keys have a key in common; make another one for operators")
        return self


class Security(KeyLists):
    """Who may use the endpoint."""

    keys_file: Annotated[str, Field(min_length=1)] | None = None
    """A YAML file on the node of `disagg serve` with more api_keys and admin_keys, taken up within 6 s of a change."""
    open_metrics: bool = False
    """/metrics needs no key."""
    secret: Secret | None = None
    """What frontends, engines and the controller prove to each other, 32 random bytes or more; default: one that each
    start makes. With it, and a registry that is shared, `disagg frontend` on other hosts serves too. From the
    environment: "${env:DISAGG_SECRET}"."""
    insecure: bool = False
    """That everybody beyond this machine may use the endpoint is meant: no warning."""


def page_origins(frontend: FrontendSection, security: Security) -> tuple[str, ...]:
    """`frontend.cors.origins`, or the default where it is not set."""
    if frontend.cors.origins is not None:
        return frontend.cors.origins
    has_keys = security.api_keys or security.admin_keys or security.keys_file
    return (ANY_ORIGIN,) if is_loopback_host(frontend.host) and not has_keys else ()
