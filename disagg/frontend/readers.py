"""Reads bodies for a frontend that has the tokenizer: short ones here, long ones in processes of their own.

Way:   own_tokenizer.py -> [Readers.read] -> here when short, else process/body_readers.py -> frontend/reader.py
In:    bytes below the body limit
Out:   what the endpoint's row of READINGS makes of the body (disagg/frontend/reading.py): token ids, most often
Fails: what `read` raises there, and what BodyReaders raises
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from disagg.adapters import Served
from disagg.errors import BadRequest
from disagg.frontend.reading import Read, read
from disagg.plane.messages import unpack_ids
from disagg.process.body_readers import LONG_NICENESS, BodyReaders
from disagg.tokenizer.overrides import Overrides
from disagg.tokenizer.short_bodies import is_short

if TYPE_CHECKING:
    from disagg.tokenizer.codec import Codec

READERS_MAX = 2
READ_S = 10.0  # of a processor, by the reader's own alarm, which ends it
PROGRAM = "disagg.frontend.reader"


class Order(msgspec.Struct, array_like=True, frozen=True):
    """The first frame that a reader gets."""

    folder: str
    model: str  # its name
    read_s: float
    overrides: Overrides  # the deployment's, over the model's own files
    refuses_unknown: bool
    is_host: bool = False  # transformers is there, for tokenizers that no frontend can read
    trust_remote_code: bool = False


class Refusal(msgspec.Struct, frozen=True, tag=True):
    args: tuple[str | None, str, str, int]  # of the BadRequest


def _packed(value: object) -> bytes:
    """Token ids in an answer."""
    if isinstance(value, array):
        return value.tobytes()
    raise NotImplementedError(type(value))  # a bug: msgspec says where


encode_answer = msgspec.msgpack.Encoder(enc_hook=_packed).encode
_decode_answer = msgspec.msgpack.Decoder(Read | Refusal, dec_hook=lambda _, octets: unpack_ids(octets)).decode


def answered(said: bytes) -> Read:
    """What a reader said. Raises BadRequest where that is a refusal."""
    answer: Read | Refusal = _decode_answer(said)
    if isinstance(answer, Refusal):
        raise BadRequest(*answer.args)
    return answer


class Readers:
    def __init__(
        self, codec: Codec, served: Callable[[], Served], read_s: float = READ_S, *, refuses_unknown: bool = True
    ) -> None:
        """`served`: what may be named now. `refuses_unknown`: see `read`."""
        self._codec, self._served, self._refuses_unknown = codec, served, refuses_unknown
        order = Order(str(codec.folder), served().model, read_s, codec.overrides, refuses_unknown)
        self.processes = BodyReaders(PROGRAM, msgspec.msgpack.encode(order), READERS_MAX, LONG_NICENESS)

    async def start(self) -> None:
        await self.processes.start()

    async def stop(self) -> None:
        await self.processes.stop()

    async def read(self, data: bytes, endpoint: str) -> Read:
        if is_short(data, is_fast=self._codec.encoder.is_fast, endpoint=endpoint):
            return read(data, endpoint, self._served(), self._codec, refuses_unknown=self._refuses_unknown)
        return answered(await self.processes.ask(words_of(endpoint, self._served()), data))


def words_of(endpoint: str, served: Served) -> str:
    """What goes before a body: its endpoint, and the adapters that it may name."""
    return " ".join((endpoint, *served.adapters))
