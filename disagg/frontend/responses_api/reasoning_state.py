"""Reasoning as the opaque text that clients keep for us (`reasoning.encrypted_content`).

Way:   reasoning text -> [sealed] -> the client -> [unsealed] -> the history of a later request

Clients that ask for nothing to be stored send this back instead of the text. Here it is the text: nothing is secret.
"""

from __future__ import annotations

import base64
import binascii

_PREFIX = "disagg-1."


def sealed(text: str) -> str:
    return _PREFIX + base64.urlsafe_b64encode(text.encode()).decode()


def unsealed(said: str) -> str:
    """Empty for what another server sealed: nobody here can read it."""
    if not said.startswith(_PREFIX):
        return ""
    try:
        return base64.b64decode(said.removeprefix(_PREFIX), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
