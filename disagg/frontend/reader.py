"""A process that reads clients' bodies: JSON, checks, template, token ids. A frontend's, or an engine host's.

Way:   BodyReaders -> a pipe -> [read] -> a pipe -> BodyReaders
In:    frames on standard input: an Order, then bodies, each behind a line that says its endpoint (a word of READINGS,
       or FACTS, of which the body is empty) and the adapters that it may name
Out:   a frame for each body on standard output, in order
Fails: it ends when its input closes, and by its alarm when a body takes too long

Usage: python -m disagg.frontend.reader NICENESS   (started by disagg.process.body_readers)
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from disagg.adapters import Served
from disagg.errors import BadRequest
from disagg.freed_memory import keep_freed_memory
from disagg.frontend.readers import Order, Refusal, encode_answer
from disagg.frontend.reading import Read, read
from disagg.frontend.text_facts import FACTS, TextFacts, facts_of
from disagg.process.body_readers import END_OF_WORD, LENGTH_BYTES, frame
from disagg.tokenizer.any_tokenizer import load_any
from disagg.tokenizer.codec import Codec, load_codec


def serve(source: BinaryIO, sink: BinaryIO, niceness: int = 0) -> None:
    order = msgspec.msgpack.decode(_next(source) or b"", type=Order)
    codec = codec_for(order)
    gc.collect()
    gc.freeze()
    _give_way(niceness)
    gc.disable()  # it would look through the millions of lists of a hostile body, again and again; they hold no cycles
    while (body := _next(source)) is not None:
        signal.setitimer(signal.ITIMER_PROF, order.read_s)
        words, _, data = body.partition(END_OF_WORD)
        said = answer(data, words.decode(), order, codec)
        del body, data
        signal.setitimer(signal.ITIMER_PROF, 0)
        sink.write(frame(said))
        sink.flush()
        gc.collect()  # between bodies: an error's traceback is a cycle now and then


def _give_way(niceness: int) -> None:
    """All threads of this process. Not before it is ready: on a busy machine its imports would take a minute."""
    if not niceness:
        return
    os.setpriority(os.PRIO_PGRP, 0, os.nice(0) + niceness)  # its group has nobody else: it is a session of its own
    # Linux may weigh sessions against one another, and their processes within each alone (sched(7), autogroup).
    with contextlib.suppress(OSError):  # it does not, or takes no more changes now
        Path("/proc/self/autogroup").write_text(str(niceness))


def codec_for(order: Order) -> Codec:
    if order.is_host:
        load = partial(load_any, trust_remote_code=order.trust_remote_code)
        return load_codec(Path(order.folder), order.overrides, load)
    return load_codec(Path(order.folder), order.overrides)


def answer(data: bytes, words: str, order: Order, codec: Codec) -> bytes:
    """`words`: see readers.words_of."""
    endpoint, *adapters = words.split(" ")
    said: Read | Refusal | TextFacts
    try:
        if endpoint == FACTS:
            said = facts_of(codec)
        else:
            served = Served(order.model, frozenset(adapters))
            said = read(data, endpoint, served, codec, refuses_unknown=order.refuses_unknown)
        return encode_answer(said)
    except BadRequest as error:
        said = Refusal(error.args)
    except (OverflowError, RecursionError):
        what = "the body holds a number beyond 64 bits, or is nested too deeply"
        said = Refusal((None, "invalid_json", what, 400))
    return msgspec.msgpack.encode(said)


def _next(source: BinaryIO) -> bytes | None:
    length = source.read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    data = source.read(int.from_bytes(length))
    return data if len(data) == int.from_bytes(length) else None


def main() -> None:
    keep_freed_memory()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    serve(sys.stdin.buffer, sys.stdout.buffer, int(sys.argv[1]))


if __name__ == "__main__":
    main()
