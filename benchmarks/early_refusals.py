"""Whether requests with an SLO on their first token are refused rightly: the real admission before simulated engines.

    python -m benchmarks.early_refusals TRACE... [--loads 0.9,1.0,1.2] [--seeds 5] [--requests 2000]
                                                 [--mixes fixed,stretch]

In:    two of three requests of a trace have an SLO. Mix `fixed`: 0.5, 1, 2, 5 or 10 s, whatever the prompt. Mix
       `stretch`: 1.5, 3, 6 or 12 times what it takes on idle engines, and 0.1 s: none is impossible
Way:   the same requests with the same seed (1) without SLOs, (2) with them, (3) with them, but a tenth of those that
       have one, by chance, is sent on when it is refused. Virtual time, 8 prefill and 8 decode engines of 4 dp ranks
Out:   precision: of those refused early the share that would have been late; recall: of those that would have been
       late the share that was refused early. What would have been: `all in`, (1), where nobody is refused, so that all
       are in each other's way; `one in`, (3), where nearly all others are refused as before. `kept`: of the requests
       with an SLO those that met it, in (1) and in (2); of (2) also those that were late, and those refused early or,
       too late, when their time was up
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from msgspec import structs

from benchmarks.policies import simulation_of
from disagg.coordinator.admission import Admission
from disagg.coordinator.request import Request
from disagg.errors import Overloaded
from disagg.replay.compare import policy_of
from disagg.replay.measures import WARM_SHARE
from disagg.replay.simulate import Simulation
from disagg.replay.virtual.served import Served
from disagg.role_table import ROLES
from disagg.routing.view import Choice, RoutingView
from disagg.simulated_engine.model import Model, pairs_of

HAVE_ONE, SENT_ON = 2 / 3, 0.1
FIXED_S = 0.5, 1.0, 2.0, 5.0, 10.0
STRETCH, STRETCH_S = (1.5, 3.0, 6.0, 12.0), 0.1
Mix = Callable[[Random, Served], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--loads", default="0.9,1.0,1.2", help="shares of what least_loaded carries")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--mixes", default="fixed,stretch", help="comma-separated")
    options = parser.parse_args()
    for path in options.traces:
        simulation = simulation_of(path, options.requests)
        reader = next(pool.model for pool in simulation.setting.pools if ROLES[pool.model.role].reads_prompts)
        mixes: dict[str, Mix] = {"fixed": fixed, "stretch": partial(stretch, reader)}
        capacity = simulation.capacity()
        print(f"\n# {path.name}: carries {capacity:.3g} requests/s with least_loaded")
        for name in options.mixes.split(","):
            for load in options.loads.split(","):
                tally = Tally()
                for seed in range(1, options.seeds + 1):
                    tally.add(simulation, float(load) * capacity, seed, mixes[name])
                print(f"{name:<8} load {load:>4}: {tally}", flush=True)


def fixed(random: Random, served: Served) -> float:
    return random.choice(FIXED_S)


def stretch(reader: Model, random: Random, served: Served) -> float:
    read_s, read = 0.0, 0
    while read < served.prompt_tokens:
        tokens = min(reader.chunk_tokens, served.prompt_tokens - read)
        read_s += reader.chunk_s(tokens, pairs_of(tokens, read))
        read += tokens
    return STRETCH_S + random.choice(STRETCH) * read_s


class Tally:
    """Of all seeds together. Requests that warm the caches up are left out."""

    def __init__(self) -> None:
        self.all_in, self.one_in = Confusion(), Confusion()
        self.wanted = self.met_unrefused = self.met = self.late = self.early = self.expired = 0

    def add(self, simulation: Simulation, rate: float, seed: int, mix: Mix) -> None:
        first = int(WARM_SHARE * len(simulation.plan(rate, seed).requests))
        make = partial(policy_of, "predicted", seed)
        limits_s: dict[int, float] = {}

        def wishing(arrivals: Sequence[Served]) -> Sequence[Served]:
            random = Random(seed)
            for served in arrivals:
                if random.random() < HAVE_ONE:
                    limits_s[served.number] = mix(random, served)
                    served.wishes = structs.replace(served.wishes, ttft_s=limits_s[served.number])
            return arrivals

        _, unrefused = simulation.play(make, rate, seed)
        _, refusing = simulation.play(make, rate, seed, change=wishing)
        chance = Random(f"sent on {seed}")
        sends_on = sender_on({number for number in limits_s if chance.random() < SENT_ON})
        _, sent_on = simulation.play(make, rate, seed, change=wishing, admission=sends_on)
        late = {served.number: is_late(served, limits_s) for served in unrefused.served}
        for served in refusing.served:
            if served.number < first or served.number not in limits_s:
                continue
            is_early = served.refusal is not None and EXPIRED not in served.refusal.what
            self.wanted += 1
            self.early += is_early
            self.expired += served.refusal is not None and not is_early
            self.met_unrefused += not late[served.number]
            self.met += served.refusal is None and not is_late(served, limits_s)
            self.late += served.refusal is None and is_late(served, limits_s)
            self.all_in.add(is_early, late[served.number])
        for served in sent_on.served:
            if served.number >= first and served.number in sends_on.numbers:
                self.one_in.add(served.number in sends_on.would_refuse, is_late(served, limits_s))

    def __str__(self) -> str:
        shares = ((self.met, "kept"), (self.late, "late"), (self.early, "refused early"), (self.expired, "expired"))
        told = ", ".join(f"{count / self.wanted:.1%} {what}" for count, what in shares)
        kept = f"{self.met_unrefused / self.wanted:.1%} kept where nobody is refused; {told} (n={self.wanted})"
        return f"all in: {self.all_in}; one in: {self.one_in}; {kept}"


class Confusion:
    def __init__(self) -> None:
        self.refused = self.late = self.both = 0

    def add(self, is_refused: bool, is_late: bool) -> None:
        self.refused += is_refused
        self.late += is_late
        self.both += is_refused and is_late

    def __str__(self) -> str:
        precision, recall = self.both / (self.refused or 1), self.both / (self.late or 1)
        return f"precision {precision:.3f} of {self.refused}, recall {recall:.3f} of {self.late}"


EXPIRED = "no first token within"


def is_late(served: Served, limits_s: dict[int, float]) -> bool:
    return served.first_s - served.due_s > limits_s.get(served.number, float("inf"))


class SenderOn(Admission):
    """Refuses none of `numbers`, and notes which of them it would have refused."""

    numbers: set[int]
    would_refuse: set[int]

    def _consider(self, request: Request, view: RoutingView) -> Choice | None:
        try:
            return super()._consider(request, view)
        except Overloaded:
            if (number := int(request.id, 16)) not in self.numbers:
                raise
            self.would_refuse.add(number)
            return self._router.consider(view)

    def _of_use_until_s(self, request: Request) -> float:
        return float("inf") if int(request.id, 16) in self.numbers else super()._of_use_until_s(request)


def sender_on(numbers: set[int]) -> type[SenderOn]:
    return type("SenderOn", (SenderOn,), {"numbers": numbers, "would_refuse": set()})


if __name__ == "__main__":
    main()
