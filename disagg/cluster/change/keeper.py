"""Changes of a deployment that serves: what operators order is looked at, asked about, carried out, and kept.

Way:   `disagg scale`, `apply`, … -> frontend -> ControlServer -> [Changes.ask] -> Outline -> Work -> Fleet
In:    one Asked at a time, and whoever looks at how it goes
Out:   Answers, a Status. Who asked may leave: what has begun is done to its end, or taken back
Owns:  which engines are wanted, as revisions, in memory: the last one is what is wanted now. `kept` is all of it, for
       the controller that comes after this one
Fails: `ask` says why not: another change is under way, the preflight refuses, it would change what cannot change
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from disagg.cluster.change import outline as outlines
from disagg.cluster.change.difference import Difference, Effect, as_yaml, differences
from disagg.cluster.change.mixed import problems_of_both, why_not_by_frontends
from disagg.cluster.change.outline import Outline, towards, with_models
from disagg.cluster.change.reading import Read, read_apart
from disagg.cluster.change.wanted import Duty, Refused, Wanted, duty_called, scaled, with_role
from disagg.cluster.change.work import ROOM_S, ChangeFailed, Work
from disagg.cluster.fleet import Fleet
from disagg.cluster.models import Models
from disagg.config.schema import Deployment
from disagg.errors import ConfigError, DisaggError, Problem
from disagg.planning.plan import EnginePlan, Plan, resolve_parts
from disagg.registry import orders
from disagg.registry.interface import Watched
from disagg.registry.orders import Answer, Asked, Progress, Revision, Stage, Status
from disagg.registry.records import State

log = logging.getLogger(__name__)

REVISIONS_MAX = 100
LINES_MAX = 500  # of one change's progress
EARLIER_MAX = 9  # changes whose progress is kept beside the last one's: who waits looks twice a second
PROBLEMS_SHOWN = 5
OVER = "the deployment stops; start another one with the change"
LOST_CONTROLLER = (
    "the controller ended meanwhile, and engines are as they were then; the same order goes on from there (but "
    "for `disagg role`, which needs engines as they are wanted), and `disagg rollback --to REVISION` goes back, "
    "to {now}"
)
NOT_READY = (
    "the deployment has not been ready yet, and only `disagg stop` is heeded; see `disagg status`, and try again"
)

Preflight = Callable[[Plan], Awaitable[Sequence[Problem]]]
Keep = Callable[["Kept"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Kept:
    """What another controller goes on from."""

    wanted: Wanted
    told: Deployment
    revisions: list[tuple[Revision, Deployment]]
    last: Progress | None
    order: orders.Order | None  # the last change's
    unfinished: Deployment | None


async def _keep_nothing(_kept: Kept) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Looked:
    """An order as it was understood: what is to be wanted, and what has to be done for it."""

    wanted: Wanted
    outline: Outline
    lines: tuple[str, ...] = ()
    is_new: bool = False  # the configuration differs, whatever engines do


@dataclass(slots=True)
class _Change:
    order: orders.Order
    number: int
    began_s: float
    stage: Stage = Stage.RUNNING
    why: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_MAX))
    said: int = 0  # lines, also those that are kept no longer

    def say(self, line: str) -> None:
        log.info("change %d (%s): %s", self.number, self.order, line)
        self.lines.append(line)
        self.said += 1

    def told(self) -> Progress:
        dropped = self.said - len(self.lines)
        return Progress(self.number, str(self.order), self.stage, self.began_s, tuple(self.lines), self.why, dropped)


class Changes:
    """`deployment`, `engines`: what was started, which is revision 1. `preflight`: what speaks against a model's plan,
    now. `stop`: ends the deployment in order. `read`: makes a configuration of a text."""

    def __init__(
        self,
        fleet: Fleet,
        registry: Watched,
        deployment: Deployment,
        plans: Sequence[Plan],
        models: Models,
        wall_s: Callable[[], float],
        preflight: Preflight,
        stop: Callable[[], None],
        read: Read = read_apart,
    ) -> None:
        self._fleet, self._registry, self._device, self._models = fleet, registry, plans[0].device, models
        self._read = read
        self._told = deployment  # what frontends know: all from their start, a model since it came
        self._start_s = deployment.deadlines.start_s
        self._wall_s, self._preflight, self._stop = wall_s, preflight, stop
        self._wanted = Wanted(deployment, {engine.id: engine for plan in plans for engine in plan.engines})
        self._revisions: list[tuple[Revision, Deployment]] = []
        self._keep("started")
        self._change: _Change | None = None  # the last one
        self._earlier: deque[_Change] = deque(maxlen=EARLIER_MAX)
        self._task: asyncio.Task[None] | None = None
        self._unfinished: Deployment | None = None  # engines of it may still run: it was not taken back as a whole
        self.keep: Keep = _keep_nothing  # called where a change begins, and where it is over
        self._deciding = asyncio.Lock()
        self._is_open = self._is_over = False

    @property
    def engines(self) -> Mapping[str, EnginePlan]:
        """Those that are wanted now."""
        return self._wanted.engines

    @property
    def plans(self) -> Sequence[Plan]:
        """One for each model, of what is wanted now."""
        return self._wanted.plans(self._device)

    @property
    def plans_there(self) -> Sequence[Plan]:
        """One for each model that is wanted, or of which engines may run since a change of it was not finished."""
        left = resolve_parts(self._unfinished, self._device) if self._unfinished is not None else ()
        return tuple({plan.deployment.key: plan for plan in (*left, *self.plans)}.values())

    def status(self, show: int = 0) -> Status:
        """`show`: the revision whose configuration is wanted, too."""
        revisions = [
            each if each.number != show else msgspec.structs.replace(each, config=as_yaml(deployment))
            for each, deployment in self._revisions
        ]
        earlier = tuple(each.told() for each in self._earlier)
        return Status(self._change.told() if self._change else None, tuple(revisions), earlier)

    def recall(self, kept: Kept) -> None:
        """Goes on from what an earlier controller has kept. A change that was under way is over: it did not succeed."""
        self._wanted, self._told = kept.wanted, kept.told
        self._revisions, self._unfinished = kept.revisions, kept.unfinished
        if kept.last is not None and kept.order is not None:
            last = kept.last
            change = _Change(kept.order, last.number, last.began_s, last.stage, last.why)
            change.lines.extend(last.lines)
            change.said = last.dropped + len(last.lines)
            if change.stage is Stage.RUNNING:
                change.why, change.stage = LOST_CONTROLLER.format(now=kept.revisions[-1][0].number), Stage.FAILED
                change.say(f"it did not succeed: {change.why}")
            self._change = change

    def _to_keep(self) -> Kept:
        last, order = (self._change.told(), self._change.order) if self._change else (None, None)
        return Kept(self._wanted, self._told, list(self._revisions), last, order, self._unfinished)

    def open(self) -> None:
        """The deployment is ready. Until then an engine more, or less, would be its start's, which can end it."""
        self._is_open = True

    async def ask(self, asked: Asked) -> Answer:
        """Begins what is asked for, if nothing speaks against it."""
        if isinstance(asked.order, orders.Stop):
            return self._asked_to_stop(asked)
        if self._is_over:
            return Answer(why_not=OVER)
        if not self._is_open:
            return Answer(why_not=NOT_READY)
        async with self._deciding:
            if self._change is not None and (answer := _about(self._change, asked.order)):
                return answer
            try:
                looked = await self._look(asked.order)
                return await self._decided(asked, looked)
            except Refused as error:
                return Answer(why_not=str(error))
            except ConfigError as error:
                return Answer(why_not=_told(error.problems))
            except DisaggError as error:
                return Answer(why_not=error.message)
            except Exception as error:
                log.exception("'%s': an error nobody foresaw", asked.order)
                return Answer(why_not=f"{type(error).__name__}: {error}; see the log of the controller")

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        """As the fleet's. Of two who take engines out at once neither would see that the other takes the last."""
        change, supervisor = self._change, self._fleet.supervisor(engine_id)
        serves = supervisor is not None and supervisor.record.state is State.READY
        if serves and change is not None and change.stage is Stage.RUNNING:
            what = f"'{change.order}' is under way (change {change.number}), and takes engines out too"
            return f"{what}; `disagg revisions --wait` waits for its end"
        return await self._fleet.drain(engine_id, restart)

    async def close(self) -> None:
        """What is under way is left as it is, and nothing is begun any more."""
        self._is_over = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # what is asked for

    def _asked_to_stop(self, asked: Asked) -> Answer:
        question = "the deployment ends: engines, frontends, and all that is in them"
        if asked.dry_run or not _is_agreed(asked, question):
            return Answer(question=question)
        if self._is_over:
            return Answer(change=self._change.number if self._change else 0, joined=True)
        self._is_over = True
        change = self._begun(asked.order)
        change.stage = Stage.DONE
        self._stop()
        return Answer(change=change.number)

    async def _look(self, order: orders.Order) -> _Looked:
        """Raises Refused, or ConfigError."""
        now = self._wanted
        match order:
            case orders.Scale(counts):
                deployment = now.deployment
                for name, count in counts.items():
                    deployment = scaled(deployment, duty_called(deployment, name), count)
                return self._to(deployment)
            case orders.Apply(config):
                return self._to(await self._read(config, now.deployment))
            case orders.Rollback(to):
                return self._to(self._kept(to))
            case orders.Restart(of):
                chosen = outlines.restarts(of, running := self._fleet.plans)
                if isinstance(chosen, str):
                    raise Refused(f"there is no role or engine '{chosen[:100]}'; there are {_names(running)}")
                return _Looked(now, Outline(restarted=chosen))
            case orders.ChangeRole(engine_id, role):
                if not towards(now.engines, self._fleet.plans).is_empty:
                    what = "engines are not as they are wanted, since a change did not succeed"
                    number = self._revisions[-1][0].number
                    raise Refused(f"{what}; rollback --to {number} makes them so, and then their roles can change")
                wanted, following = with_role(now, engine_id, role, self._device)
                return _Looked(wanted, Outline(moved=((engine_id, following),)), is_new=True)
            case _:
                raise Refused(f"'{order}' is no change of engines")

    def _to(self, deployment: Deployment) -> _Looked:
        """Raises Refused where a field cannot change, or old and new engines cannot work together."""
        now = self._wanted
        found = differences(now.deployment, deployment)
        at_start = [
            each for each in differences(self._told, deployment) if each.effect is Effect.NEXT_START
        ]  # also what an earlier change has said, and has not come yet
        _refuse_fixed(now.deployment, deployment, found)
        if why_not := why_not_by_frontends(self._told, deployment):
            raise Refused(why_not)
        running = self._fleet.plans  # it is not what was wanted where a change could not be taken back
        wanted = Wanted.of(deployment, self._device, running)
        outline = with_models(towards(wanted.engines, running), wanted.plans(self._device), self._registry)
        meet = outline.replaced or (outline.added and outline.removed)
        for old in (now.deployment, self._unfinished) if meet else ():
            if old is not None and (problems := problems_of_both(old, deployment, self._device)):
                what = "engines of the old and of the new configuration cannot work together meanwhile"
                raise Refused(f"{what}; it needs a new deployment\n{_told(problems)}")
        lines = [str(each) for each in found if each.effect in (Effect.ENGINES, Effect.NOW)]
        lines += [f"{each}: {each.effect}" for each in at_start]
        return _Looked(wanted, outline, tuple(lines), is_new=bool(found))

    def _kept(self, to: int | None) -> Deployment:
        now, _ = self._revisions[-1]
        wanted = now.number - 1 if to is None else to
        for each, deployment in self._revisions:
            if each.number == wanted:
                return deployment
        there = f"{self._revisions[0][0].number} to {now.number}"
        raise Refused(f"there is no revision {wanted}; there are {there}")

    async def _decided(self, asked: Asked, looked: _Looked) -> Answer:
        """Raises Refused, or ConfigError."""
        now, outline = self._fleet.plans, looked.outline
        if outline.is_empty and not looked.is_new:
            return Answer(lines=looked.lines)
        starts = outline.added or outline.replaced or outline.restarted or outline.moved
        plans = looked.wanted.plans(self._device) if starts else ()
        # One after the other: the processes that looked at the nodes for the first model do so for the next.
        if problems := [problem for plan in plans for problem in await self._preflight(plan)]:
            raise ConfigError("preflight", tuple(dict.fromkeys(problems)))
        possible = outlines.possible_stand_ins(outline, now)
        have_room = await self._fleet.with_room([*outline.added, *possible], ROOM_S)
        outline = replace(outline, stand_ins=tuple(plan for plan in possible if plan.id in have_room))
        lines = (*looked.lines, *outline.lines(), *outlines.without_room(outline, have_room))
        questions = outlines.questions(outline, now, self._registry, have_room)
        question = "; ".join(dict.fromkeys(questions.values()))
        if asked.dry_run or (question and not _is_agreed(asked, question)):
            return Answer(question=question, lines=lines)
        if self._is_over:  # since: looking takes its time
            return Answer(why_not=OVER)
        change = self._begun(asked.order)
        work = self._carry_out(change, replace(looked, outline=outline), questions)
        self._task = asyncio.create_task(work, name=f"change {change.number}")
        return Answer(change=change.number, lines=lines)

    def _begun(self, order: orders.Order) -> _Change:
        number = 1
        if self._change is not None:
            number = self._change.number + 1
            self._earlier.append(self._change)
        self._change = _Change(order, number, self._wall_s())
        log.info("change %d: %s", number, order)
        return self._change

    # what is done

    async def _carry_out(self, change: _Change, looked: _Looked, may_pause: Collection[Duty]) -> None:
        """Whatever happens, the change has an end, and the next one can begin."""
        finished = self._unfinished
        if looked.is_new:
            self._unfinished = looked.wanted.deployment  # for a controller that has to go on from here
        await self.keep(self._to_keep())
        self._unfinished = finished
        try:
            await self._do(change, looked, may_pause)
        except Exception as error:
            log.exception("change %d: an error nobody foresaw", change.number)
            why = f"{type(error).__name__}: {error}"
            change.why, change.stage = f"{change.why}\n{why}" if change.why else why, Stage.FAILED
        if change.stage is Stage.FAILED and looked.is_new:
            self._unfinished = looked.wanted.deployment
        await self.keep(self._to_keep())

    async def _do(self, change: _Change, looked: _Looked, may_pause: Collection[Duty]) -> None:
        work = self._work(change, may_pause)
        try:
            await work.carry_out(looked.outline)
        except ChangeFailed as error:
            change.why = str(error)
            await self._take_back(change, looked.outline, may_pause)
            return
        self._wanted = looked.wanted
        self._told = _told_now(self._told, looked)
        if looked.is_new:
            self._keep(str(change.order))
        if not isinstance(change.order, orders.Restart):
            self._unfinished = None
        change.stage = Stage.DONE
        change.say("done")

    async def _take_back(self, change: _Change, outline: Outline, may_pause: Collection[Duty]) -> None:
        """The engines that were there, with their arguments. What was started again, or was to be, stays as it is."""
        change.say(f"it did not succeed: {change.why}")
        back = self._back(outline)
        if back.is_empty and outline.restarted:
            change.stage = Stage.FAILED
            return
        work = self._work(change, may_pause)
        try:
            await work.carry_out(back)
        except ChangeFailed as error:
            change.say(f"and it could not be taken back: {error}")
            change.why, change.stage = f"{change.why}\nIt could not be taken back: {error}", Stage.FAILED
            return
        change.stage = Stage.ROLLED_BACK
        change.say("all is as it was")

    def _work(self, change: _Change, may_pause: Collection[Duty]) -> Work:
        return Work(self._fleet, self._registry, self._start_s, change.say, self._models, may_pause=may_pause)

    def _back(self, outline: Outline) -> Outline:
        """From what runs to what was wanted before."""
        running = self._fleet.plans
        wanted = self._wanted.engines
        moved = [(to.id, wanted[name]) for name, to in outline.moved if to.id in running and name not in running]
        for new_id, plan in moved:
            del running[new_id]
            running[plan.id] = plan
        back = with_models(towards(wanted, running), self._wanted.plans(self._device), self._registry)
        ready = {record.id for record in self._registry.records.values() if record.state is State.READY}
        replaced = sorted(back.replaced, key=lambda plan: plan.id in ready)  # what serves goes last
        return replace(back, replaced=tuple(replaced), moved=tuple(moved))

    def _keep(self, what: str) -> None:
        number = self._revisions[-1][0].number + 1 if self._revisions else 1
        self._revisions.append((Revision(number, self._wall_s(), what), self._wanted.deployment))
        del self._revisions[:-REVISIONS_MAX]


def _is_agreed(asked: Asked, question: str) -> bool:
    return asked.yes or asked.agreed == question


def _about(last: _Change, order: orders.Order) -> Answer | None:
    """The answer to an order that joins the change under way, that has to wait for it, or that is done already."""
    if last.stage is Stage.RUNNING:
        if last.order == order:
            return Answer(change=last.number, joined=True)
        what = f"'{last.order}' is under way (change {last.number}), and changes come one after the other"
        return Answer(why_not=f"{what}; `disagg revisions --wait` waits for its end")
    repeats = isinstance(order, orders.ChangeRole) or order == orders.Rollback()
    if last.order == order and repeats and last.stage is Stage.DONE:
        more = "; to go on from there: rollback --to N" if isinstance(order, orders.Rollback) else ""
        return Answer(lines=(f"'{order}' is done already (change {last.number}){more}",))
    return None


def _refuse_fixed(now: Deployment, then: Deployment, found: Sequence[Difference]) -> None:
    """Raises Refused."""
    if bool(now.models) is not bool(then.models):
        one, several = "`model`, which is the spelling of one", "`models`, in which others may come"
        before, after = (several, one) if now.models else (one, several)
        raise Refused(f"it was started with {before}, and this has {after}; say it as it was started, or start it anew")
    fixed = [each for each in found if each.effect in (Effect.NEW_DEPLOYMENT, Effect.NEW_MODEL)]
    if fixed:
        would_do = "say what it was started with (--set), or start another deployment beside it"
        raise Refused("\n".join([*(f"{each}: {each.effect}" for each in fixed), would_do]))


def _told_now(told: Deployment, looked: _Looked) -> Deployment:
    """What frontends were told of models, after these have come and gone."""
    wanted = looked.wanted.deployment.models
    coming = {plan.deployment.key for plan in looked.outline.coming}
    models = {key: each if key in coming else told.models.get(key, each) for key, each in wanted.items()}
    return told.model_copy(update={"models": models})


def _told(problems: Sequence[Problem]) -> str:
    more = len(problems) - PROBLEMS_SHOWN
    return "\n".join([*map(str, problems[:PROBLEMS_SHOWN]), *([f"and {more} more"] if more > 0 else [])])


def _names(engines: Mapping[str, EnginePlan]) -> str:
    roles = dict.fromkeys(each.role.value for each in engines.values())
    return ", ".join([*roles, *engines])
