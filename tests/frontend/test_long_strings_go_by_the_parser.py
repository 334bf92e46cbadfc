"""A long string of a call is told as it comes, and its parser is not given it: the call is the same."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from disagg.frontend.output_parser import ParsingPlan
from disagg.sglang.parsers.echo import Echo, OpenString
from disagg.sglang.parsers.tools import ToolReader, ToolReaders
from tests.frontend.reading import NAMES, meant, needs_sglang, read, told
from tests.frontend.tool_formats import CITY, DAYS, TOOLS, answer

pytestmark = needs_sglang
# They say a string while it is written; the others of SGLang's parsers say it whole.
SAYS_AT_ONCE = [
    "deepseekv31", "deepseekv32", "gigachat3", "glm45", "hermes", "hunyuan", "kimi_k2", "llama3", "minimax-m3",
    "mistral", "qwen25",
]  # fmt: skip
PIECES = (
    "the ", "fox", " ", "  ", "\n", "\n\n", '"', "\\", "\\n", "\\u00e9", "é", "漢字", "🙂", "<", "<div>", "</", "< 3",
    "[1]", "]<", "]]", "{", "}", "{}", ", ", "\t", "'", "ab", "ab", "====", "&amp;", ":", "0", "[INST]", "\u2028",
    "</tool_cal",
)  # fmt: skip


def written(name: str, content: str, *, ascii_alone: bool = False) -> str:
    """An answer whose first argument holds the content, as a model of this format writes it."""
    text = answer(name)
    in_json = json.dumps(content, ensure_ascii=ascii_alone)[1:-1]
    return text.replace("Sund", in_json if '\\"am\\"' in text else content)


def contents(seed: str, count: int) -> list[str]:
    """`seed`: a parser's name. That of Llama takes 'a': for a key wherever it stands, and cuts the string there."""
    choose = random.Random(seed)
    pieces = [piece for piece in PIECES if piece != "'" or seed != "llama3"]
    return [
        "".join(choose.choices(choose.sample(pieces, choose.randint(3, len(pieces))), k=choose.randint(1, 60)))
        for _ in range(count)
    ]


def cut(text: str, seed: str) -> list[str]:
    choose, pieces, at = random.Random(seed), [], 0
    while at < len(text):
        length = choose.randint(1, choose.choice((2, 6, 30)))
        pieces.append(text[at : at + length])
        at += length
    return pieces


@pytest.mark.parametrize("name", SAYS_AT_ONCE)
def test_whatever_stands_in_a_string_is_told_as_it_is(name: str) -> None:
    plan = ParsingPlan(tools=ToolReaders(name, TOOLS))
    for number, content in enumerate(contents(name, 12)):
        text = written(name, content, ascii_alone=bool(number % 2))
        whole = read(plan, [text])
        assert meant(whole)[0] == ("get_weather", {"city": CITY.replace("Sund", content), "days": DAYS}), content
        for pieces in (list(text), cut(text, content)):
            assert told(read(plan, pieces)) == told(whole), content


@pytest.mark.parametrize("name", NAMES.tools)
def test_it_is_the_call_that_the_parser_reads_of_all_of_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, texts = ParsingPlan(tools=ToolReaders(name, TOOLS)), [written(name, each) for each in contents(name, 4)]
    said = [read(plan, cut(text, text)) for text in texts]
    monkeypatch.setattr(Echo, "string", lambda _echo: None)
    for text, ours in zip(texts, said, strict=True):
        assert meant(ours) == meant(read(plan, [text])), text


@pytest.mark.parametrize("name", SAYS_AT_ONCE)
def test_the_parser_is_given_little_of_a_long_one(name: str) -> None:
    reader = ToolReaders(name, TOOLS).reader()
    text = written(name, "words and more, of 1 file\nwhose \"lines\" are short = 'a'. " * 500)
    waits, longest = 0, 0
    for token in re.findall(r" ?\w+|.", text[: text.index("days") - 40], re.S):
        waits = 0 if reader.push(token).calls else waits + 1
        longest = max(longest, waits)
    assert longest < 60  # tokens of the words ahead of the call, mostly
    assert reader.characters < 800


def test_an_answer_that_breaks_off_in_a_long_string_ends_it() -> None:
    """As SGLang's server does: what its parser knows of the arguments is said at the end."""
    plan, words = ParsingPlan(tools=ToolReaders("hermes", TOOLS)), "words " * 500
    text = written("hermes", words)
    said = read(plan, cut(text[: text.index(" Sund") if " Sund" in text else text.rindex("words")], "1"), "length")
    (call,) = said.calls
    assert json.loads(call.arguments)["city"].startswith(CITY[:12] + words[:-12])


def test_a_parser_that_says_other_than_it_was_given_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a client was told is taken back."""

    def string(_echo: Echo) -> Any:
        return OpenString(is_json=True, behind="never given")

    reader = ToolReaders("hermes", TOOLS).reader()
    monkeypatch.setattr(Echo, "string", string)
    with pytest.raises(ValueError, match="other arguments"):
        push_all(reader, answer("hermes"))


def push_all(reader: ToolReader, text: str) -> None:
    for character in text:
        reader.push(character)
    reader.end()
