"""Warnings about an endpoint that anybody can reach. Not refusals, as some deployments want that: `security.insecure`
says so.

Way:   Subject -> [open_access_warnings] -> `disagg check`, and the log of `disagg serve`
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.config.addresses import is_loopback_host
from disagg.preflight.subject import Subject


def open_access_warnings(subject: Subject) -> Iterator[str]:
    host = str(subject.setting("frontend.host", "127.0.0.1"))
    if is_loopback_host(host) or subject.setting("security.insecure") or subject.setting("security.keys_file"):
        return
    if not subject.setting("security.api_keys"):
        yield (
            f"frontend.host: others reach {host}, and there are no keys: whoever does may use the model and read "
            "/disagg/status; set security.api_keys and security.admin_keys"
        )
    elif not subject.setting("security.admin_keys"):
        yield (
            f"frontend.host: others reach {host}, and each of security.api_keys reads /disagg/status; set "
            "security.admin_keys"
        )
