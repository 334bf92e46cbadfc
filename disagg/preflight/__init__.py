"""Refuses what would fail later: rules over a configuration, its model and the nodes it will run on."""

from disagg.preflight.all_rules import RULES
from disagg.preflight.api import check, check_text, check_warnings
from disagg.preflight.node_facts import MeasuredLane, ModelFiles, NodeFacts
from disagg.preflight.rule import Rule
from disagg.preflight.subject import Subject

__all__ = [
    "RULES",
    "MeasuredLane",
    "ModelFiles",
    "NodeFacts",
    "Rule",
    "Subject",
    "check",
    "check_text",
    "check_warnings",
]
