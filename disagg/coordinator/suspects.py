"""Decides which request may have killed its engine, and how that request is tried again.

Way:   Attempt, whose engine is lost -> [blame] -> Request.blames -> Admission tries it [alone_on], or it [is_guilty]
In:    what a frontend sees: a connection to an engine ended, and how far each of its requests there had come
Owns:  the rule alone. The history is the request's own, so frontends share nothing

A request is *new* on an engine while that engine computes for it and has not shown for PROVEN_TOKENS tokens that it
lives on. When an engine dies, those that were new there are blamed, and one that was there alone. The others are
bystanders: they go on elsewhere at once, and the death counts against no limit of theirs.

Who is blamed is a suspect: it waits for an engine of the role that died on which nobody else runs, and until it has
shown PROVEN_TOKENS tokens there nobody else is sent to it. Suspects come first when an engine is idle, as one that was
just started is; once a suspect has killed its engine, the others come first until none of them waits.
A second death, alone, proves it guilty, and so does a fifth one in company: it ends with SuspectedPoison.

A connection that was cut blames too, as it looks the same; the blame goes when the same life answers again.
What this does not tell apart at once: a request that kills only after many tokens, among others, is a bystander of the
first death; its next try is new there, and it is blamed for the second one.
"""

from __future__ import annotations

from collections.abc import Callable

from disagg.coordinator.phases import Phase
from disagg.coordinator.request import Blame, Request
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.worker_role import WorkerRole

PROVEN_TOKENS = 3  # a batch that computes inf or NaN dies in the step of the first or the second token
BLAMES_ALONE_MAX = 2
BLAMES_MAX = 5  # when others ran there too, one of them may be the killer: innocent requests were seen with three


def computes_in(role: WorkerRole) -> set[Phase]:
    """The phases of a request in which an engine of this role may die of it."""
    reads = {Phase.PREFILLING} if role.reads_prompts else set()
    return reads | {Phase.TRANSFERRING} | ({Phase.DECODING} if role.makes_tokens else set())


def blame(request: Request, life: str, role: Role, tokens: int, alone: bool) -> None:
    """An engine is lost. `tokens`: what this try of the request had from it; `alone`: nothing else ran there."""
    if request.phase in computes_in(ROLES[role]) and (alone or tokens < PROVEN_TOKENS):
        request.blames.append(Blame(life, role, alone))


def forgive(request: Request, is_lost: Callable[[str], bool]) -> None:
    """Removes blames for engines that answer again in the same life: they did not die."""
    request.blames = [each for each in request.blames if is_lost(each.life)]


def alone_on(request: Request) -> frozenset[Role]:
    """Roles of engines on which it is to be tried alone; none for nearly every request."""
    return frozenset(each.role for each in request.blames if not each.is_cleared)


def clear(request: Request) -> None:
    """Clears the request's blames: it has run alone, and its engine lives."""
    for each in request.blames:
        each.is_cleared = True


def is_guilty(request: Request) -> bool:
    blames = request.blames
    return len(blames) >= BLAMES_MAX or (len(blames) >= BLAMES_ALONE_MAX and blames[-1].alone)
