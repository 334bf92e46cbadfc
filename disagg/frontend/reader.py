"""A process that reads long bodies for a frontend: JSON, checks, template, token ids.

Way:   Readers -> a pipe -> [read] -> a pipe -> Readers
In:    frames on standard input: an Order, then bodies, each behind a line that says its endpoint (a word of READINGS)
       and the adapters that it may name
Out:   a frame for each body on standard output, in order
Fails: it ends when its input closes, and by its alarm when a body takes too long

Usage: python -m disagg.frontend.reader   (started by disagg.frontend.readers)
"""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from disagg.adapters import Served
from disagg.errors import BadRequest
from disagg.frontend.readers import END_OF_WORD, LENGTH_BYTES, Order, Refusal, frame
from disagg.frontend.reading import Read, read
from disagg.tokenizer.codec import load_codec


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    order = msgspec.msgpack.decode(_next(source) or b"", type=Order)
    codec = load_codec(Path(order.folder), order.overrides)
    gc.collect()
    gc.freeze()
    gc.disable()  # it would look through the millions of lists of a hostile body, again and again; they hold no cycles
    while (body := _next(source)) is not None:
        signal.setitimer(signal.ITIMER_PROF, order.read_s)
        answer: Read | Refusal
        try:
            words, _, data = body.partition(END_OF_WORD)
            endpoint, *adapters = words.decode().split(" ")
            served = Served(order.model, frozenset(adapters))
            answer = read(data, endpoint, served, codec, refuses_unknown=order.refuses_unknown)
            said = msgspec.msgpack.encode(answer)
        except BadRequest as error:
            said = msgspec.msgpack.encode(answer := Refusal(error.args))
        except (OverflowError, RecursionError):
            what = "the body holds a number beyond 64 bits, or is nested too deeply"
            said = msgspec.msgpack.encode(answer := Refusal((None, "invalid_json", what, 400)))
        del body, data, answer
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(frame(said))
        sink.flush()
        gc.collect()  # between bodies: an error's traceback is a cycle now and then


def _next(source: BinaryIO) -> bytes | None:
    length = source.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    data = source.read(int.from_bytes(length))
    return data if len(data) == int.from_bytes(length) else None


def main() -> None:
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
