"""What to try next, said once when a deployment serves.

Way:   serve -> [first_steps] -> its log
"""

from __future__ import annotations

import json
import shlex

from disagg.planning.plan import Plan
from disagg.role_table import ROLES

_KEY = ' -H "Authorization: Bearer $DISAGG_API_KEY"'


def first_steps(plan: Plan, end: str = "Ctrl-C") -> list[str]:
    """Lines that a shell takes as they are, but for the keys: those are in the YAML, and not told."""
    frontend, security = plan.frontend, plan.deployment.security
    asks_for_a_key = bool(security.api_keys or security.keys_file)
    if any(not ROLES[engine.role].embeds for engine in plan.engines):
        messages = [{"role": "user", "content": "Say hello."}]
        path, body = "/chat/completions", {"model": plan.model.name, "messages": messages, "max_tokens": 30}
        call, told = "chat.completions.create", "choices[0].message.content"
    else:
        path, body = "/embeddings", {"model": plan.model.name, "input": "Say hello."}
        call, told = "embeddings.create", "data[0].embedding"
    asked = f"{_KEY * asks_for_a_key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    url = frontend.base_url
    arguments = ", ".join(f"{name}={json.dumps(value)}" for name, value in body.items())
    api_key = 'os.environ["DISAGG_API_KEY"]' if asks_for_a_key else '"none"'
    client = f'OpenAI(base_url="{url}", api_key={api_key})'
    needs_os = "import os; " * asks_for_a_key
    program = f"{needs_os}from openai import OpenAI; print({client}.{call}({arguments}).{told})"
    is_usual = url == type(frontend)().base_url
    named = "" if is_usual else f"DISAGG_URL={url.removesuffix('/v1')} "
    return [
        f"ask it:   curl -s {url}{path}{asked}",
        f"Python:   python -c {shlex.quote(program)}",
        f"look:     {named}disagg status" + " (DISAGG_API_KEY: an admin key)" * bool(security.admin_keys),
        f"page:     {url.removesuffix('/v1')}/disagg/",
        f"end it:   {end}" if end == "Ctrl-C" else f"end it:   {named}{end}",
    ]
