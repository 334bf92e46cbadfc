"""What grammars need: a tokenizer that xgrammar reads as it is meant, and the same settings on both sides.

Way:   Subject -> [these rules] -> Problems
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.errors import Problem
from disagg.preflight.kv_rules import differences
from disagg.preflight.rule import rule
from disagg.preflight.subject import Subject

SETTINGS = (
    "grammar_backend",
    "constrained_json_disable_any_whitespace",
    "constrained_json_whitespace_pattern",
    "constrained_json_max_whitespace_cnt",
)


@rule("seen here", "say the same on every prefill and decode pool")
def _grammar_settings(subject: Subject) -> Iterator[Problem]:
    """each constrained request is refused by one side, or decode does not take the token that prefill began with"""
    return differences(subject.split, *SETTINGS)


@rule("xgrammar's TokenizerInfo", "say grammar_backend: llguidance, or none if no client asks for grammars")
def _grammar_tokens(subject: Subject) -> Iterator[Problem]:
    """answers under a grammar with a space in it break off: xgrammar knows a tokenizer's tokens by its decoder, by
    ByteFallback (of pieces) before ByteLevel (of bytes), and takes all others word for word"""
    if all(pool.get("grammar_backend") != "xgrammar" for pool in subject.pools):
        return
    for node in subject.used_nodes:
        steps = None if node.files is None else node.files.decoder
        if node.files is None or steps is None or ("ByteLevel" in steps) != ("ByteFallback" in steps):
            continue
        what = f"{node.files.folder} on node {node.name}: the decoder of tokenizer.json is {', '.join(steps) or 'none'}"
        would_do = "leave ByteLevel alone there (`disagg model get` makes its models so), or say grammar_backend: none"
        yield Problem("model.path", what, would_do if "ByteLevel" in steps else "")
        return  # all nodes have the same, which is a rule of its own
