"""Every rule, in the order its problems are told, and the two doors: all problems, all warnings.

Way:   Subject -> [problems, warnings] -> ConfigError and the log, before anything starts
"""

from __future__ import annotations

from collections.abc import Iterable

from disagg.errors import Problem
from disagg.preflight import (
    access_rules,
    environment_rules,
    expert_rules,
    file_rules,
    grammar_rules,
    graph_rules,
    kv_rules,
    lane_rules,
    limit_rules,
    memory_rules,
    node_rules,
    parallel_rules,
    parser_rules,
    range_rules,
    template_rules,
    tls_rules,
)
from disagg.preflight.rule import Rule
from disagg.preflight.subject import Subject

TOPICS = (  # in the order their problems are told
    range_rules,
    kv_rules,
    parallel_rules,
    expert_rules,
    limit_rules,
    environment_rules,
    parser_rules,
    node_rules,
    memory_rules,
    lane_rules,
    file_rules,
    grammar_rules,
    template_rules,
    tls_rules,
)
RULES = tuple(each for topic in TOPICS for each in vars(topic).values() if isinstance(each, Rule))


def problems(subject: Subject, rules: Iterable[Rule]) -> list[Problem]:
    found = (problem for rule in rules for problem in rule.problems(subject))
    return list(dict.fromkeys(found))


def warnings(subject: Subject) -> list[str]:
    return [
        *parallel_rules.tp_warnings(subject),
        *limit_rules.context_warnings(subject),
        *graph_rules.graph_warnings(subject),
        *grammar_rules.grammar_warnings(subject),
        *access_rules.open_access_warnings(subject),
    ]
