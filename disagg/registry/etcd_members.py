"""A cluster's members, asked one at a time: a member that is slow or gone is left for the next one.

Way:   EtcdStore -> [Members.call] -> a member's gRPC channel -> etcd. Watches and leases take a member by `current`
       and leave it by `leave`
Owns:  a channel a member (one channel over all would go on choosing a stopped one); the user's token
Fails: StoreLost when no member has answered within the limit; StartError where the name or password is wrong
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import NamedTuple, TypeVar

from disagg.registry.etcd_access import Access  # before gRPC

# isort: split
import grpc
import grpc.aio
from etcd3aio._protobuf import LeaseStub, WatchStub
from etcd3aio.auth import AuthService
from etcd3aio.errors import EtcdError, EtcdPermissionDeniedError, EtcdUnauthenticatedError
from etcd3aio.kv import KVService
from etcd3aio.lease import LeaseService

from disagg.errors import StartError
from disagg.registry.store import StoreLost, pauses_s

T = TypeVar("T")
CALL_S = 1.5  # of one member
CALLS_S = 10.0  # of all of them
LOST = (EtcdError, grpc.aio.AioRpcError, TimeoutError, OSError)
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.use_local_subchannel_pool", 1),  # each channel its own connection
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # its own 120 s would outlast the outage by minutes
    ("grpc.max_receive_message_length", 64 << 20),
)


class Member(NamedTuple):
    endpoint: str
    channel: grpc.aio.Channel
    kv: KVService
    leases: LeaseService
    auth: AuthService
    lease_stub: LeaseStub
    watch_stub: WatchStub


class Members:
    """`call` asks `current`, and the next one where that does not answer. `random` spreads clients and their pauses."""

    def __init__(self, endpoints: tuple[str, ...], access: Access, random: Random) -> None:
        self._access, self.random = access, random
        self._members = [_open(endpoint, access) for endpoint in endpoints]
        self._at = random.randrange(len(endpoints))  # clients spread over the members
        self._token = ""

    @property
    def current(self) -> Member:
        return self._members[self._at % len(self._members)]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of a stream. A member without a leader ends it: cut off from the others, it would never tell anything."""
        leader = (("hasleader", "true"),)
        return (("token", self._token), *leader) if self._token else leader

    def leave(self, member: Member) -> None:
        """The next one is asked from now on, if nobody has left this one already."""
        if member is self.current:
            self._at += 1

    async def call(self, what: str, ask: Callable[[Member], Awaitable[T]], limit_s: float = CALLS_S) -> T:
        """`ask` may be run several times; it is to end within CALL_S."""
        give_up_s, tries = time.monotonic() + limit_s, 0
        pauses = pauses_s(self.random)
        while True:
            member = self.current
            try:
                async with asyncio.timeout(CALL_S):
                    await self.log_in(member)
                    return await ask(member)
            except LOST as error:
                if not is_of_the_member(error):
                    raise
                self.left_for(member, error)
                tries += 1
                if tries % len(self._members) == 0:  # none answers
                    pause_s = next(pauses)
                    if time.monotonic() + pause_s > give_up_s:
                        raise StoreLost(self.names, f"{what}: etcd does not answer: {told(error)}") from None
                    await asyncio.sleep(pause_s)

    def left_for(self, member: Member, error: Exception) -> None:
        """An old token is forgotten; any other error is the member's."""
        if _is_of_the_token(error):
            self._token = ""
        else:
            self.leave(member)

    async def log_in(self, member: Member) -> None:
        if self._access.user and not self._token:
            try:
                answer = await member.auth.authenticate(self._access.user, self._access.password)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise StartError(self.names, f"etcd refuses user {self._access.user}: {error.details()}") from None
                raise
            self._token = answer.token
            for each in self._members:  # `auth` has none: with an old one it is refused
                each.kv.set_token(self._token)
                each.leases.set_token(self._token)

    @property
    def names(self) -> str:
        return ",".join(member.endpoint for member in self._members)

    async def close(self) -> None:
        for member in self._members:
            await member.channel.close()


def is_of_the_member(error: Exception) -> bool:
    """Another member may answer; else it is etcd's answer."""
    if isinstance(error, EtcdPermissionDeniedError):
        return False
    if isinstance(error, grpc.aio.AioRpcError):
        return _is_of_the_token(error) or error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
        )
    return True


def told(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details() or ''}".strip()
    return str(error) or type(error).__name__


def _is_of_the_token(error: Exception) -> bool:
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() is grpc.StatusCode.UNAUTHENTICATED or "revision in header is old" in (error.details() or "")
    return isinstance(error, EtcdUnauthenticatedError)


def _open(endpoint: str, access: Access) -> Member:
    if access.tls:
        credentials = grpc.ssl_channel_credentials(access.ca or None, access.key or None, access.certificate or None)
        name = [("grpc.ssl_target_name_override", access.server_name)] if access.server_name else []
        channel = grpc.aio.secure_channel(endpoint, credentials, options=[*OPTIONS, *name])
    else:
        channel = grpc.aio.insecure_channel(endpoint, options=OPTIONS)
    once = 1  # who tries again takes another member
    kv, leases, auth = (
        KVService(channel, max_attempts=once),
        LeaseService(channel, max_attempts=once),
        AuthService(channel),
    )
    return Member(endpoint, channel, kv, leases, auth, LeaseStub(channel), WatchStub(channel))
