"""The page's own files: HTML, CSS and JavaScript as they lie beside this module.

Way:   GET /disagg/, /disagg/page/NAME -> [FILES] -> HTTP
Owns:  their bytes, read once; a name that is no key here is no file, so no path leads out of the folder
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

INDEX = "index.html"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}


class PageFile(NamedTuple):
    content_type: bytes
    etag: bytes
    body: bytes


def _read(path: Path) -> PageFile:
    body = path.read_bytes()
    return PageFile(_TYPES[path.suffix], b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode(), body)


FILES = {path.name: _read(path) for path in (Path(__file__).parent / "static").iterdir()}
