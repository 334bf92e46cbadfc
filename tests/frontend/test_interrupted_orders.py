"""Ctrl-C of a command that waits for a change: the command ends, and says that the change does not."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from scripted import ScriptedBackend, says, serving

from disagg.registry.orders import Progress, Stage, Status
from disagg.tokenizer.codec import Codec


class Backend(ScriptedBackend):
    async def changes(self, show: int) -> Status:
        return Status(Progress(1, "scale", Stage.RUNNING, 0.0, ("decode-2 starts",)))


async def test_ctrl_c_ends_the_command_alone(codec: Codec) -> None:
    async with serving(Backend(says("Hi")), codec) as frontend:
        command = [sys.executable, "-m", "disagg.cli.main", "revisions", "--wait"]
        environment = os.environ | {"DISAGG_URL": f"http://127.0.0.1:{frontend.port}"}
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"decode-2 starts\n"
        process.send_signal(signal.SIGINT)
        said, _ = await asyncio.wait_for(process.communicate(), 20)
        assert said == b"it goes on without this command; the same command joins it\n"
        assert process.returncode == 130
