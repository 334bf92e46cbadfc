"""A process that has imported SGLang and forks a reaper, and beneath it an engine host, for each caller.

Way:   engine actor -> (unix socket) -> [zygote] -> reaper -> host -> scheduler, detokenizer
In:    the plane's secret, a line on standard input; a HostSpec as one JSON line on an accepted connection, which then
       is the pipe between actor and reaper
Owns:  nothing after the fork: an engine outlives its zygote. It ends when its standard input closes
Why:   an engine is three processes that import SGLang for 7 to 16 s each; forked, they start in about a second.
       Not on a GPU: the imports initialise CUDA there, and a CUDA process cannot be forked

Usage: python -m disagg.process.zygote SOCKET_PATH   (prints one line when it is ready)
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from disagg.folders import own_folder
from disagg.host_spec import SECRET_VARIABLE, HostSpec, decode_spec
from disagg.process import reaper as reaper

REGISTRY = "sglang.srt.models.registry"
READ_BY_IT = ("SGLANG_EXTERNAL_MODEL_PACKAGE", "SGLANG_DISABLED_MODEL_ARCHS")
SPEC_S = 5.0  # how long a caller may take to send its line


def main(socket_path: Path) -> None:
    secret = b""
    while not secret.endswith(b"\n"):  # unbuffered: what follows is watched for its end
        data = os.read(0, 4096)
        if not data:
            raise SystemExit("no secret on standard input")
        secret += data
    os.environ[SECRET_VARIABLE] = secret.decode().strip()
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401 - all models' classes, a second that each scheduler would take
    from sglang.srt.entrypoints.engine import Engine  # noqa: F401

    from disagg.process import host  # noqa: F401

    if threading.active_count() > 1:  # a fork would lose the other threads, and may keep their locks
        raise SystemExit(f"importing SGLang left threads running: {threading.enumerate()}")
    gc.freeze()  # the heap stays shared: collections in the forks would write to every object's header
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own_folder(socket_path.parent)  # an engine's end may have taken it away meanwhile
    listener.bind(str(socket_path))
    listener.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()

    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                if not os.read(0, 4096):
                    socket_path.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # engines still have theirs in it
                        socket_path.parent.rmdir()
                    os._exit(0)  # an orderly end of everything SGLang imported takes a second and complains
            else:
                _fork(listener, selector)


def _fork(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    pipe, _ = listener.accept()
    pipe.settimeout(SPEC_S)
    try:
        line = b""
        while not line.endswith(b"\n"):
            data = pipe.recv(1 << 20)
            if not data:
                return
            line += data
        spec = decode_spec(line)
        if os.fork() == 0:
            _become_reaper(spec, pipe, listener, selector)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"a caller was sent away: {error}\n")
    finally:
        pipe.close()


def _become_reaper(
    spec: HostSpec, pipe: socket.socket, listener: socket.socket, selector: selectors.BaseSelector
) -> NoReturn:
    """Runs the reaper in the forked child and exits, also on an error: the child must not go on as a second zygote."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        selector.close()
        listener.close()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        pipe.settimeout(None)
        forget_models_of_others(spec.environment)
        reaper.watch(spec, pipe, reaper.fork_host)
    finally:
        os._exit(0)


def forget_models_of_others(environment: Mapping[str, str]) -> None:
    """An engine whose environment says which models there are reads SGLang's registry anew."""
    if any(name in environment for name in READ_BY_IT):
        sys.modules.pop(REGISTRY, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
