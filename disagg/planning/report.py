"""What `disagg check` and `disagg serve --dry-run` print of an assessed plan, for people and for programs.

Way:   plan -> assess -> [report] -> stdout
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from disagg.errors import Problem
from disagg.planning.assess import Assessment
from disagg.planning.cluster_shape import GIB
from disagg.planning.kv_pages import real_page_size
from disagg.planning.lanes import DESCRIPTOR_S, Lane, transfer_s
from disagg.planning.memory import MemoryEstimate
from disagg.planning.plan import EnginePlan, complete_arguments, shown_arguments, shown_environment
from disagg.sglang.command_line import command_line
from disagg.sglang.releases import RELEASES, installed_release

PROMPTS = (1024, 8192, 32_768)  # tokens


def render_all(seen: Sequence[Assessment], warnings: Sequence[str] = ()) -> str:
    """One after the other; what could surprise stands at the end."""
    return "\n\n".join(render(each, warnings if each is seen[-1] else ()) for each in seen)


def render(seen: Assessment, warnings: Sequence[str] = ()) -> str:
    blocks = [_head(seen), *_engines(seen), _transfers(seen), _left_open(seen, warnings)]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def to_json(seen: Sequence[Assessment], problems: Sequence[Problem] = (), warnings: Sequence[str] = ()) -> str:
    """`problems`: all that speaks against the plan. Of several models each has its own part of the answer."""
    said = {"problems": [asdict(problem) for problem in problems], "warnings": warnings}
    if len(seen) == 1:
        return json.dumps(_tree(seen[0]) | said, indent=2, default=str)
    models = {each.plan.deployment.key: _tree(each) for each in seen}
    return json.dumps({"models": models, **said}, indent=2, default=str)


def _tree(seen: Assessment) -> dict[str, Any]:
    plan, facts = seen.plan, seen.facts
    names = ("model", "ray", "frontend", "deadlines", "routing", "health", "transfer", "registry")
    return {
        "name": plan.deployment.name,
        "namespace": plan.deployment.namespace,
        "device": plan.device,
        **{name: getattr(plan.deployment, name).model_dump() for name in names},
        "facts": asdict(facts) | {"kv_bytes_per_token": facts.kv_bytes_per_token()} if facts else None,
        "engines": [_engine_tree(seen, engine) for engine in plan.engines],
        "transfers": [
            {
                "pool": pool,
                **lane._asdict(),
                "pairs": pairs,
                "tokens": tokens,
                "seconds": transfer_s(lane, arguments, facts, tokens),
            }
            for pool, lane, pairs, arguments in _lanes(seen)
            for tokens in _prompts(seen)
            if facts
        ],
        "not_checked": seen.unknown,
    }


def _engine_tree(seen: Assessment, engine: EnginePlan) -> dict[str, Any]:
    memory, said = seen.memory.get(engine.id), ("id", "role", "pool", "nodes", "ranks", "dp_ranks", "spare", "pace_ms")
    return {
        **{name: getattr(engine, name) for name in said},
        "resources": {"cpus": engine.cpus, "gpus": engine.gpus},
        "members": [asdict(member) for member in seen.placement.of(engine.id)],
        "memory": asdict(memory) | {"free": memory.free} if memory else None,
        "arguments": shown_arguments(seen.plan, engine),
        "command_line": None if seen.plan.device == "simulated" else _words(seen, engine),
        "environment": shown_environment(seen.plan, engine),
    }


def _head(seen: Assessment) -> list[str]:
    plan, facts = seen.plan, seen.facts
    revision = f"@{plan.model.revision}" if plan.model.revision else ""
    head = [
        f"name      {plan.deployment.name} (namespace {plan.deployment.namespace})",
        f"model     {plan.model.path}{revision}, served as {plan.model.name}",
    ]
    if facts:
        measured = "" if facts.weights_measured else ", estimated"
        kind = f"{facts.experts} experts, {facts.experts_per_token} a token" if facts.experts else "dense"
        head += [
            f"          {facts.architecture}: {facts.layers} layers, {kind}, context {facts.context_length:,} tokens",
            f"          {facts.parameters.total / 1e9:,.1f}B parameters, weights {_gib(facts.weight_bytes)}"
            f"{f' ({facts.quantisation})' if facts.quantisation else ''}{measured};"
            f" KV {facts.kv_bytes_per_token():,} bytes a token in {facts.dtype}",
        ]
    head += [f"device    {plan.device}", f"ray       {plan.ray.address}", f"frontend  {plan.frontend.base_url}"]
    if seen.shape:
        head.append(f"cluster   {seen.shape.source}: {len(seen.shape.nodes)} nodes, {seen.shape.gpus} GPUs, assumed")
    return head


def _engines(seen: Assessment) -> Iterator[list[str]]:
    """One line an engine; what all engines of a pool share is printed with the first one."""
    said: dict[str, str] = {}
    for engine in seen.plan.engines:
        lines = [_title(engine)]
        lines += [f"  {line}" for line in _members(seen, engine)]
        alike = said.setdefault(f"{engine.role.value}.{engine.pool_index}", engine.id)
        memory = seen.memory.get(engine.id)
        if memory and (alike == engine.id or memory != seen.memory[alike]):
            lines.append(f"  {_memory(memory, engine, cuda=seen.plan.device == 'cuda')}")
        if alike == engine.id:
            lines += [f"  {line}" for line in _command(seen, engine)]
            lines += [f"  {name}={value}" for name, value in shown_environment(seen.plan, engine).items()]
        else:
            lines.append(f"  command line and environment as {alike}")
        yield lines


def _command(seen: Assessment, engine: EnginePlan) -> list[str]:
    """One option a line, as a shell takes it. A simulated engine has no command line."""
    if seen.plan.device == "simulated":
        return [f"{name}: {_text(value)}" for name, value in shown_arguments(seen.plan, engine).items()]
    words = _words(seen, engine)
    starts = [index for index, word in enumerate(words) if word.startswith("--")]
    options = [shlex.join(words[start:end]) for start, end in pairwise([*starts, len(words)])]
    lines = " \\\n  ".join([shlex.join(words[: starts[0]]), *options]).split("\n")
    return [f"as sglang {_version(seen, engine)} would be started by hand:", *lines]


def _words(seen: Assessment, engine: EnginePlan) -> list[str]:
    arguments = complete_arguments(seen.plan, engine)
    return command_line(dict(sorted(arguments.items())), _version(seen, engine))


def _version(seen: Assessment, engine: EnginePlan) -> str:
    """Of the engine's node where it is described, else what is installed here, else the latest we know."""
    nodes = [seen.shape.node(member.node) for member in seen.placement.of(engine.id)] if seen.shape else []
    installed = installed_release()
    return next((node.sglang for node in nodes if node.sglang), installed.version if installed else RELEASES[-1])


def _title(engine: EnginePlan) -> str:
    share = f"{engine.cpus:g} CPU" + (f", {engine.gpus:g} GPU" if engine.gpus else "")
    nodes = f" on each of {engine.nodes} nodes" if engine.nodes > 1 else ""
    ranks = f", {engine.ranks} ranks" if engine.ranks > 1 else ""
    groups = f" in {engine.dp_ranks} data-parallel groups" if engine.dp_ranks > 1 else ""
    return f"{engine.id}  ({engine.role.value}, pool {engine.pool}: {share}{nodes}{ranks}{groups})"


def _members(seen: Assessment, engine: EnginePlan) -> Iterator[str]:
    for member in seen.placement.of(engine.id):
        gpus = f", GPU {_span(member.gpus)}" if member.gpus else ""
        node = seen.shape.node(member.node) if seen.shape else None
        address = f" ({node.address})" if node and node.address else ""
        yield f"node {member.node}{address}{gpus}: rank {_span(member.ranks)}"


def _memory(memory: MemoryEstimate, engine: EnginePlan, *, cuda: bool) -> str:
    kv = f"{memory.kv_bytes_per_token:,} bytes a token"
    if memory.kv is not None and memory.kv_tokens is not None:
        group = " a data-parallel group" if engine.dp_ranks > 1 else ""
        kv = f"{_gib(memory.kv)} for {memory.kv_tokens:,} tokens{group} ({kv})"
    parts = [f"weights {_gib(memory.weights)}", f"KV {kv}"]
    if memory.total is not None and memory.reserve is not None and memory.free is not None:
        left = f"{_gib(memory.free)} free" if memory.free >= 0 else f"{_gib(-memory.free)} TOO LITTLE"
        parts += [f"graphs and activations {_gib(memory.reserve)}", f"of {_gib(memory.total)}: {left}"]
    return f"{'GPU memory' if cuda else 'memory'} of a rank, estimated: {', '.join(parts)}"


def _transfers(seen: Assessment) -> list[str]:
    rows = []
    for pool, lane, pairs, arguments in _lanes(seen):
        assert seen.facts is not None
        costs = [transfer_s(lane, arguments, seen.facts, tokens) for tokens in _prompts(seen)]
        shown = " | ".join(f"{_duration(best)} to {_duration(worst)}" for best, worst in costs)
        count = f", {pairs} pair{'s' if pairs > 1 else ''} of members" if pairs else ""
        sender = f"from {pool} over " if len(seen.lanes) > 1 else ""
        rows.append(f"  {sender}{lane.name}, {lane.gbyte_s:g} GB/s{count}: {shown}   ({lane.source})")
    if not rows:
        return []
    prompts = " | ".join(f"{tokens:,}" for tokens in _prompts(seen))
    size = next(f"pages of {real_page_size(arguments)[0]}" for *_, arguments in _lanes(seen))
    scattered = f"scattered ({DESCRIPTOR_S * 1e6:g} µs a piece, as measured over cuda_ipc)"
    return [f"KV of a prompt of {prompts} tokens, estimated, {size} side by side to {scattered}:", *rows]


def _lanes(seen: Assessment) -> Iterator[tuple[str, Lane, int, dict[str, Any]]]:
    """The lanes of each pool that sends KV, the slowest last, with what a prompt's KV costs as its engines would send
    it."""
    for pool, lanes in seen.lanes.items() if seen.facts else ():
        sender = next(engine for engine in seen.plan.engines if engine.pool == pool)
        for lane, pairs in sorted(lanes.items(), key=lambda item: -item[0].gbyte_s):
            yield pool, lane, pairs, complete_arguments(seen.plan, sender)


def _prompts(seen: Assessment) -> list[int]:
    longest = seen.facts.context_length if seen.facts else 0
    return [tokens for tokens in PROMPTS if not longest or tokens <= longest]


def _left_open(seen: Assessment, warnings: Sequence[str]) -> list[str]:
    return [
        "auto: decided when an engine starts, anew for each of its lives",
        *(f"not checked: {what}" for what in seen.unknown),
        *(f"warning: {warning}" for warning in warnings),
    ]


def _span(numbers: tuple[int, ...]) -> str:
    """0-7, or 0,2,5."""
    first, last = numbers[0], numbers[-1]
    if len(numbers) > 1 and numbers == tuple(range(first, last + 1)):
        return f"{first}-{last}"
    return ",".join(map(str, numbers))


def _duration(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _gib(count: int) -> str:
    return f"{count / GIB:,.1f} GiB"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
