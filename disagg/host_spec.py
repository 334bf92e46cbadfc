"""What one engine host needs to know to start; crosses from the actor to the reaper as one JSON line."""

from __future__ import annotations

import functools
import os
from typing import Any

import msgspec

from disagg.lives import life_of


class Spare(msgspec.Struct, frozen=True):
    """A process that waits for a target of `module`; `children`: those that it starts itself."""

    module: str
    children: tuple[Spare, ...] = ()


class TextSpec(msgspec.Struct, frozen=True):
    """Of an engine host that has the tokenizer, for frontends that have none."""

    folder: str  # the model's
    program: str  # a module that reads clients' bodies; `order`: its first frame
    order: bytes
    trust_remote_code: bool = False


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The plane's secret is not in here: it travels in the environment (SECRET_VARIABLE), and to a zygote on its
    standard input."""

    engine_id: str
    incarnation: int
    role: str
    arguments: dict[str, Any]  # of sglang.Engine
    environment: dict[str, str]
    plane_host: str
    log_path: str
    scratch: str  # a folder of this incarnation alone; removed at its end
    fork: bool  # SGLang's children are forked (the host was forked from a zygote), not spawned
    is_simulated: bool = False  # `arguments` are then those of disagg/simulated_engine/arguments.py
    plane_port: int = 0  # 0: any that is free
    # An engine over several nodes has a host on each. The first serves the plane; the others report to it.
    member: int = 0
    members: int = 1
    first_plane: str = ""  # host:port of the first member's plane, for the others
    text: TextSpec | None = None  # None: frontends have the tokenizer
    block_tokens: int = 0  # of a KV block, in which frontends are told what is cached; 0: they are not
    asked_s: float = 0.0  # the node's monotonic clock when its actor was asked for this incarnation; 0: not told

    @property
    def life(self) -> str:
        return life_of(self.engine_id, self.incarnation)

    @property
    def place(self) -> str:
        """The life's name; for an engine over several nodes, followed by this host's member number."""
        return f"{self.life}, node {self.member} of {self.members}" if self.members > 1 else self.life


class StandbySpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a standby's reaper is told at its start: the environment, and which child processes to keep ready."""

    environment: dict[str, str]  # as its HostSpec will say it
    spares: tuple[Spare, ...]  # the host's children


FOLLOWED = 70  # exit status of a host that ends because another host of its engine has
SECRET_VARIABLE = "DISAGG_PLANE_SECRET"
OPERATORS_SECRET = "DISAGG_SECRET"  # security.secret, for `disagg frontend`; the plane's is made of it
LIFE_VARIABLE = "DISAGG_ENGINE_LIFE"  # set in every process of an engine; the plugins act only where it is
OFF_VARIABLE = "DISAGG_PLUGINS_OFF"  # parts of ours that the installed SGLang does not fit (disagg/sglang/fit.py)
DEPLOYMENT_VARIABLE = "DISAGG_DEPLOYMENT"  # set in every process of a deployment: what the janitor looks for

encode_spec = msgspec.json.encode
decode_spec = msgspec.json.Decoder(HostSpec).decode
encode_standby = msgspec.json.encode
decode_standby = msgspec.json.Decoder(StandbySpec).decode


@functools.cache
def plane_secret() -> bytes:
    """This process's. It leaves the environment when it is first asked for: what is started from then on needs none."""
    return bytes.fromhex(os.environ.pop(SECRET_VARIABLE))


def is_on(part: str) -> bool:
    """Whether a plugin's part (touched.py) acts in this process."""
    return part not in os.environ.get(OFF_VARIABLE, "").split(",")
