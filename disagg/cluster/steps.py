"""Steps that run side by side, of which the first to end decides; and calls that block, in threads of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


async def either(*steps: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them does, or raises what it raised; the others are ended."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def first_error(*steps: Coroutine[Any, Any, object]) -> None:
    """Runs the steps side by side; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def apart(call: Callable[..., T], *arguments: object) -> T:
    """Runs a call that blocks in a thread of its own. A cancellation does not wait for that thread, as it would for one
    of the loop's executor. The thread never ends: the kernel kills Ray's processes when the thread that started them
    does."""
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()  # a cancellation leaves it to the thread

    def run() -> None:
        try:
            answer.set_result(call(*arguments))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(error)
        threading.Event().wait()

    threading.Thread(target=run, name=getattr(call, "__name__", "sweep"), daemon=True).start()
    return await asyncio.wrap_future(answer)
