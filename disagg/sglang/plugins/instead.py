"""How a plugin takes the place of something in SGLang, and whether it acts in this process at all.

Way:   a plugin's `activate` -> [acts_here], [instead_of] -> SGLang's classes and modules, while the process lives
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from disagg.host_spec import LIFE_VARIABLE, is_on


def acts_here(part: str) -> bool:
    """Whether this is a scheduler of an engine of ours whose SGLang fits that part (touched.py)."""
    return LIFE_VARIABLE in os.environ and "sglang.srt.managers.scheduler" in sys.modules and is_on(part)


def instead_of(owner: Any, name: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Puts a function in the place of the owner's of that name (the function's own), which then is `function.real`."""

    def put(function: Any) -> Any:
        place = name or function.__name__
        real = getattr(owner, place)
        functools.update_wrapper(function, real)
        function.real = real  # only now: what it replaces may itself stand in the place of another
        setattr(owner, place, function)
        return function

    return put
