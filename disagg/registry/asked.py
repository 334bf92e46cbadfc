"""One question to a FrameServer, over a connection that is made for it.

Way:   ControlClient, a frontend's Peers -> [ask] =frames=> FrameServer
Fails: TimeoutError when no answer has come within the limit; OSError when nobody listens there, or it goes away
"""

from __future__ import annotations

import asyncio

from disagg.plane.framing import Connection
from disagg.plane.network import TCP


async def ask(address: str, secret: bytes, question: bytes, limit_s: float) -> bytes:
    """`address`: host:port. Returns the first frame that comes back."""
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_frame(body: bytes) -> None:
        if not answer.done():  # else it comes in the turn in which it is given up
            answer.set_result(body)

    def on_lost(why: str) -> None:
        if not answer.done():
            answer.set_exception(ConnectionError(why))

    connection = Connection(
        secret, is_server=False, on_open=lambda proven: proven.send(question), on_frame=on_frame, on_lost=on_lost
    )
    host, port = address.rsplit(":", 1)
    try:
        async with asyncio.timeout(limit_s):
            await TCP.connect(lambda: connection, host, int(port))
            return await answer
    finally:
        connection.close("it is answered, or given up")
