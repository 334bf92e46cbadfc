"""The aggregated worker role: an engine that reads prompts and makes tokens, and needs no other for a request."""

from __future__ import annotations

from typing import ClassVar

from disagg.roles import Role
from disagg.worker_role import WorkerRole


class AggregatedRole(WorkerRole):
    """SGLang as it comes: what the pool says is all that it is given."""

    name: ClassVar = Role.AGGREGATED
