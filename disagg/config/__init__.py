"""The deployment's YAML: `load_config` reads and checks it, `resolve` says which engines it makes."""

from disagg.config.door import Frontend
from disagg.config.load import load_config, parse_config
from disagg.config.plan import EnginePlan, Plan, device_of, resolve, resolve_plan
from disagg.config.schema import Deadlines, Deployment, Model, Pool, Ray, Resources

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
    "resolve",
    "resolve_plan",
]
