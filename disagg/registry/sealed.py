"""What is written in a store for those who know the deployment's secret, and for nobody else who can read the store.

Way:   controller -> [Secret.seal] -> a SealedSpec in the store -> [Secret.opened] -> `disagg frontend`
In:    the secret that the configuration names; out: keys made of it, one for each use and each deployment, so that what
       is known of one tells nothing of another
Fails: StartError: what is sealed is of another secret, or was altered
"""

from __future__ import annotations

import hmac
import os

from disagg.errors import StartError
from disagg.registry.keys import Keys

NONCE_BYTES = 12


class Secret:
    """`text`: as the configuration, or DISAGG_SECRET, says it."""

    def __init__(self, text: str, keys: Keys) -> None:
        self._text, self._name = text.encode(), f"{keys.namespace}/{keys.deployment}"

    @property
    def plane(self) -> bytes:
        """What frontends, hosts and controller prove to each other."""
        return self._made_for("plane")

    def seal(self, text: bytes) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # only who has a secret needs it

        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._made_for("spec")).encrypt(nonce, text, None)

    def opened(self, sealed: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            return AESGCM(self._made_for("spec")).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)
        except (InvalidTag, ValueError):  # ValueError: it is too short for a nonce
            what = f"is not the security.secret of deployment {self._name}"
            raise StartError("secret", what, "give this host the same one") from None

    def _made_for(self, use: str) -> bytes:
        return hmac.digest(self._text, f"disagg {use} 1 {self._name}".encode(), "sha256")
