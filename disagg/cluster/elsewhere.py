"""What a deployment publishes for frontends on other hosts, if its configuration allows any: `security.secret`, and a
registry that others can read.

Way:   serve -> [secret_of, for_elsewhere] -> the controller's registry -> `disagg frontend` (lone_frontend.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from disagg.config.schema import Deployment
from disagg.frontend.published import Source, published, sealed
from disagg.frontend.spec import FrontendSpec
from disagg.models.digest import text_digest
from disagg.planning.plan import Plan
from disagg.registry.keys import Keys
from disagg.registry.records import SealedSpec
from disagg.registry.sealed import Secret


def secret_of(deployment: Deployment) -> Secret | None:
    """None: each run makes one that nobody else knows."""
    said = deployment.security.secret
    return Secret(said.get_secret_value(), Keys(deployment.namespace, deployment.name)) if said is not None else None


def for_elsewhere(spec: FrontendSpec, plans: Sequence[Plan], folders: Sequence[Path], secret: Secret) -> SealedSpec:
    """`spec`: of the controller's own frontends."""
    deployment = plans[0].deployment
    sources = [_source(plan, folder) for plan, folder in zip(plans, folders, strict=True)]
    origins_said = deployment.frontend.cors.origins is not None
    return sealed(published(spec, sources, deployment.registry.lease_s, origins_said=origins_said), secret)


def _source(plan: Plan, folder: Path) -> Source:
    digest = "" if plan.model.tokenization == "engine" else text_digest(folder)
    return Source(plan.model.path, plan.model.revision, digest)
