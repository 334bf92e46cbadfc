"""What has to be done to come from the engines that run to those that are wanted, and what to say of it beforehand.

Way:   Wanted + what runs -> [Outline] -> keeper.py tells it, asks, and has it done
In:    plans and records; out: plain data and sentences. Nothing is decided twice: what is told is what is done
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from disagg.cluster.change.wanted import Duty, duty_of, free_name, share
from disagg.lives import engine_id_in, number_of
from disagg.planning.plan import EnginePlan, Plan
from disagg.registry.interface import Watched
from disagg.registry.records import ModelState, State
from disagg.role_table import ROLES


@dataclass(frozen=True, slots=True)
class Outline:
    """In the order in which it is done. `stand_ins`: one more of a role, while others of it are replaced or started
    again: with what is new, so that it shows first whether that starts at all. `coming`, `going`: of several models;
    one is served when its engines are ready, the other no more before its engines go."""

    coming: tuple[Plan, ...] = ()
    going: tuple[str, ...] = ()
    added: tuple[EnginePlan, ...] = ()
    stand_ins: tuple[EnginePlan, ...] = ()
    replaced: tuple[EnginePlan, ...] = ()  # under their names
    restarted: tuple[str, ...] = ()
    moved: tuple[tuple[str, EnginePlan], ...] = ()  # an engine, and what gets its place
    removed: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self == Outline()

    @property
    def disturbed(self) -> tuple[str, ...]:
        """Engines that serve, and do not for a while, or ever again."""
        return (*(each.id for each in self.replaced), *self.restarted, *(name for name, _ in self.moved), *self.removed)

    def lines(self) -> list[str]:
        said = [f"model {each.model.name} comes, and is served once its engines are ready" for each in self.coming]
        said += [f"model {key} goes: it takes no new requests, and those that run may end" for key in self.going]
        said += [f"{each.id} is added: {share(each)}" for each in self.added]
        said += [f"{each.id} stands in meanwhile, and is removed in the end: {share(each)}" for each in self.stand_ins]
        if self.replaced:
            said.append(f"start again with other arguments, one after the other: {_names(self.replaced)}")
        if self.restarted:
            said.append(f"start again, one after the other: {', '.join(self.restarted)}")
        said += [f"{name} drains, and {to.id} starts in its place" for name, to in self.moved]
        said += [f"{name} drains, and is removed" for name in self.removed]
        return said


def towards(wanted: Mapping[str, EnginePlan], running: Mapping[str, EnginePlan]) -> Outline:
    """Without stand-ins: whether there is room for them is not known here."""
    removed = sorted((name for name in running if name not in wanted), key=number_of, reverse=True)
    there = [each for each in wanted.values() if each.id in running]
    return Outline(
        added=tuple(each for each in wanted.values() if each.id not in running),
        replaced=tuple(each for each in there if not is_same(each, running[each.id])),
        removed=tuple(removed),
    )


def with_models(outline: Outline, plans: Iterable[Plan], registry: Watched) -> Outline:
    """`plans`: one for each of several models, as they are wanted. What is served is what the registry says."""
    wanted = {plan.deployment.key: plan for plan in plans if plan.deployment.key}
    served = {key for key, record in registry.models.items() if record.state is ModelState.SERVING}
    coming = tuple(plan for key, plan in wanted.items() if key not in served)
    return replace(outline, coming=coming, going=tuple(key for key in registry.models if key not in wanted))


def is_same(one: EnginePlan, other: EnginePlan) -> bool:
    """Whether an engine of the one plan is what the other asks for."""
    return replace(one, id=other.id, pool_index=other.pool_index) == other


def restarts(of: Iterable[str], running: Mapping[str, EnginePlan]) -> tuple[str, ...] | str:
    """The engines that `of` names, in their order; or the word that names none."""
    chosen: list[str] = []
    for word in of or list(ROLES):
        named = [name for name, plan in running.items() if word in _called(plan)]
        if not named and of:
            return word
        chosen += sorted(named, key=number_of)
    return tuple(dict.fromkeys(chosen))


def _called(plan: EnginePlan) -> tuple[str, ...]:
    """What names it: alone, or with others."""
    of_model = (plan.group, engine_id_in(plan.group, plan.role.value)) if plan.group else ()
    return (plan.id, plan.role.value, *of_model)


def possible_stand_ins(outline: Outline, running: Mapping[str, EnginePlan]) -> list[EnginePlan]:
    """One for each role of which an engine is replaced, or the only one is started again; none where one is added."""
    added = {duty_of(each) for each in outline.added}
    by_duty: dict[Duty, EnginePlan] = {duty_of(each): each for each in outline.replaced}
    for name in outline.restarted:
        if count_of(duty := duty_of(running[name]), running) == 1:
            by_duty[duty] = running[name]
    taken = {*running, *(each.id for each in outline.added)}
    return [replace(each, id=free_name(duty, taken)) for duty, each in by_duty.items() if duty not in added]


def count_of(duty: Duty, running: Mapping[str, EnginePlan]) -> int:
    return sum(duty_of(each) == duty for each in running.values())


def without_room(outline: Outline, have_room: Collection[str]) -> list[str]:
    """`have_room`: those that are added, or stand in, and would be given a place while all others are there."""
    said = []
    if outline.removed and any(each.id not in have_room for each in outline.added):
        said.append("there is no room for all at once: engines are removed as far as others need their places")
    come = {duty_of(each) for each in (*outline.added, *outline.stand_ins) if each.id in have_room}
    if any(duty_of(each) not in come for each in outline.replaced):
        said.append("there is no room for another engine meanwhile: they go before they come")
    return said


def questions(
    outline: Outline, running: Mapping[str, EnginePlan], registry: Watched, have_room: Collection[str]
) -> dict[Duty, str]:
    """What has to be said yes to, by whose service is taken away. `have_room`: as above."""
    asked: dict[Duty, str] = {}
    named = {plan.model.name for plan in outline.coming}
    ready = {name for name in running if (found := registry.records.get(name)) and found.state is State.READY}
    come = [each for each in (*outline.added, *outline.stand_ins) if each.id in have_room]
    more = {duty_of(each) for each in (*come, *(to for _, to in outline.moved))}
    follow = {duty_of(each) for each in outline.added} - more  # on the places of those that are removed
    gone = {*outline.removed, *(name for name, _ in outline.moved)}
    for duty in dict.fromkeys(map(duty_of, running.values())):
        model, role = duty
        of_model = f" of {model}" if model else ""
        engine = f"{role} engine{of_model}"
        of_duty = {name for name, plan in running.items() if duty_of(plan) == duty}
        if model in outline.going:
            record = registry.models.get(model)
            if record is not None and record.state is ModelState.SERVING and record.spec["name"] not in named:
                asked[duty] = f"the model {record.spec['name']} is served no longer, and who asks for it is refused"
            continue
        if duty in more or not of_duty & set(outline.disturbed):
            continue
        if of_duty <= gone and duty not in follow:
            asked[duty] = f"no {engine} is left then, and what needs one is refused"
        elif len(last := of_duty & ready) == 1 and last <= gone:
            asked[duty] = f"{_listed(last)} is the last {engine} that is ready"
        elif last and last <= gone and duty not in follow:
            asked[duty] = f"{_listed(last)} are the last {role} engines{of_model} that are ready"
        elif len(of_duty) == 1:
            only = next(iter(of_duty))
            asked[duty] = f"{only} is the only {engine}, and there is no room for another: meanwhile nothing is served"
    return asked


def serves_without(engine_id: str, registry: Watched) -> bool:
    """Whether its model is served while this engine is not: by another one, or a pair of others that have met."""
    record = registry.records[engine_id]
    role = ROLES[record.role]
    ready = [r for r in registry.records.values() if r.state is State.READY and r.id != engine_id]
    own = [each for each in ready if each.role is record.role and each.group == record.group]
    if role.partner is None:
        return bool(own)
    partners = [each for each in ready if each.role is role.partner]
    return any(role.pair(one.life, other.life) in registry.met for one in own for other in partners)


def _names(plans: Iterable[EnginePlan]) -> str:
    return ", ".join(each.id for each in plans)


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names, key=number_of))
