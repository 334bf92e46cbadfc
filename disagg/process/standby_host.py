"""A standby's engine host: it and its children have imported all that they need, and wait for their engine.

Way:   standby reaper -> [standby host] -> spare scheduler, spare detokenizer; then what host.py says
In:    a HostSpec as one line on its second socket
Out:   once all is imported, StandbyReady on the actor's pipe
Fails: as a host does; a child that died while waiting is spawned again when its turn comes

Usage: python -m disagg.process.standby_host PIPE_FD ORDER_FD SPARES_AS_JSON
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from importlib import metadata

import msgspec

from disagg.host_spec import HostSpec, Spare, decode_spec, plane_secret
from disagg.process.handover import Spares, has_cuda_context
from disagg.process.news import StandbyReady, encode_news


def main(pipe: socket.socket, order: socket.socket, wanted: tuple[Spare, ...]) -> None:
    began_s = time.monotonic()
    plane_secret()  # the spares do without
    spares = Spares(wanted)  # first: they import while we do
    spares.install()
    from sglang.srt.entrypoints.engine import Engine  # noqa: F401

    from disagg.process import host

    spec = _wait(pipe, order, spares, began_s)
    if spec is not None:
        host.run(spec, pipe, spares)


def _wait(pipe: socket.socket, order: socket.socket, spares: Spares, began_s: float) -> HostSpec | None:
    """The HostSpec of the engine to become; None when the other end has closed: the standby is not needed any more."""
    contexts = int(has_cuda_context())
    with selectors.DefaultSelector() as selector:
        for each in (order, *spares.doors):
            selector.register(each, selectors.EVENT_READ)
        is_told = False
        while True:
            if len(selector.get_map()) == 1 and not is_told:
                is_told, seconds = True, round(time.monotonic() - began_s, 1)
                pids = [os.getpid(), *spares.pids]
                pipe.sendall(encode_news(StandbyReady(pids, seconds, contexts, metadata.version("sglang"))) + b"\n")
            for key, _ in selector.select():
                door = key.fileobj
                assert isinstance(door, socket.socket)
                if door is order:
                    with order.makefile("rb") as reader:
                        line = reader.readline()
                    return decode_spec(line) if line else None
                selector.unregister(door)
                said = spares.hear(door)
                contexts += bool(said and json.loads(said)["has_context"])
                if not said:
                    sys.stderr.write("a spare process has died\n")


if __name__ == "__main__":
    actor_pipe, orders = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    actor_pipe.set_inheritable(False)
    orders.set_inheritable(False)
    main(actor_pipe, orders, msgspec.json.decode(sys.argv[3], type=tuple[Spare, ...]))
