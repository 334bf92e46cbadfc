"""`disagg logs -f`: each line once, whatever of the log an answer holds."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from disagg.cli import logs
from disagg.cli.app import app
from disagg.cli.logs import beyond


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 8))
def test_of_windows_over_a_log_each_line_is_shown_once(steps: list[int], window: int) -> None:
    log = [f"line {number}" for number in range(sum(steps))]
    ends = [sum(steps[: count + 1]) for count in range(len(steps))]
    windows = [log[max(0, end - window) : end] for end in ends]
    shown = [*windows[0]] if windows else []
    for before, now in pairwise(windows):
        shown += beyond(before, now)
    kept = [line for line in shown if line]
    assert kept == sorted(set(kept), key=lambda line: int(line[5:]))
    if max(steps, default=0) <= window and (not ends or ends[0] <= window):
        assert kept == log


def test_lines_that_are_alike_are_not_taken_for_one_another() -> None:
    assert beyond(["a", "b"], ["a", "b", "b", "b"]) == ["b", "b"]
    assert beyond(["x", "a", "b"], ["a", "b", "c"]) == ["c"]


def test_all_of_a_log_that_began_anew() -> None:
    assert beyond(["x", "y"], ["a"]) == ["a"]


class Frontend:
    """Answers instead of the network: each log, one answer after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[str | httpx.Response]) -> None:
        self._answers = {name.replace("_", "-"): list(texts) for name, texts in answers.items()}
        monkeypatch.delenv("DISAGG_URL", raising=False)
        monkeypatch.setattr(httpx, "request", self._request)
        monkeypatch.setattr(logs, "FOLLOW_S", 0.0)

    def _request(self, _method: str, url: str, **_: object) -> httpx.Response:
        if url.endswith("/disagg/status"):
            return httpx.Response(200, json={"engines": [{"id": name} for name in self._answers]})
        answers = self._answers[url.rpartition("/")[2]]
        if not answers:
            raise KeyboardInterrupt
        answer = answers.pop(0)
        return httpx.Response(200, text=answer) if isinstance(answer, str) else answer


def test_two_engines_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    Frontend(monkeypatch, prefill_0=["a\nb", "a\nb\nc", "b\nc\nd"], decode_0=["x", "x", "x\ny"])
    said = CliRunner().invoke(app, ["logs", "-f"]).stdout
    assert said.splitlines() == [
        "prefill-0 | a", "prefill-0 | b", "decode-0  | x", "prefill-0 | c", "prefill-0 | d", "decode-0  | y"
    ]  # fmt: skip


def test_a_frontend_that_is_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = httpx.Response(503, json={"error": {"message": "the controller cannot be asked"}})
    Frontend(monkeypatch, decode_0=["a", gone, gone, "a\nb"])
    told, last = CliRunner().invoke(app, ["logs", "decode-0", "-f"]).stdout.splitlines()[1:]
    assert "the controller cannot be asked" in told
    assert last == "b"


def test_of_one_rank_with_what_belongs_to_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    first = "[t DP0 TP0] zero\n[t DP1 TP0] one"
    Frontend(monkeypatch, decode_0=[first, f"{first}\n  more of one\n[t DP0 TP0] zero again\n[t DP1 TP0] and one"])
    said = CliRunner().invoke(app, ["logs", "decode-0", "-f", "--rank", "1"]).stdout
    assert said.splitlines() == ["[t DP1 TP0] one", "  more of one", "[t DP1 TP0] and one"]


def test_of_several_nodes_each_has_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    zero, one = "==> node 0 of 2 <==", "==> node 1 of 2 <=="
    Frontend(monkeypatch, decode_0=[f"{zero}\na\n{one}\nx", f"{zero}\na\nb\n{one}\nx", f"{zero}\na\nb\n{one}\nx\ny"])
    said = CliRunner().invoke(app, ["logs", "decode-0", "-f"]).stdout
    assert said.splitlines() == [zero, "a", one, "x", zero, "b", one, "y"]


def test_the_first_lines_are_the_last_ones_and_nothing_is_shown_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    same = "\n".join("same" * 9 for _ in range(5))
    Frontend(monkeypatch, decode_0=[f"a\n{same}", f"a\n{same}\nb"])
    assert CliRunner().invoke(app, ["logs", "decode-0", "-f", "-n", "2"]).stdout.splitlines() == ["same" * 9] * 2 + [
        "b"
    ]
