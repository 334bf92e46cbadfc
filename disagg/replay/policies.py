"""Policies by name, or by import path."""

from __future__ import annotations

from disagg.routing.policy import LEAST_LOADED, Policy, load_policy

NAMES = {"least_loaded": LEAST_LOADED}


def policy_named(name: str) -> Policy:
    """Raises StartError where there is no such policy."""
    return load_policy(NAMES.get(name, name))
