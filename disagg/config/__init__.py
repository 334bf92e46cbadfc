"""The deployment's YAML: `load_config` reads and checks it, `resolve` says which engines it makes."""

from disagg.config.load import load_config, parse_config
from disagg.config.plan import EnginePlan, Plan, device_of, render, resolve, resolve_plan, to_json
from disagg.config.schema import Deadlines, Deployment, Frontend, Model, Pool, Ray, Resources

__all__ = [
    "Deadlines",
    "Deployment",
    "EnginePlan",
    "Frontend",
    "Model",
    "Plan",
    "Pool",
    "Ray",
    "Resources",
    "device_of",
    "load_config",
    "parse_config",
    "render",
    "resolve",
    "resolve_plan",
    "to_json",
]
