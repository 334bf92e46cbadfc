"""How far a command that starts a deployment, or a part of one, has come: this decides what a signal means.

Way:   serve, serve_detached, serve_alone -> [Course.heeding] -> stopping
In:    the first signal: it cancels the task, which gives back what it holds
Out:   before it `serves`: the process ends with status 128 + N, when all is given back or END_S is over, also where
       something fails meanwhile. Later: heeding returns when the task has ended
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from disagg import stopping
from disagg.errors import DisaggError

log = logging.getLogger(__name__)

END_S = 2.3  # what a stop may take while nobody waits for an answer: `ray job stop` kills 3 s after its signal


class Course:
    def __init__(self) -> None:
        self.serves = False
        self.signal = 0

    @contextlib.contextmanager
    def heeding(self) -> Iterator[None]:
        """Used by the task that a signal cancels."""
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        assert running is not None

        def stop() -> None:
            log.info("stopping")
            running.cancel()

        def ask_to_stop(number: int) -> None:
            """In the main thread, while the loop may be busy."""
            self.signal = number
            if not self.serves:
                stopping.leave_within(END_S, 128 + number)
            loop.call_soon_threadsafe(stop)

        with stopping.in_order(ask_to_stop):
            try:
                yield
            except asyncio.CancelledError:
                if not self.signal:
                    raise
            except DisaggError as error:
                if not self.signal or self.serves:
                    raise
                log.info("%s", error)  # it failed while it was being stopped
            if self.signal and not self.serves:
                stopping.leave(128 + self.signal)  # not before: a thread may still be in a call that has no end

    def has_come_to_serve(self) -> None:
        self.serves = not self.signal  # else it is being stopped already

    def has_no_request(self) -> None:
        """Called when nobody waits for an answer any more: the rest of the stop may take END_S."""
        if self.signal and self.serves:
            stopping.leave_within(END_S, 0)
