"""What a streamed token costs the frontend where it is more than text: parsed for tools or for reasoning, beside its
logprobs, one of four samples.

Way:   `python -m benchmarks.forms [--quick]` -> load -> stub deployment -> table, JSON
Out:   CPU of the frontend a token, of early tokens (answers of 1 token beside those of EARLY) and of late ones (those
       of EARLY beside those of LATE): a cost that grows with an answer's length shows in the second. And its memory
Fails: a pace that was not kept is told in the table: the cost there is that of merged tokens
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from tokenizers import Tokenizer

from benchmarks.load import STREAMED, drive, post
from benchmarks.processes import cpu_s, pss_mb
from benchmarks.prompts import Prompts
from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.models.resolve import resolve_model
from disagg.tokenizer.overrides import Overrides

STREAMS, PACE_MS = 32, 10.0
EARLY, LATE = 200, 2000  # tokens
WORDS = "the quick brown fox jumps over the lazy dog and on it goes, "
TOOL = {"name": "write_file", "parameters": {"type": "object", "properties": {"text": {"type": "string"}}}}


@dataclass(frozen=True, slots=True)
class Form:
    name: str
    begins: str = ""  # what the engines say; then words, up to the answer's end
    asks: dict[str, Any] = field(default_factory=dict)
    front: dict[str, Any] = field(default_factory=dict)
    samples: int = 1


SAID = r"{% for said in messages %}{{ said.content }}\n{% endfor %}"
TEMPLATE = r"{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}" + SAID  # the model's own shows no tools
SHOWS_TOOLS = Overrides(chat_template=TEMPLATE)
PARSED: dict[str, Any] = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3", "overrides": SHOWS_TOOLS}
TOOLS: dict[str, Any] = {"tools": [{"type": "function", "function": TOOL}]}
CALL = '<tool_call>\n{"name": "write_file", "arguments": {"text": "'
FORMS = [
    Form("plain"),
    Form("plain, both parsers there", front=PARSED),
    Form("tools given, text answered", asks=TOOLS, front=PARSED),
    Form("one long tool call", CALL, TOOLS, PARSED),
    Form("reasoning", "<think>\n", {}, PARSED),
    Form("top 5 logprobs", asks={"logprobs": True, "top_logprobs": 5}),
    Form("n = 4", asks={"n": 4, "temperature": 0.7}, samples=4),
]


@dataclass(frozen=True, slots=True)
class Cost:
    form: str
    early_us: float
    late_us: float
    pss_mb: float  # of the frontend and its children, after it all
    kept: float  # of the pace, by the longest answers


async def cost(model: Path, form: Form) -> Cost:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    script = tokenizer.encode(form.begins + WORDS * (LATE // 10)).ids[:LATE]
    async with stub_deployment(model, PACE_MS, script=script, **form.front) as deployment:
        await _run(deployment, model, form, 8)
        one, early, late = [await _run(deployment, model, form, tokens) for tokens in (1, EARLY, LATE)]
        answers = STREAMS
        return Cost(
            form.name,
            (early[0] - one[0]) * 1e6 / (answers * (EARLY - 1)),
            (late[0] - early[0]) * 1e6 / (answers * (LATE - EARLY)),
            pss_mb([deployment.pids["frontend"]]),
            LATE * PACE_MS / 1e3 / late[1],
        )


async def _run(deployment: StubDeployment, model: Path, form: Form, tokens: int) -> tuple[float, float]:
    """CPU seconds of the frontend and seconds of the clock."""
    (text,) = Prompts(model, tokens).texts(1, 46)
    body = {"model": "stub", "messages": [{"role": "user", "content": text}], "max_tokens": tokens, **form.asks}
    request = post(deployment.url, "/v1/chat/completions", body | STREAMED | {"ignore_eos": True})
    frontend = [deployment.pids["frontend"]]
    before, began_s = cpu_s(frontend), time.perf_counter()
    answers = await drive(deployment.url, [request] * (STREAMS // form.samples), STREAMS, keep=True)
    over_s = time.perf_counter() - began_s
    for answer in answers:
        assert not answer.error, f"{answer.error}: {answer.body[-400:]!r}"
        assert answer.completion_tokens == tokens * form.samples, answer.body[-400:]
    return cpu_s(frontend) - before, over_s


async def measure(rounds: int, only: str) -> list[Cost]:
    model, costs = Path(resolve_model("smollm2")), []
    for form in FORMS[:1] + [form for form in FORMS[1:] if form.name.startswith(only)]:
        same = [await cost(model, form) for _ in range(rounds)]
        columns = ("early_us", "late_us", "pss_mb", "kept")
        costs.append(Cost(form.name, *(median(getattr(each, column) for each in same) for column in columns)))
        print(_row(costs[-1], costs[0]), flush=True)
    return costs


def _row(cost: Cost, plain: Cost) -> str:
    kept = "" if cost.kept > 0.9 else f"  PACE NOT KEPT: {cost.kept:.0%}"
    times = cost.late_us / plain.late_us
    figures = f"a token {cost.early_us:5.1f} µs early, {cost.late_us:5.1f} late ({times:.2f} x plain)"
    return f"{cost.form:<28} {figures}, {cost.pss_mb:.0f} MB{kept}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--only", help="of the forms, those whose name begins so, beside the first", default="")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    costs = uvloop.run(measure(1 if arguments.quick else 3, arguments.only))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")


if __name__ == "__main__":
    main()
