"""Checks that the installed SGLang has what our plugins touch, in the shape they need.

Way:   engine host, before SGLang starts -> [check_installed] -> its environment -> each plugin's `activate`
Out:   a part that does not fit is switched off, with a line in the log and in EngineFacts.switched_off
Fails: StartError where an engine cannot do without it: the release, what of it differs, what would do
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, MutableMapping
from importlib import util
from pathlib import Path

from disagg.errors import StartError
from disagg.host_spec import OFF_VARIABLE
from disagg.sglang.releases import RELEASES
from disagg.sglang.signatures import Sources
from disagg.sglang.touched import PARTS, Part

log = logging.getLogger(__name__)


def misfits(part: Part, sources: Sources) -> list[str]:
    """What this release has otherwise than `part` needs it: "…:Sampler.forward takes (…), and we give (…)"."""
    found = []
    for touch in part.touches:
        why = [touch.misfit(sources.of(path)) for path in touch.paths]
        if all(why):
            found.append(f"{touch.paths[0]} {why[0]}")
    return found


def check_installed(
    version: str,
    device: str,
    sources: Sources | None = None,
    parts: Iterable[Part] = PARTS,
    environment: MutableMapping[str, str] = os.environ,
) -> tuple[str, ...]:
    """The parts that are switched off, here and in this process's children. `sources`: by default what is installed."""
    sources = sources or Sources(_installed_root())
    off = []
    for part in parts:
        if part.only and part.only != device:
            continue
        if not (found := misfits(part, sources)):
            continue
        if not part.without:
            raise StartError(
                f"sglang {version}",
                f"disagg's {part.name} part does not fit it: {'; '.join(found)}",
                f"install one of {RELEASES[0]} to {RELEASES[-1]}",
            )
        log.warning("sglang %s: %s is switched off, so %s: %s", version, part.name, part.without, "; ".join(found))
        off.append(part.name)
    if off:
        environment[OFF_VARIABLE] = ",".join(off)
    else:
        environment.pop(OFF_VARIABLE, None)
    return tuple(off)


def _installed_root() -> Path:
    spec = util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise StartError("sglang", "it is not installed", "disagg setup cpu, or disagg setup gpu")
    return Path(next(iter(spec.submodule_search_locations))).parent
