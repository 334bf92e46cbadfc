"""`disagg drain --wait` and `disagg cancel` against a frontend that answers from a script."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from disagg.cli import act
from disagg.cli.app import app
from disagg.cli.ordering import NotSaidYes
from disagg.errors import StartError


class _Deployment:
    """Steps through the states of one engine, one a look."""

    def __init__(self, *states: tuple[int, str, str], others: str = "ready", group: str = "") -> None:
        """`others`: the state of the other decode engine; `group`: its model's, where it is another one."""
        self._states, self._others, self._group = list(states), others, group
        self.asked: list[tuple[str, str, dict[str, Any]]] = []

    def ask(self, _url: str | None, path: str, method: str = "GET", **parameters: Any) -> Any:
        if method != "GET":
            self.asked.append((method, path, parameters))
            return {}
        incarnation, state, detail = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        engine: dict[str, Any] = {"id": "decode-0", "role": "decode", "group": "", "incarnation": incarnation}
        engine |= {"state": state, "detail": detail}
        return {"engines": [engine, engine | {"id": "decode-1", "state": self._others, "group": self._group}]}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(deployment: _Deployment, *arguments: str) -> str:
        monkeypatch.setattr(act, "ask", deployment.ask)
        monkeypatch.setattr(act, "POLL_S", 0.0)
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    return run


def test_wait_returns_when_it_is_down(run: Any) -> None:
    deployment = _Deployment((3, "ready", ""), (3, "ready", ""), (3, "draining", ""), (3, "dead", "drained"))
    assert "decode-0 is drained" in run(deployment, "drain", "decode-0", "--wait")
    assert deployment.asked == [("POST", "/disagg/engines/decode-0/drain", {})]


def test_wait_with_restart_returns_when_the_next_incarnation_is_ready(run: Any) -> None:
    deployment = _Deployment((3, "ready", ""), (3, "draining", ""), (3, "dead", "drained"), (4, "ready", ""))
    assert "ready again" in run(deployment, "drain", "decode-0", "--restart", "--wait")
    assert deployment.asked == [("POST", "/disagg/engines/decode-0/drain", {"restart": 1})]


def test_an_unknown_engine_is_told_before_anything_is_asked(run: Any) -> None:
    deployment = _Deployment((3, "ready", ""))
    with pytest.raises(StartError, match="there are decode-0, decode-1"):
        run(deployment, "drain", "decode-7")
    assert deployment.asked == []


def test_the_last_ready_engine_of_its_role_is_asked_about(run: Any) -> None:
    states = (3, "ready", ""), (3, "dead", "drained")
    deployment = _Deployment(*states, others="dead")
    with pytest.raises(NotSaidYes, match=r"it is the last decode engine that is ready.*say --yes"):
        run(deployment, "drain", "decode-0", "--wait")
    assert deployment.asked == []
    assert "decode-0 is drained" in run(_Deployment(*states, others="dead"), "drain", "decode-0", "--wait", "--yes")


def test_cancel(run: Any) -> None:
    deployment = _Deployment((1, "ready", ""))
    assert "is cancelled" in run(deployment, "cancel", "chatcmpl-abc")
    assert deployment.asked == [("DELETE", "/v1/requests/chatcmpl-abc", {})]


def test_another_model_s_engine_is_no_other_one(run: Any) -> None:
    with pytest.raises(NotSaidYes, match="it is the last decode engine"):
        run(_Deployment((3, "ready", ""), group="code"), "drain", "decode-0")
