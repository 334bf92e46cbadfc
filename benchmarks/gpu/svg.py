"""Two kinds of picture, as SVG text: groups of bars with their spread, and points over time on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

COLOURS = ("#7a8793", "#c98a2b", "#1f6fb2", "#6b3fa0", "#3f8f5f")
WIDTH, PANEL, LEFT, RIGHT, TOP, FOOT = 900, 200, 60, 20, 34, 34
DOTS_MAX = 1500
FONT = 'font-family="sans-serif" font-size="11"'


def bars(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], names: Mapping[str, str]) -> str:
    """panel -> group -> name -> values; each bar is their median, with a line from the least to the most."""
    parts = []
    for number, (title, groups) in enumerate(panels.items()):
        top = number * (PANEL + TOP + FOOT) + TOP
        most = max((max(values) for by in groups.values() for values in by.values() if values), default=1.0)
        parts.append(_text(LEFT, top - 8, title, weight="bold"))
        parts += _scale(top, [most * share for share in (0, 0.5, 1)], lambda value, most=most: value / most)
        group_width = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
        width = group_width * 0.8 / len(names)
        for at, (group, by) in enumerate(groups.items()):
            left = LEFT + at * group_width + group_width * 0.1
            parts.append(_text(left + group_width * 0.4, top + PANEL + 14, group, anchor="middle"))
            for bar, name in enumerate(names):
                if values := by.get(name):
                    parts += _bar(left + bar * width, width * 0.9, top, most, values, COLOURS[bar])
    height = len(panels) * (PANEL + TOP + FOOT) + 24
    return _picture(height, [*parts, *_legend(height - 12, [f"{key}: {what}" for key, what in names.items()])])


def points(series: Mapping[str, Sequence[Sequence[float]]], title: str) -> str:
    """name -> (x, y) pairs, a panel each, all on the same scales."""
    every = [point for pairs in series.values() for point in pairs]
    low_x, high_x = min(x for x, _ in every), max(x for x, _ in every)
    low, high = 1.0, 10 ** math.ceil(math.log10(max(10.0, *(y for _, y in every))))

    def up(value: float) -> float:
        return math.log10(max(value, low) / low) / math.log10(high / low)

    parts = []
    ticks = [10.0**power for power in range(round(math.log10(high)) + 1)]
    for number, (name, pairs) in enumerate(series.items()):
        top = number * (PANEL + TOP) + TOP
        parts.append(_text(LEFT, top - 8, name, weight="bold"))
        parts += _scale(top, ticks, up)
        dots = [
            f"M{LEFT + (x - low_x) / max(1e-9, high_x - low_x) * (WIDTH - LEFT - RIGHT):.1f} "
            f"{top + PANEL * (1 - up(y)):.1f}h0"
            for x, y in thinned(pairs)
        ]
        stroke = f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2.4" stroke-linecap="round"'
        parts.append(f'<path d="{"".join(dots)}" {stroke}/>')
    height = len(series) * (PANEL + TOP) + TOP
    return _picture(height, [*parts, _text(LEFT, height - 10, f"{title}; {low_x:.0f} to {high_x:.0f}")])


def thinned(pairs: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """The highest are all there; of the others as many as can be told apart."""
    ordered = sorted(pairs, key=lambda pair: -pair[1])
    highest, others = ordered[: DOTS_MAX // 4], sorted(ordered[DOTS_MAX // 4 :], key=lambda pair: pair[0])
    return [*highest, *others[:: max(1, len(others) // DOTS_MAX)]]


def _bar(left: float, width: float, top: float, most: float, values: Sequence[float], colour: str) -> list[str]:
    def y(value: float) -> float:
        return top + PANEL * (1 - value / most)

    middle, tall = left + width / 2, PANEL * median(values) / most
    return [
        f'<rect x="{left:.1f}" y="{top + PANEL - tall:.1f}" width="{width:.1f}" height="{tall:.1f}" fill="{colour}"/>',
        f'<path d="M{middle:.1f} {y(min(values)):.1f}V{y(max(values)):.1f}" stroke="#222"/>',
    ]


def _scale(top: float, ticks: Sequence[float], up: object) -> list[str]:
    assert callable(up)
    parts = []
    for tick in ticks:
        y = top + PANEL * (1 - up(tick))
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{tick:.{0 if tick >= 10 or not tick else 1}f}", anchor="end"))
    return parts


def _legend(y: float, names: Sequence[str]) -> list[str]:
    step = (WIDTH - LEFT) / len(names)
    parts = []
    for number, name in enumerate(names):
        left = LEFT + number * step
        parts.append(f'<rect x="{left:.0f}" y="{y - 9:.0f}" width="10" height="10" fill="{COLOURS[number]}"/>')
        parts.append(_text(left + 16, y, name))
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" {FONT} text-anchor="{anchor}" font-weight="{weight}">{text}</text>'


def _picture(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>', *parts, "</svg>\n"])
