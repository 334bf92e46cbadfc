"""Whether a model thinks in answer to a request: by its chat template, and by what the request gives that template.

Way:   chat template -> setup.py -> [Thinking.is_on] -> ReasoningReaders, and `require_reasoning` for both legs
In:    the switch that SGLang's rules found in the template; without one, what is usual for the reasoning parser
Out:   what SGLang's server decides, rule for rule
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NO_EFFORT = (None, "none")


@dataclass(frozen=True, slots=True)
class Thinking:
    """`toggle`: the template's variable that switches thinking; `special`: always, mistral or hunyuan_effort."""

    parser: str | None = None
    toggle: str | None = None
    is_default: bool | None = None
    special: str | None = None
    is_template_known: bool = False  # SGLang's rules found something in the template
    usual: str | None = None  # always, mistral, [explicit_]thinking, [explicit_]enable_thinking

    def is_on(self, variables: Mapping[str, Any], effort: str | None) -> bool:
        """`variables`: of the template; `effort`: reasoning_effort."""
        if self.parser is None:
            return False
        if self.parser == "minimax-m3":
            return bool(variables.get("thinking_mode") == "enabled")
        if self.parser == "hunyuan":
            return effort not in (
                ("none", "no_think") if self.special == "hunyuan_effort" else (*NO_EFFORT, "no_think")
            )
        special, toggle, is_default = self._rule()
        if special == "always":
            return True
        if special == "mistral":
            return effort not in NO_EFFORT
        if toggle is None or is_default is None:
            return False
        return variables.get(toggle) is not False if is_default else variables.get(toggle) is True

    def _rule(self) -> tuple[str | None, str | None, bool | None]:
        """(special, toggle, whether it is on by default)."""
        if self.is_template_known:
            return self.special, self.toggle, self.is_default
        usual = self.usual or ""
        if usual in ("always", "mistral"):
            return usual, None, None
        toggle = usual.removeprefix("explicit_")
        return None, toggle if toggle in ("thinking", "enable_thinking") else None, toggle == usual
