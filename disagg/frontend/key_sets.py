"""The keys of a deployment: those that it was started with, and those of a file that may change under it.

Way:   KeyLists of the YAML -> [key_set] -> FrontendSpec; `security.keys_file` -> [KeyFile] -> Keys, Meters
Owns:  what it has seen of the file; limits of a key that stays go on counting
Fails: StartError for a file that cannot be used at the start. Later the keys stay as they were, and the log says so:
       also where the file would leave no API key at all, as then everybody might use the model, or no admin key where
       there were some, as then clients might operate it; and a file that everybody may write
"""

from __future__ import annotations

import asyncio
import logging
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from disagg.config.frontend import ApiKey, KeyLists
from disagg.config.section import Section
from disagg.config.validation_errors import problems_of
from disagg.config.yaml_text import read_file, read_tree
from disagg.errors import ConfigError, Problem, StartError
from disagg.frontend.file_stamps import stamps
from disagg.frontend.key_limits import LimitedKey, Meters
from disagg.frontend.keys import Keys

log = logging.getLogger(__name__)

LOOK_S = 5.0
ROOT = 0
WOULD_DO = "make it YAML with api_keys and admin_keys, as below `security`"


class KeySet(NamedTuple):
    bare: tuple[str, ...] = ()
    limited: tuple[LimitedKey, ...] = ()
    admin: tuple[str, ...] = ()

    def and_of(self, more: KeySet) -> KeySet:
        return KeySet(self.bare + more.bare, self.limited + more.limited, self.admin + more.admin)


def key_set(lists: KeyLists) -> KeySet:
    return KeySet(
        tuple(each.key.get_secret_value() for each in lists.api_keys if not each.is_metered),
        tuple(_limited(each) for each in lists.api_keys if each.is_metered),
        tuple(key.get_secret_value() for key in lists.admin_keys),
    )


def _limited(each: ApiKey) -> LimitedKey:
    return LimitedKey(
        key=each.key.get_secret_value(),
        name=each.known_as,
        requests_per_minute=each.requests_per_minute or 0,
        tokens_per_minute=each.tokens_per_minute or 0,
        concurrent=each.concurrent or 0,
        models=each.models,
        expires_s=each.expires.timestamp() if each.expires else 0.0,
    )


class _File(Section):
    """As a YAML says it: what is wrong is told in the same words, and without what should be a key."""

    security: KeyLists


class KeyFile:
    """`started`: the keys that are no file's. Raises StartError."""

    def __init__(self, path: str, started: KeySet, keys: Keys, meters: Meters) -> None:
        self._path, self._started, self._keys, self._meters = Path(path).expanduser(), started, keys, meters
        self._seen = stamps([path])
        try:
            self._take()
        except ConfigError as error:
            raise StartError("security.keys_file", "; ".join(map(str, error.problems)), WOULD_DO) from None

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Takes it up if it has changed."""
        now = stamps([str(self._path)])
        if now == self._seen:
            return
        self._seen = now
        try:
            self._take()
        except ConfigError as error:
            log.error("%s: keys stay as they were: %s", self._path, "; ".join(map(str, error.problems)))
            return
        log.info("keys are those of %s, as it is now", self._path)

    def _take(self) -> None:
        """Raises ConfigError."""
        every = self._started.and_of(key_set(_read(self._path)))
        problems = list(_problems(every, str(self._path), had_admins=self._keys.has_admins))
        if problems:
            raise ConfigError(str(self._path), tuple(problems))
        self._keys.hold(every.bare, every.limited, every.admin)
        self._meters.hold(every.limited)


def _read(path: Path) -> KeyLists:
    tree, problems = read_tree(read_file(path, partial(_check, path)), str(path), is_secret=True)
    if problems:
        raise ConfigError(str(path), tuple(problems))
    as_said = {"security": {} if tree is None else tree}
    try:
        return _File.model_validate(as_said).security
    except ValidationError as error:
        raise ConfigError(str(path), tuple(problems_of(error, as_said, _File))) from None


def _check(path: Path, descriptor: int) -> None:
    """Whose it is, and who else may read and write it. Raises ConfigError, and OSError."""
    found = os.fstat(descriptor)
    if found.st_mode & 0o002:
        what = "can be written by all users of this machine, who might put a key in"
        raise ConfigError(str(path), (Problem(str(path), what, "chmod o-w"),))
    if found.st_mode & 0o004:
        log.warning("%s can be read by all users of this machine: chmod o-r", path)
    if found.st_mode & 0o020:
        log.warning("%s can be written by its group: chmod g-w", path)
    if found.st_uid not in (ROOT, os.geteuid()):
        log.warning("%s is another user's, who might put a key in: chown", path)


def _problems(every: KeySet, path: str, *, had_admins: bool) -> list[Problem]:
    clients = [*every.bare, *(each.key for each in every.limited)]
    names = [each.name for each in every.limited]
    found = []
    if not clients:
        found.append(Problem(path, "has no api_keys, nor has the YAML: everybody might use the model", "put one in"))
    if had_admins and not every.admin:
        found.append(Problem(path, "has no admin_keys, and there were some: clients might operate it", "put one in"))
    if len(set(clients + list(every.admin))) < len(clients) + len(every.admin):
        found.append(Problem(path, "has a key twice, or one that the YAML has", "leave one out"))
    if len(set(names)) < len(names):
        found.append(Problem(path, "has a name twice, or one that the YAML has", "give each key its own name"))
    return found
