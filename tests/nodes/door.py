"""A way from this process to a port inside a node's network namespace: a relay on loopback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def door(namespace: str, port: int) -> Iterator[int]:
    """`namespace`: path of one, such as /proc/PID/ns/net. Yields the port here that leads to 127.0.0.1:`port` there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, namespace, port))
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _accept(listener: socket.socket, namespace: str, port: int) -> None:
    with ThreadPoolExecutor(64) as relays:
        opened: list[socket.socket] = []
        with contextlib.suppress(OSError):
            while True:
                outside, _ = listener.accept()
                opened.append(outside)
                relays.submit(_relay, outside, namespace, port)
        for each in opened:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _relay(outside: socket.socket, namespace: str, port: int) -> None:
    """Until either side ends."""
    with outside, contextlib.suppress(OSError), _connect(namespace, port) as inside, selectors.DefaultSelector() as s:
        s.register(outside, selectors.EVENT_READ, inside)
        s.register(inside, selectors.EVENT_READ, outside)
        while True:
            for key, _ in s.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                data = source.recv(1 << 16)
                if not data:
                    return
                key.data.sendall(data)


def _connect(namespace: str, port: int) -> socket.socket:
    """A socket belongs to the namespace of the thread that made it."""

    def there() -> socket.socket:
        with open(namespace) as file:
            if _libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return socket.create_connection(("127.0.0.1", port), timeout=10)

    with ThreadPoolExecutor(1) as thread:
        made = thread.submit(there).result()
    made.settimeout(None)
    return made
