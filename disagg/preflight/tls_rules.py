"""The endpoint's certificate: there, readable, of its key, and valid today.

Way:   Subject -> [this rule] -> Problems that name the file
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from disagg.config.tls import problems
from disagg.errors import Problem
from disagg.preflight.rule import rule
from disagg.preflight.subject import Subject


@rule("", "name PEM files of a certificate that is valid, and of its key")
def _tls(subject: Subject) -> Iterator[Problem]:
    """the frontend could not start, after engines have loaded for minutes; or every client would refuse it"""
    tls = subject.setting("frontend.tls")
    if isinstance(tls, Mapping) and all(isinstance(tls.get(name), str) for name in ("cert", "key")):
        for bad in problems(tls["cert"], tls["key"], tls.get("client_ca") or ""):
            yield Problem(bad.path, bad.what, bad.would_do)
