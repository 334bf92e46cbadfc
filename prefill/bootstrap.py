"""A prefill engine's bootstrap server, as seen from outside: is every rank registered with it?

Way:   the controller asks before a prefill engine may meet a decode engine
Why:   its /health says OK as soon as the process listens, and still over dead schedulers; /route answers 200 only once
       all ranks have registered
"""

from __future__ import annotations

import aiohttp

_WHOLE_TOPOLOGY = dict.fromkeys(("prefill_dp_rank", "prefill_cp_rank", "target_tp_rank", "target_pp_rank"), -1)
ANSWER_S = 2.0


async def ranks_are_registered(address: str) -> bool:
    """`address` is host:port. False while it does not listen, or a rank is missing."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as session,
            session.get(f"http://{address}/route", params=_WHOLE_TOPOLOGY) as answer,
        ):
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
