"""What a plan comes to for a frontend, and for an engine's host that has the tokenizer.

Way:   preparing.py, change/ -> [model_spec, frontend_spec, shared_by_engines] -> FrontendSpec, Setting
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec

from disagg.cluster.setting import OfModel
from disagg.config.frontend import page_origins
from disagg.coordinator.limits import Limits
from disagg.frontend.key_sets import key_set
from disagg.frontend.readers import PROGRAM, READ_S, Order
from disagg.frontend.spec import FrontendSpec, ModelSpec, TracesSpec
from disagg.frontend.tls import TlsSpec
from disagg.host_spec import TextSpec
from disagg.models.digest import text_digest
from disagg.planning.plan import Plan
from disagg.registry.shared import Shared
from disagg.role_table import ROLES
from disagg.routing.cost.from_shape import NO_PRIOR
from disagg.routing.cost.prior import Prior
from disagg.tokenizer.overrides import Overrides


def shared_by_engines(plan: Plan, folder: Path) -> OfModel:
    text = _text_spec(plan, folder) if plan.model.tokenization == "engine" else None
    return OfModel(str(folder), text, plan.block_tokens if plan.tells_cache else 0)


def model_spec(plan: Plan, folder: Path, prior: Prior = NO_PRIOR) -> ModelSpec:
    embeds = {ROLES[engine.role].embeds for engine in plan.engines}
    return ModelSpec(
        path=str(folder),
        name=plan.model.name,
        group=plan.deployment.key,
        prior=prior,
        block_tokens=plan.block_tokens,
        kv_events=plan.tells_cache,
        generates=False in embeds,
        embeds=True in embeds,
        tool_call_parser=plan.model.tool_call_parser,
        reasoning_parser=plan.model.reasoning_parser,
        overrides=_overrides(plan),
        tokenization=plan.model.tokenization,
        said_path=plan.model.path,
        revision=plan.model.revision,
        digest=text_digest(folder) if plan.deployment.security.secret is not None else "",
    )


def frontend_spec(
    plan: Plan, models: Sequence[ModelSpec], shared: Shared | None = None, *, is_quiet: bool = False
) -> FrontendSpec:
    """But for the controller's addresses. `plan`: any model's; what it says is all models'. `models`: the only one."""
    deadlines, security = plan.deadlines, plan.deployment.security
    said = deadlines.model_dump() | plan.deployment.routing.model_dump()
    keys = key_set(security)
    limits = Limits(**{each.name: said[each.name] for each in dataclasses.fields(Limits)})
    return FrontendSpec(
        registry="",
        control="",
        shared=shared,
        host=plan.frontend.host,
        port=plan.frontend.port,
        body_limit_bytes=plan.frontend.body_limit_mib << 20,
        refuses_unknown=plan.frontend.unknown_fields == "refuse",
        connections_max=plan.frontend.connections_max,
        held_limit_bytes=plan.frontend.held_limit_mib << 20,
        models=tuple(models),
        number=0,
        stop_s=deadlines.stop_s,
        limits=limits,
        policy=str(plan.deployment.routing.policy),
        simulated=plan.device == "simulated",
        api_keys=keys.bare,
        limited_keys=keys.limited,
        admin_keys=keys.admin,
        keys_file=_absolute(security.keys_file or ""),
        open_metrics=security.open_metrics,
        origins=page_origins(plan.frontend, security),
        origins_age_s=plan.frontend.cors.max_age_s,
        says_what_goes_on=not is_quiet,
        metric_aliases=tuple(dict.fromkeys(plan.deployment.telemetry.metric_aliases)),
        tls=TlsSpec(*map(_absolute, (tls.cert, tls.key, tls.client_ca))) if (tls := plan.frontend.tls) else None,
        traces=_traces(plan),
    )


def _absolute(file: str) -> str:
    """A relative one is of this folder: frontends may run in another. `~` is anybody's; empty: there is none."""
    return file if not file or file.startswith("~") else str(Path(file).absolute())


def _traces(plan: Plan) -> TracesSpec | None:
    traces = plan.deployment.telemetry.traces
    if traces is None:
        return None
    headers = {name: value.get_secret_value() for name, value in traces.headers.items()}
    service = plan.deployment.name
    return TracesSpec(endpoint=traces.endpoint, sample_ratio=traces.sample_ratio, headers=headers, service=service)


def _overrides(plan: Plan) -> Overrides:
    return Overrides(
        sampling_defaults=plan.model.sampling_defaults.model_dump(exclude_none=True),
        chat_template=plan.model.chat_template,
        chat_template_kwargs=plan.model.chat_template_kwargs,
    )


def _text_spec(plan: Plan, model_path: Path) -> TextSpec:
    order = Order(
        folder=str(model_path),
        model=plan.model.name,
        read_s=READ_S,
        overrides=_overrides(plan),
        refuses_unknown=plan.frontend.unknown_fields == "refuse",
        is_host=True,
        trust_remote_code=plan.model.trust_remote_code,
    )
    return TextSpec(str(model_path), PROGRAM, msgspec.msgpack.encode(order), plan.model.trust_remote_code)
