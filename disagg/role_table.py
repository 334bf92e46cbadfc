"""The roles that there are, by name, in the order in which their engines are numbered and shown."""

from __future__ import annotations

from decode.role import DecodeRole
from disagg.aggregated import AggregatedRole
from disagg.embedding import EmbeddingRole
from disagg.roles import Role
from disagg.worker_role import WorkerRole
from prefill.role import PrefillRole

ROLES: dict[Role, WorkerRole] = {
    role.name: role for role in (PrefillRole(), DecodeRole(), AggregatedRole(), EmbeddingRole())
}
