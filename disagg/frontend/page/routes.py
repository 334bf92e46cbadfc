"""The routes of the page: its files for everybody, what it shows for who may see the status.

Way:   browser -> [PageRoutes] -> files.py; browser -> [PageRoutes.events] <- Feed
Out:   files with a policy under which the browser runs and loads nothing but these; server-sent events
Fails: BadRequest (404) for a file that is not there, FrontendFull for a page too many; a client that does not read is
       given up by the server as any other (docs/limits.md)
"""

from __future__ import annotations

from disagg.errors import BadRequest
from disagg.frontend.exchange import EVENT_STREAM, Exchange, Header
from disagg.frontend.keys import Caller, Keys, Right
from disagg.frontend.page.feed import Feed
from disagg.frontend.page.files import FILES, INDEX

# No inline script or style, nothing from elsewhere, in nobody's frame. Trusted Types: a text can never become HTML.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: tuple[Header, ...] = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),  # kept, and asked for anew by its ETag: an update shows at the next visit
)


class PageRoutes:
    def __init__(self, feed: Feed, keys: Keys) -> None:
        self._feed, self._keys = feed, keys

    async def page(self, exchange: Exchange, _: str, caller: Caller) -> None:
        if not exchange.path.endswith("/"):  # what the page names is relative to its folder
            await exchange.call.respond(308, [(b"location", b"disagg/"), *exchange.answer_headers], b"")
            return
        await self.file(exchange, INDEX, caller)

    async def file(self, exchange: Exchange, name: str, caller: Caller) -> None:
        found = FILES.get(name)
        if found is None:
            raise BadRequest(None, "unknown_url", f"there is no {exchange.path[:100]} here", http_status=404)
        exchange.answer_headers += [*HEADERS, (b"etag", found.etag)]
        if exchange.request_header(b"if-none-match") == found.etag:
            await exchange.call.respond(304, exchange.answer_headers, b"")
        else:
            await exchange.answer(200, found.body, found.content_type)

    async def events(self, exchange: Exchange, _: str, caller: Caller) -> None:
        """Until the client leaves, its key opens this no longer, or the frontend stops. Of what a client is too slow
        for it gets the newest alone."""
        if exchange.method == "HEAD":
            await exchange.answer(200, b"", EVENT_STREAM)
            return
        exchange.answer_headers.append((b"x-accel-buffering", b"no"))  # nginx would hold the stream back
        owner = None if caller.sees_all else caller.owner
        with self._feed.viewer(owner) as viewer, exchange.while_connected():
            while events := await viewer.next():
                if not self._is_as_before(exchange, caller):
                    break
                exchange.write_events(events)
                await exchange.call.writable()
        exchange.write_events(
            b": the key opens this no longer\n\n" if events else b": the frontend stops\n\n", last=True
        )

    def _is_as_before(self, exchange: Exchange, caller: Caller) -> bool:
        """Keys come and go while a page is open."""
        try:
            return self._keys.check(exchange, Right.STATUS) == caller
        except BadRequest:
            return False
