"""A name or a value that is refused does not make other rules advise about the default that would stand there."""

import pytest

from disagg.errors import ConfigError
from disagg.load import parse_config

CONFIG = """
version: 1
device: cuda
model: {path: meta-llama/Llama-3.3-70B-Instruct}
prefill: {nodes: 2, engine: {tp_size: 16, page_size: 64}}
decode: {nodes: 2, engine: {tp_size: 16, page_size: 64}}
"""


def told(old: str, new: str) -> list[str]:
    assert old in CONFIG
    with pytest.raises(ConfigError) as refused:
        parse_config(CONFIG.replace(old, new, 1))
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(
    ("old", "new", "remedy"),
    [
        ("tp_size: 16", "tensor-parallel-size: 16", "say tp_size"),
        ("tp_size: 16", "tp: 16", "tp_size"),
        ("tp_size: 16", "tp_sise: 16", "did you mean tp_size?"),
        ("tp_size: 16", 'tp_size: "16"', "take the quotes off"),
        ("page_size: 64", "page-sise: 64", "did you mean page_size?"),
        ("page_size: 64", 'page_size: "64"', "take the quotes off"),
        ("page_size: 64", "page_size: [64]", "must be a whole number"),
    ],
)
def test_one_mistake_is_told_as_one(old: str, new: str, remedy: str) -> None:
    (problem,) = told(old, new)
    assert remedy in problem


def test_a_mistake_behind_a_refused_name_is_told_too() -> None:
    """As it is meant, 6 ranks over 4 nodes cannot be shared out."""
    problems = told("nodes: 2, engine: {tp_size: 16,", "nodes: 4, engine: {tensor-parallel-size: 6,")
    assert any("tensor_parallel_size" in problem for problem in problems)
    assert any(problem.startswith("prefill.nodes: is 4, and tp_size 6") for problem in problems)
