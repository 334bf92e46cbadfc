"""What a deployment publishes for frontends on other hosts, if its configuration allows any: `security.secret`, and a
registry that others can read.

Way:   serve -> [secret_of, for_elsewhere] -> the controller's registry -> `disagg frontend` (lone_frontend.py)
"""

from __future__ import annotations

from disagg.config.schema import Deployment
from disagg.frontend.published import published, sealed
from disagg.frontend.spec import FrontendSpec
from disagg.registry.keys import Keys
from disagg.registry.records import SealedSpec
from disagg.registry.sealed import Secret


def secret_of(deployment: Deployment) -> Secret | None:
    """None: each run makes one that nobody else knows."""
    said = deployment.security.secret
    return Secret(said.get_secret_value(), Keys(deployment.namespace, deployment.name)) if said is not None else None


def for_elsewhere(spec: FrontendSpec, deployment: Deployment, secret: Secret) -> SealedSpec:
    """`spec`: of the controller's own frontends."""
    origins_said = deployment.frontend.cors.origins is not None
    return sealed(published(spec, deployment.registry.lease_s, origins_said=origins_said), secret)
