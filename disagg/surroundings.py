"""Environment variables that others set: which of them our processes get, which are left out, which are refused.

Way:   `disagg serve` -> [refuse]; driver, NodeAgent -> [of_our_processes] -> frontends, engines
Why:   our processes talk with one another by address. Through a company's proxy they could not reach each other, and
       the ranks and addresses that a batch system or torchrun sets are meant for another program
Fails: ConfigError names each variable with its value, what is wrong and what would do
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from disagg.errors import ConfigError, Problem

PROXIES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "ws_proxy", "wss_proxy", "no_proxy"})
# Of mpirun, srun, PBS and torchrun. torch takes TORCHELASTIC_… for a store that runs already, SGLang MASTER_ADDR and
# LOCAL_RANK for its own.
_LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "I_MPI_", "MV2_", "MPI_", "HYDRA_", "SLURM_", "PBS_", "TORCHELASTIC_")
RANKS = frozenset(
    {
        *("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"),
        *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE"),
    }
)
# A warning of a library would end an engine; an engine would wait for a person.
_OF_PYTHON = frozenset({"PYTHONWARNINGS", "PYTHONINSPECT", "PYTHONSTARTUP"})
_OF_OPERATORS = frozenset({"DISAGG_SECRET"})  # what ours prove to each other is made of it (disagg/registry/sealed.py)
_ALWAYS = {
    "PYTHONSAFEPATH": "1",  # nothing is imported from the folder where this was started
    "PYTHONUTF8": "1",  # files of models and templates are UTF-8, whatever the locale says
}


def of_our_processes(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a frontend or an engine, without what is left out. A pool's `env` is applied later, over
    it."""
    return {name: value for name, value in environment.items() if not _is_of_others(name)} | _ALWAYS


def left_out(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables that are left out. No values: a proxy's may hold a password."""
    return sorted(name for name in environment if _is_of_others(name))


def _is_of_others(name: str) -> bool:
    of_others = RANKS | _OF_PYTHON | _OF_OPERATORS
    return name.lower() in PROXIES or name in of_others or name.startswith(_LAUNCHERS)


def refuse(environment: Mapping[str, str]) -> None:
    """Raises ConfigError with all variables that cannot be used."""
    if problems := tuple(_problems(environment)):
        raise ConfigError("the environment", problems)


def _problems(environment: Mapping[str, str]) -> Iterator[Problem]:
    if said := environment.get("TMPDIR"):
        if why := _why_not_written(Path(said)):
            yield Problem(f"TMPDIR={said}", why, "set it to a folder that can be written, or unset it")
        elif not os.path.isabs(said):
            yield Problem(
                f"TMPDIR={said}", "is a relative path, and Ray's processes have folders of their own", "say it whole"
            )
    cache = Path(environment.get("DISAGG_CACHE") or "~/.cache/disagg")
    name = "DISAGG_CACHE" if environment.get("DISAGG_CACHE") else "HOME"
    try:
        cache = cache.expanduser()
    except RuntimeError:
        yield Problem("HOME", "is not set, and this user has none; models and logs would go there", "set DISAGG_CACHE")
        return
    if why := _why_not_made(cache):
        what = f"models and logs go to {cache}, which {why}"
        yield Problem(f"{name}={environment.get(name, '')}", what, "set DISAGG_CACHE to a folder that can be written")


def _why_not_made(folder: Path) -> str:
    """Empty: it is there and can be written, or can be made."""
    for each in (folder, *folder.parents):
        if each.exists() or each.is_symlink():
            why = _why_not_written(each)
            return why if each == folder or not why else f"cannot be made: {each} {why}"
    return ""


def _why_not_written(folder: Path) -> str:
    if not folder.exists():
        return "is not there"
    if not folder.is_dir():
        return "is no folder"
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"cannot be written: {error.strerror}"
