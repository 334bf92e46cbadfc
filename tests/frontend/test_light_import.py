"""SGLang's parsers in a process of their own: what is imported, what it costs, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from disagg.cpu_profile.paths import standin_environment
from tests.frontend.reading import needs_sglang

pytestmark = needs_sglang
MORE_MIB_MAX = 70
LIGHT = """
import sys
def rss_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 / 1024
import disagg.frontend.server, disagg.frontend.generation, disagg.tokenizer.codec, disagg.frontend.parsing
assert "openai" not in sys.modules
before = rss_mib()
from disagg.frontend.parsing import Parsing, Talk
from disagg.frontend.output_parser import OutputParser
from disagg.frontend.tool_choice import tool_use_of
from disagg.sglang.parsers.setup import set_up
parsing = Parsing(set_up("qwen25", "qwen3", None, {}))
use = tool_use_of({"tools": [{"function": {"name": "f", "parameters": {"type": "object"}}}]})
parser = OutputParser(parsing.ask(use, Talk()).plan, is_stream=True)
parser.push('Hm.</think>Yes. <tool_call>\\n{"name": "f", "arguments": {}}\\n</tool_call>')
assert parser.end("stop")[1] == "tool_calls"
heavy = ("torch", "transformers", "triton", "sglang", "xgrammar")
found = [name for name in sys.modules if name.split(".")[0] in heavy]
print(rss_mib() - before, found)
"""
REAL_AFTERWARDS = """
from disagg.sglang.parsers.light_import import sglang_parsers
light = sglang_parsers()
import sglang.srt.function_call.function_call_parser as real
import sglang, sglang.utils, xgrammar
from sglang.srt.server_args import ServerArgs
assert sglang.srt.function_call.function_call_parser is real and xgrammar.Grammar and sglang.Engine
assert real.FunctionCallParser is not light.function_call_parser
assert light.function_call_parser([], "qwen25").parse_non_stream("a") == ("a", [])
print("whole")
"""
REAL_BEFORE = """
import sglang.srt.function_call.function_call_parser as real
from disagg.sglang.parsers.light_import import sglang_parsers
assert sglang_parsers().function_call_parser is real.FunctionCallParser
print("same")
"""


def run(program: str) -> str:
    command, surroundings = [sys.executable, "-c", program], standin_environment(os.environ)
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_frontend_with_parsers_has_no_torch_and_little_more_memory() -> None:
    mib, found = run(LIGHT).split(maxsplit=1)
    assert found.strip() == "[]"
    assert float(mib) < MORE_MIB_MAX


@pytest.mark.slow
def test_sglang_itself_is_whole_when_it_is_imported_later() -> None:
    assert run(REAL_AFTERWARDS).split()[-1] == "whole"


@pytest.mark.slow
def test_an_sglang_that_is_there_already_is_used() -> None:
    assert run(REAL_BEFORE).split()[-1] == "same"
