"""What is said to be tried first: lines that a shell takes, for the deployment at hand. They are run in
tests/engines/test_serving.py."""

from __future__ import annotations

import ast
import shlex

import pytest

from disagg.cluster.first_steps import first_steps
from disagg.load import parse_config
from disagg.planning.plan import resolve

KEY = "a-key-0123456789abc"
PAIR = 'version: 1\ndevice: simulated\nmodel: {path: /m, name: "it\'s"}\nprefill: {}\ndecode: {}\n'
EMBEDS = "version: 1\ndevice: simulated\nmodel: {path: /m, name: e}\nembedding: {}\n"


@pytest.mark.parametrize(
    ("yaml", "path", "asks_for_a_key"),
    [
        (PAIR, "/v1/chat/completions", False),
        (EMBEDS, "/v1/embeddings", False),
        (PAIR + f"security: {{api_keys: [{KEY}]}}", "/v1/chat/completions", True),
    ],
)
def test_a_shell_takes_each_line(yaml: str, path: str, *, asks_for_a_key: bool) -> None:
    said = [line.partition(":")[::2] for line in first_steps(resolve(parse_config(yaml), "simulated"))]
    lines = {name: shlex.split(line) for name, line in said}
    assert list(lines) == ["ask it", "Python", "look", "page", "end it"]
    assert lines["ask it"][2] == f"http://127.0.0.1:8000{path}"
    (program,) = lines["Python"][2:]
    ast.parse(program)
    assert (
        ("DISAGG_API_KEY" in program) == ("Authorization: Bearer $DISAGG_API_KEY" in lines["ask it"]) == asks_for_a_key
    )
    assert KEY not in str(lines)
