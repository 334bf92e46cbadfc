"""Who sends a request, and what the sender may do: API keys, admin keys, and the operator on this machine.

Way:   request's head -> [Keys.check] -> the handler of the route
In:    `Authorization: Bearer KEY`, as OpenAI's clients send it, or `x-api-key: KEY`, as Anthropic's do
Out:   a Caller: whose requests he sees and cancels
Fails: BadRequest with status 401 or 403, before the body is read. Keys are compared in constant time, and never shown

Where there are no admin keys, who asks from this machine operates it: with an API key where there are any, and neither
through a proxy nor from a web page (disagg/frontend/here.py).
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn, Protocol

from disagg.config.frontend import DIGEST_DIGITS
from disagg.errors import BadRequest
from disagg.frontend.exchange import Exchange
from disagg.frontend.here import why_not_a_program, why_not_here

_BEARER = b"bearer "


class Right(enum.Enum):
    HEALTH = "health"  # everybody's
    CLIENT = "client"  # who has any key
    METRICS = "metrics"  # who has any key, or everybody
    STATUS = "status"  # who has an admin key; without admin keys, as CLIENT
    OPERATE = "operate"  # who has an admin key; without admin keys, who is here

    __hash__ = object.__hash__  # in C; each request looks one up


@dataclass(frozen=True, slots=True)
class Caller:
    owner: bytes  # of his requests: the digest of his key; empty without one
    sees_all: bool = False  # other callers' requests too


NOBODY = Caller(b"")


class Limited(Protocol):
    """As much of a LimitedKey."""

    @property
    def key(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def expires_s(self) -> float: ...


class Keys:
    """The deployment's keys. Without any, everybody may use the model, and programs on this machine may operate it."""

    def __init__(
        self,
        keys: Iterable[str] = (),
        admin_keys: Iterable[str] = (),
        *,
        open_metrics: bool = False,
    ) -> None:
        self._open_metrics = open_metrics
        self.hold(keys, (), admin_keys)

    def hold(self, bare: Iterable[str], limited: Iterable[Limited], admin: Iterable[str]) -> None:
        """These from now on, and no others."""
        limited = list(limited)
        keys = [*bare, *(each.key for each in limited)]
        self._names = {digest(each.key.encode()): each.name for each in limited}
        self._expires = {digest(each.key.encode()): each.expires_s for each in limited if each.expires_s}
        self._digests = [digest(key.encode()) for key in keys]  # of one length: nothing leaks by time
        self._admin_digests = [digest(key.encode()) for key in admin]
        everybodys = {Right.HEALTH} | ({Right.METRICS} if self._open_metrics else set())
        self._everybodys = everybodys if self._digests or self._admin_digests else everybodys | {Right.CLIENT}

    @property
    def has_admins(self) -> bool:
        """Else who is here operates it."""
        return bool(self._admin_digests)

    def name_of(self, caller: Caller) -> str:
        """For people: a key's name, or which kind of key it is."""
        if caller.owner in self._admin_digests:
            return f"admin-key-{caller.owner.hex()[:DIGEST_DIGITS]}"
        if caller.owner in self._digests:
            return self._names.get(caller.owner, "an API key without a name")
        return "nobody's key"

    def check(self, exchange: Exchange, right: Right) -> Caller:
        if right in self._everybodys:
            return NOBODY
        key = _key_of(exchange)
        is_admin, is_client = _is_one_of(key, self._admin_digests), _is_one_of(key, self._digests)
        if is_client and self._expires.get(key, math.inf) <= time.time():
            _refuse_key(exchange, "this API key has expired: ask for another one")
        if right in (Right.STATUS, Right.OPERATE):
            self._check_operator(exchange, right, is_admin, is_client)
        elif self._digests and not (is_admin or is_client):
            _refuse_key(exchange, "no valid API key: send `Authorization: Bearer KEY` or `x-api-key: KEY`")
        return Caller(key if is_admin or is_client else b"", is_admin or self._is_here(exchange))

    def _check_operator(self, exchange: Exchange, right: Right, is_admin: bool, is_client: bool) -> None:
        if is_admin:
            why_not = why_not_a_program(exchange) if right is Right.OPERATE else None
        elif self._admin_digests:
            if is_client:
                _forbid("this needs a key of security.admin_keys, and this is one of security.api_keys")
            _refuse_key(exchange, "no valid admin key: send one of security.admin_keys as `Authorization: Bearer KEY`")
        elif self._digests and not is_client:
            _refuse_key(exchange, "no valid API key: send one of security.api_keys as `Authorization: Bearer KEY`")
        else:
            why_not = why_not_here(exchange) if right is Right.OPERATE else None
        if why_not is not None:
            _forbid(why_not)

    def _is_here(self, exchange: Exchange) -> bool:
        """Without admin keys, a program on this machine counts as the operator."""
        return not self._digests and not self._admin_digests and why_not_here(exchange) is None


def _key_of(exchange: Exchange) -> bytes:
    """The digest of the key that was sent, in one of two headers or the same in both; empty without one."""
    said = exchange.request_header(b"authorization") or b""
    bearer = digest(said[len(_BEARER) :].strip()) if said[: len(_BEARER)].lower() == _BEARER else b""
    other = exchange.request_header(b"x-api-key")
    if other is None:
        return bearer
    key = digest(other.strip())
    if bearer and not hmac.compare_digest(bearer, key):
        _refuse_key(exchange, "`Authorization` and `x-api-key` hold different keys: send one of the two headers")
    return key


def digest(key: bytes) -> bytes:
    """What stands for a key: a Caller's `owner`."""
    return hashlib.sha256(key).digest()


def _is_one_of(digest: bytes, known: list[bytes]) -> bool:
    return any([hmac.compare_digest(digest, each) for each in known])


def _refuse_key(exchange: Exchange, what: str) -> NoReturn:
    exchange.answer_headers.append((b"www-authenticate", b"Bearer"))
    raise BadRequest(None, "invalid_api_key", what, http_status=401)


def _forbid(what: str) -> NoReturn:
    raise BadRequest(None, "forbidden", what, http_status=403)
