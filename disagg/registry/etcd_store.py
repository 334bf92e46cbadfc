"""A store in etcd v3. Channels, messages and calls are etcd3aio's; its watch and keepalive loops are not used: the one
trusts a member that is silent, the other has no deadline (docs/decisions.md).

Way:   publisher -> [EtcdStore] -> etcd -> [EtcdStore] of each follower
Owns:  a watch is a stream from one member. One that tells nothing for 2 * PROGRESS_S though asked, has no leader or
       ends is left, after a pause, for the next one, from the revision that was seen last. What was compacted meanwhile
       is found by a comparison with all there is. A lease is renewed three times a ttl, each time by whichever member
       answers
Fails: StoreLost after CALLS_S without an answer; a watch and a lease try for ever. Conflict and LeaseLost are etcd's
       own answers
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from random import Random

from disagg.registry.etcd_access import Access  # before gRPC

# isort: split
import grpc.aio
from etcd3aio._protobuf import (
    Compare,
    DeleteRangeRequest,
    LeaseKeepAliveRequest,
    PutRequest,
    RangeResponse,
    RequestOp,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from etcd3aio.kv import prefix_range_end

from disagg.registry.etcd_members import CALL_S, LOST, Member, Members, told
from disagg.registry.store import (
    WHOLE_MAX,
    Batch,
    Conflict,
    Entry,
    Lease,
    LeaseLost,
    Snapshot,
    Store,
    StoreLost,
    difference,
    pauses_s,
)

log = logging.getLogger(__name__)

PROGRESS_S = 5.0
CONNECT_S = 3.0  # for a stream to begin
PAGE_KEYS = 10_000  # etcd goes through the whole range for each page, to count it
PART_BYTES = 1 << 20  # etcd takes 1.5 MiB a request
AGAIN_MAX_S = 0.5  # before another member is asked to renew
DELETED = 1  # mvccpb.Event.DELETE


class _Compacted(Exception):
    """What is asked for is not there any more: all of it is to be read anew."""


class EtcdLease(Lease):
    def __init__(self, ttl_s: float, number: int, store: EtcdStore) -> None:
        super().__init__(ttl_s)
        self.number, self._store = number, store
        self.keeping: asyncio.Task[None] | None = None

    async def revoke(self) -> None:
        if self.keeping is not None:
            self.keeping.cancel()
        await self._store.revoke(self)
        self.lost.set()


class EtcdStore(Store):
    """`endpoints`: host:port of one member or more, which may be any of the cluster's."""

    def __init__(self, endpoints: tuple[str, ...], access: Access | None = None, random: Random | None = None) -> None:
        self._members = Members(endpoints, access or Access(), random or Random())
        self._leases: list[EtcdLease] = []

    async def snapshot(self, prefix: str) -> Snapshot:
        while True:
            with contextlib.suppress(_Compacted):  # between two pages
                return await self._pages(prefix)

    async def watch(self, prefix: str, since: Snapshot) -> AsyncIterator[Batch]:
        known, revision = dict(since.entries), since.revision
        pauses = pauses_s(self._members.random)
        while True:
            member = self._members.current
            try:
                stream = self._stream(member, prefix, revision + 1)
                async with contextlib.aclosing(stream):
                    async for batch in stream:
                        pauses = pauses_s(self._members.random)
                        revision = batch.revision
                        for key, entry in batch.changes.items():
                            if entry is None:
                                known.pop(key, None)
                            else:
                                known[key] = entry
                        if batch.changes:
                            yield batch
            except _Compacted:
                with contextlib.suppress(StoreLost):
                    found = await self.snapshot(prefix)
                    changes = difference(known, found.entries)
                    known, revision = found.entries, found.revision
                    if changes:
                        yield Batch(revision, changes)
            except LOST as error:
                log.info("a watch on %s is lost: %s", member.endpoint, told(error))
                self._members.left_for(member, error)
                await asyncio.sleep(next(pauses))

    async def grant(self, ttl_s: float) -> EtcdLease:
        seconds = math.ceil(ttl_s)
        answer = await self._members.call("grant a lease", lambda member: member.leases.grant(seconds))
        lease = EtcdLease(answer.TTL, answer.ID, self)
        lease.keeping = asyncio.create_task(self._keep(lease), name=f"keep lease {answer.ID:x}")
        self._leases.append(lease)
        return lease

    async def revoke(self, lease: EtcdLease) -> None:
        try:
            await self._members.call("revoke a lease", lambda member: member.leases.revoke(lease.number))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise

    async def write(
        self,
        changes: Mapping[str, bytes | None],
        lease: Lease | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        assert not expect or len(changes) <= WHOLE_MAX
        number = lease.number if isinstance(lease, EtcdLease) else 0
        compare = [_is_version(key, version) for key, version in (expect or {}).items()]
        for part in _parts(changes):
            operations = [_put(key, value, number) if value is not None else _delete(key) for key, value in part]

            async def ask(member: Member, operations: list[RequestOp] = operations) -> bool:
                return bool((await member.kv.txn(compare, operations)).succeeded)

            try:
                is_made = await self._members.call("write", ask)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND and lease is not None:
                    lease.lost.set()
                    raise LeaseLost(self._members.names, "the lease has run out") from None
                raise
            if not is_made:
                raise Conflict(self._members.names, f"another version of {', '.join(expect or {})} is there")

    async def close(self) -> None:
        for lease in self._leases:
            if lease.keeping is not None:
                lease.keeping.cancel()
        await self._members.close()

    async def _pages(self, prefix: str) -> Snapshot:
        """All at one revision."""
        entries: dict[str, Entry] = {}
        begin, end, revision = prefix.encode(), prefix_range_end(prefix), 0
        while True:

            async def ask(member: Member, begin: bytes = begin, revision: int = revision) -> RangeResponse:
                return await member.kv.get(begin, end, revision=revision, limit=PAGE_KEYS)

            try:
                page = await self._members.call("read", ask)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    raise _Compacted from None
                raise
            revision = revision or page.header.revision
            entries.update((each.key.decode(), Entry(each.value, each.mod_revision)) for each in page.kvs)
            if not page.more:
                return Snapshot(revision, entries)
            begin = page.kvs[-1].key + b"\0"

    async def _stream(self, member: Member, prefix: str, first: int) -> AsyncGenerator[Batch]:
        """Changes from revision `first` on, from this member; at least one batch, which may be empty. Raises one of
        LOST, or _Compacted."""
        async with asyncio.timeout(CALL_S):
            await self._members.log_in(member)
        call = member.watch_stub.Watch(metadata=self._members.metadata)
        wanted = WatchCreateRequest(
            key=prefix.encode(), range_end=prefix_range_end(prefix), start_revision=first, fragment=True
        )
        try:
            async with asyncio.timeout(CONNECT_S):
                await call.write(WatchRequest(create_request=wanted))
                created = _checked(await call.read())
            if created.header.revision < first - 1:
                raise _Compacted  # etcd was set back to what it was before
            yield Batch(first - 1, {})
            changes: dict[str, Entry | None] = {}
            async for response in _responses(call):
                for event in response.events:
                    entry = None if event.type == DELETED else Entry(event.kv.value, event.kv.mod_revision)
                    changes[event.kv.key.decode()] = entry
                if changes and not response.fragment:
                    yield Batch(response.events[-1].kv.mod_revision, changes)
                    changes = {}
        finally:
            call.cancel()

    async def _keep(self, lease: EtcdLease) -> None:
        """Renews it until it is lost: only etcd's word is that, not its silence."""
        random, pause_s = self._members.random, 0.0
        while not lease.lost.is_set():
            await asyncio.sleep(pause_s)
            is_answered = await self._try_to_renew(lease)
            pause_s = lease.ttl_s / 3 * random.uniform(0.7, 1.0) if is_answered else random.uniform(0.0, AGAIN_MAX_S)
        log.warning("the lease %x of the registry is lost", lease.number)

    async def _try_to_renew(self, lease: EtcdLease) -> bool:
        """False: this member does not answer."""
        member = self._members.current
        try:
            async with asyncio.timeout(min(CALL_S, lease.ttl_s / 3)):
                left_s = await self._renew(member, lease.number)
        except LOST as error:
            self._members.left_for(member, error)
            return False
        if left_s <= 0:
            lease.lost.set()
        return True

    async def _renew(self, member: Member, number: int) -> float:
        await self._members.log_in(member)
        call = member.lease_stub.LeaseKeepAlive(metadata=self._members.metadata)
        try:
            await call.write(LeaseKeepAliveRequest(ID=number))
            answer = await call.read()
            if answer is grpc.aio.EOF:
                raise ConnectionError("the member ended the call")
            return float(answer.TTL)
        finally:
            call.cancel()


async def _responses(call: grpc.aio.StreamStreamCall) -> AsyncIterator[WatchResponse]:
    """Ends by ConnectionError when the member is silent, though asked how far it is."""
    while True:
        reading = asyncio.ensure_future(call.read())
        try:
            for _ in range(2):
                await asyncio.wait([reading], timeout=PROGRESS_S)
                if reading.done():
                    break
                await call.write(WatchRequest(progress_request={}))
            else:
                raise ConnectionError(f"it is silent for {2 * PROGRESS_S:g} s")
            yield _checked(await reading)
        finally:
            reading.cancel()


def _checked(response: WatchResponse) -> WatchResponse:
    if response is grpc.aio.EOF:
        raise ConnectionError("the member ended the watch")
    if response.compact_revision:
        raise _Compacted
    if response.canceled:
        raise ConnectionError(f"the watch was ended: {response.cancel_reason}")
    return response


def _parts(changes: Mapping[str, bytes | None]) -> Iterator[list[tuple[str, bytes | None]]]:
    """As large as one transaction may be."""
    part: list[tuple[str, bytes | None]] = []
    size = 0
    for key, value in changes.items():
        if part and (len(part) == WHOLE_MAX or size + len(value or b"") > PART_BYTES):
            yield part
            part, size = [], 0
        part.append((key, value))
        size += len(key) + len(value or b"")
    yield part


def _put(key: str, value: bytes, lease: int) -> RequestOp:
    return RequestOp(request_put=PutRequest(key=key.encode(), value=value, lease=lease))


def _delete(key: str) -> RequestOp:
    return RequestOp(request_delete_range=DeleteRangeRequest(key=key.encode()))


def _is_version(key: str, version: int) -> Compare:
    return Compare(result=Compare.EQUAL, target=Compare.MOD, key=key.encode(), mod_revision=version)
