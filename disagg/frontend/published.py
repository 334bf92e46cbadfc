"""What a frontend on another host has to be told: the FrontendSpec of the controller's own, sealed.

Way:   serve -> [published] -> the registry -> [opened] -> `disagg frontend`, which makes it fit its host (on_host.py)
Owns:  what is left out: addresses of the controller and its way to the store, which a frontend elsewhere finds itself
Fails: StartError: another secret, or another version of disagg, whose words may mean something else
"""

from __future__ import annotations

import msgspec

from disagg.errors import StartError
from disagg.frontend.spec import FrontendSpec
from disagg.installed import installed_version
from disagg.registry.records import SealedSpec
from disagg.registry.sealed import Secret

VERSION = installed_version("disagg") or "unknown"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    spec: FrontendSpec
    lease_s: float
    origins_said: bool  # in the configuration; else they follow from where a frontend listens


def published(spec: FrontendSpec, lease_s: float, *, origins_said: bool) -> Published:
    bare = msgspec.structs.replace(spec, registry="", control="", shared=None, peer_host="", has_peers=True)
    return Published(spec=bare, lease_s=lease_s, origins_said=origins_said)


def sealed(what: Published, secret: Secret) -> SealedSpec:
    return SealedSpec(version=VERSION, sealed=secret.seal(msgspec.json.encode(what)))


def opened(record: SealedSpec, secret: Secret) -> Published:
    """Raises StartError."""
    if record.version != VERSION:
        what = f"the deployment runs disagg {record.version}, and this is {VERSION}"
        raise StartError("registry", what, "install the same version here")
    try:
        return msgspec.json.decode(secret.opened(record.sealed), type=Published)
    except msgspec.DecodeError as error:
        what = f"the deployment runs another disagg {VERSION}: {error}"
        raise StartError("registry", what, "install the same here") from None
