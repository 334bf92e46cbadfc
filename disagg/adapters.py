"""LoRA adapters: small weights over the model's, in folders of PEFT's form, which clients name as they name the model.

Way:   YAML or POST /load_lora_adapter -> controller -> every engine -> registry -> frontends, who list them
Owns:  the bounds of names and numbers; how a name in a request is read
"""

from __future__ import annotations

import re

import msgspec

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
ADAPTERS_MAX = 1000  # of a deployment
PATH_BYTES_MAX = 4095  # <linux/limits.h>
OF = ":"  # model:adapter
GONE = "there is no adapter '{}' on this engine any more"  # to a request that was on its way when it was unloaded


class Adapter(msgspec.Struct, frozen=True):
    name: str
    path: str  # of its folder, on each node
    pinned: bool = False  # SGLang keeps it in the GPU's memory, whoever else is asked for
    created_s: int = 0  # wall clock
    is_leaving: bool = False  # it is being unloaded: requests that run may end, new ones are refused


class Served(msgspec.Struct, frozen=True):
    """What a request's `model` may be."""

    model: str
    adapters: frozenset[str] = frozenset()

    def adapter_of(self, asked: str) -> str | None:
        """The adapter that the name means, "" for the model itself; None: nothing here has that name."""
        if asked == self.model:
            return ""
        name = asked.removeprefix(f"{self.model}{OF}")
        return name if name in self.adapters else None


def problem_of_name(name: str, model: str) -> str | None:
    """What is wrong with an adapter's name, beside the model's."""
    if OF in name:
        return f"holds '{OF}', which stands between the model's name and an adapter's"
    if not NAME.fullmatch(name):
        return "must begin with a letter or digit, and hold up to 128 letters, digits, '.', '_', '-' and '/'"
    return f"is the name of the model, '{model}'" if name == model else None
