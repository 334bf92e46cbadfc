"""Finds the handler of a path, however its slashes were typed; a path without one gets a 404 with a suggestion.

Way:   request's path -> [Routes.find] -> Route -> keys -> handler
Fails: never; `unknown` makes the 404 that names the path that was probably meant
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from disagg.errors import BadRequest, RequestError
from disagg.frontend.exchange import Exchange
from disagg.frontend.keys import Caller, Right
from disagg.frontend.responses import error_body

VERSION = "/v1"
READS = ("GET", "HEAD")
SHOWN_CHARACTERS = 100  # of a path, in an error

Handler = Callable[[Exchange, str, Caller], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    right: Right  # what its caller must have
    handler: Handler
    error_body: Callable[[RequestError], bytes] = error_body
    also: tuple[str, ...] = ()  # methods that do the same

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.method, *self.also)

    def acts(self, method: str) -> bool:
        """Whether the method changes what the deployment does, beyond an answer, for its operators."""
        return self.right is Right.OPERATE and (method not in READS or method in self.also)

    def takes(self, method: str) -> bool:
        """HEAD asks for a GET's answer less the body; it is to change nothing, so a GET in `also` is none to it."""
        return method in self.methods or (method == "HEAD" and self.method == "GET")


class Routes:
    def __init__(self, routes: Mapping[str, Route]) -> None:
        """What follows a path that ends with a slash is a name, and is given to the handler."""
        self.all = routes
        self._for_clients = [path for path in routes if path.startswith(VERSION) and not path.endswith("/")]

    def find(self, path: str) -> tuple[Route, str] | None:
        """A trailing slash and doubled ones change nothing: base URLs are typed, and joined, in all ways."""
        return self._find(path) or self._find(re.sub("/{2,}", "/", path))

    def unknown(self, path: str) -> BadRequest:
        shown = path[:SHOWN_CHARACTERS]
        meant = self._probably_meant(path)
        if path.startswith(VERSION * 2):
            hint = f"the path has {VERSION} twice: a base URL ends with one {VERSION}"
        elif meant and path.rstrip("/").endswith(meant.removeprefix(VERSION)):
            hint = f"did you mean {meant}? A base URL ends with {VERSION}"
        elif meant:
            hint = f"did you mean {meant}?"
        else:
            hint = f"this serves {', '.join(self._for_clients)}"
        return BadRequest(None, "unknown_url", f"there is no {shown} here; {hint}", http_status=404)

    def _find(self, path: str) -> tuple[Route, str] | None:
        whole = path.rstrip("/")
        if (found := self.all.get(whole)) is not None:
            return found, ""
        prefix = next((each for each in self.all if each.endswith("/") and whole.startswith(each)), None)
        return None if prefix is None else (self.all[prefix], whole.removeprefix(prefix))

    def _probably_meant(self, path: str) -> str | None:
        asked = re.sub("/{2,}", "/", path.lower()[: 2 * SHOWN_CHARACTERS]).rstrip("/")
        for each in self._for_clients:  # the longest first: /chat/completions ends with /completions too
            if asked.endswith(each.removeprefix(VERSION)):
                return each
        return next(iter(get_close_matches(asked, self._for_clients, n=1, cutoff=0.8)), None)
