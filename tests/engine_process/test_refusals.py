"""What SGLang and its grammar backends say of a bad grammar becomes its reason alone; the messages are real ones, of
xgrammar 0.2.1, llguidance 1.9.1 and outlines 0.1.11 under SGLang 0.5.20."""

from __future__ import annotations

import pytest

from disagg.sglang.refusals import LONGEST, for_the_client

UNTOLD = "it is no valid one, or the engines' grammar backend does not take its kind; an operator would say"
AT = "[19:44:41] /project/cpp/"
CHECK = "grammar_compiler.cc:1153: Check failed: (std::holds_alternative<Grammar>(result)) is false: "
SHOWN = """at 1(8): invalid regex "(" (in regex): regex parse error:
    (
    ^
error: unclosed group
   1 | start: /(/
              ^"""


@pytest.mark.parametrize(
    ("kind", "place", "told"),
    [
        ("json", f"{AT}json_schema_converter.cc:2999: ", 'Unsupported type "nonsense"'),
        ("regex", f"{AT}regex_converter.cc:75: ", "Regex parsing error at position 3: Lookahead is not supported yet."),
        ("ebnf", f"{AT}grammar_parser.cc:102: ", "EBNF lexer error at line 1, column 6: Unexpected character: ':'"),
        ("structural_tag", AT + CHECK, "Invalid structural tag error: Format type not recognized: x"),
        ("json", "", "Unsatisfiable schema: minimum (5) is greater than maximum (1)"),
        ("regex", "", SHOWN),
    ],
)
def test_the_reason_alone_is_told(kind: str, place: str, told: str) -> None:
    begin = f"Failed to compile {kind} grammar: "
    assert for_the_client(f"{begin}{place}{told}\n") == begin + told


@pytest.mark.parametrize("said", ["", "Unknown grammar error"])
def test_where_there_is_no_reason_it_is_told_what_it_may_be(said: str) -> None:
    found = for_the_client(f"Failed to compile structural_tag grammar: {said}")
    assert found is not None
    assert found.startswith(f"Failed to compile structural_tag grammar: {UNTOLD}")


def test_what_a_client_wrote_stays_as_it_is() -> None:
    begin, told = "Failed to compile json grammar: ", f'Unsupported type "{AT}a.cc:5: x"'
    assert for_the_client(begin + told) == begin + told
    assert for_the_client(f"{begin}{AT}a.cc:5: {told}\n") == begin + told


def test_a_long_reason_is_cut() -> None:
    found = for_the_client(f"Failed to compile structural_tag grammar: {'x' * 100_000}")
    assert found is not None
    assert len(found) == LONGEST + 1


@pytest.mark.parametrize("said", ["Grammar preprocessing timed out: req.grammar_key=", "out of memory", ""])
def test_what_another_engine_may_take_is_none_of_these(said: str) -> None:
    assert for_the_client(said) is None
