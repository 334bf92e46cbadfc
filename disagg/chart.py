"""Charts as SVG text, for light and dark pages: lines, bars with their spread, dots over time.

In:    numbers by name; what both axes say, with units
Out:   SVG: a grid with its values, the words of both axes, a legend. The same input gives the same text
Fails: ValueError for a value that has no place on a logarithmic axis
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from statistics import median
from typing import NamedTuple

Points = Sequence[Sequence[float]]  # (x, y)
Word = Callable[[float], str]  # of a value, at its line of the grid
COLOURS = ("#3465a4", "#c4510f", "#4e8a06", "#75507b", "#a08000", "#cc0000", "#1a8c8c", "#777777")
WIDTH, HEIGHT = 760, 420  # of a chart of lines
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50  # around it; the legend is on the right
WIDE, PANEL, LINE = 900, 200, 18  # of a chart of panels: its width, a panel's height, a line of text
TICKS = 4  # of an axis that is not logarithmic, about
DOTS_MAX = 1500


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float


def chart(title: str, lines: Mapping[str, Points], *, x_label: str, y_label: str, x_word: Word = "{:g}".format) -> str:
    """Lines, both axes logarithmic, over whole decades."""
    box = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    points = [point for line in lines.values() for point in line]
    across = LogAxis([x for x, _ in points], box.left, box.right)
    up = LogAxis([y for _, y in points], box.bottom, box.top)
    parts = [_text(LEFT, 20, title, size=14), *_axes(box, across, up, x_label, y_label, x_word)]
    for number, (name, line) in enumerate(lines.items()):
        places = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{_colour(number)}" stroke-width="2"/>')
        parts += _legend(box.right + 14, TOP + LINE * number + 8, number, name)
    return _picture(WIDTH, HEIGHT, parts)


def bars(
    panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], names: Mapping[str, str], *, x_label: str
) -> str:
    """panel (what its bars measure) -> group -> name -> values. A bar is their median, with a line from the least of
    them to the most. `names`: name -> what it stands for."""
    parts: list[str] = []
    for number, (y_label, groups) in enumerate(panels.items()):
        box = _panel(number)
        most = max((max(values) for by in groups.values() for values in by.values() if values), default=1.0)
        up = Axis(0.0, most, box.bottom, box.top)
        parts += _axes(box, None, up, x_label, y_label)
        group_px = (box.right - box.left) / max(1, len(groups))
        bar_px = group_px * 0.8 / len(names)
        for at, (group, by) in enumerate(groups.items()):
            left = box.left + (at + 0.1) * group_px
            parts.append(_text(left + group_px * 0.4, box.bottom + 18, group, anchor="middle"))
            for bar, name in enumerate(names):
                if values := by.get(name):
                    parts += _bar(left + bar * bar_px, bar_px * 0.9, up, values, _colour(bar))
    foot = _panel(len(panels)).top - 20
    for number, (name, what) in enumerate(names.items()):
        parts += _legend(LEFT, foot + number * LINE, number, f"{name}: {what}")
    return _picture(WIDE, foot + len(names) * LINE, parts)


def dots(panels: Mapping[str, Points], *, x_label: str, y_label: str) -> str:
    """A panel each, all on the same axes; upwards they are logarithmic, from 1."""
    every = [point for points in panels.values() for point in points]
    parts: list[str] = []
    for number, (name, points) in enumerate(panels.items()):
        box = _panel(number)
        across = Axis(min(x for x, _ in every), max(x for x, _ in every), box.left, box.right)
        up = LogAxis([1.0, *(max(1.0, y) for _, y in every)], box.bottom, box.top)
        parts += _axes(box, across, up, x_label, y_label)
        parts.append(_text(LEFT, box.top - 8, name, size=13))
        drawn = "".join(f"M{across.at(x):.1f} {up.at(max(1.0, y)):.1f}h0" for x, y in thinned(points))
        parts.append(f'<path d="{drawn}" stroke="{_colour(number)}" stroke-width="2.4" stroke-linecap="round"/>')
    return _picture(WIDE, _panel(len(panels)).top - 20, parts)


def thinned(points: Points) -> list[Sequence[float]]:
    """The highest are all there; of the others as many as can be told apart."""
    ordered = sorted(points, key=lambda point: -point[1])
    highest, others = ordered[: DOTS_MAX // 4], sorted(ordered[DOTS_MAX // 4 :], key=lambda point: point[0])
    return [*highest, *others[:: max(1, len(others) // DOTS_MAX)]]


class Axis:
    """From one round number to another, `low` and `high` between them."""

    def __init__(self, low: float, high: float, begin_px: float, end_px: float) -> None:
        step = _round_step((high - low) / TICKS)
        first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
        self.ticks = [step * number for number in range(first, last + 1)]
        self._begin_px, self._end_px = begin_px, end_px

    def at(self, value: float) -> float:
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return self._begin_px + share * (self._end_px - self._begin_px)


class LogAxis:
    """Over whole decades."""

    def __init__(self, values: Sequence[float], begin_px: float, end_px: float) -> None:
        low, high = min(values), max(values)
        if low <= 0:
            raise ValueError(f"{low} has no place on a logarithmic axis")
        first = math.floor(math.log10(low))
        self._powers = range(first, max(math.ceil(math.log10(high)), first + 1) + 1)
        self.ticks = [10.0**power for power in self._powers]
        self._begin_px, self._end_px = begin_px, end_px

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._powers[0]) / (self._powers[-1] - self._powers[0])
        return self._begin_px + share * (self._end_px - self._begin_px)


def _round_step(about: float) -> float:
    """1, 2 or 5 times a power of ten, the first that is not below `about`."""
    power = 10.0 ** math.floor(math.log10(about)) if about > 0 else 1.0
    return next((power * times for times in (1, 2, 5) if power * times >= about), power * 10)


def _panel(number: int) -> Box:
    top = TOP + number * (PANEL + TOP + BOTTOM)
    return Box(LEFT, top, WIDE - 20, top + PANEL)


def _axes(
    box: Box,
    across: Axis | LogAxis | None,
    up: Axis | LogAxis,
    x_label: str,
    y_label: str,
    x_word: Word = "{:g}".format,
) -> Iterator[str]:
    for value in across.ticks if across else ():
        x = across.at(value) if across else 0.0
        yield f'<path d="M{x:.1f} {box.top}V{box.bottom}" stroke="#8884"/>'
        yield _text(x, box.bottom + 18, x_word(value), anchor="middle")
    for value in up.ticks:
        y = up.at(value)
        yield f'<path d="M{box.left} {y:.1f}H{box.right}" stroke="#8884"/>'
        yield _text(box.left - 6, y + 4, f"{value:g}", anchor="end")
    yield _text((box.left + box.right) / 2, box.bottom + 36, x_label, anchor="middle")
    middle = (box.top + box.bottom) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    yield f'<text x="14" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(y_label)}</text>'


def _bar(left: float, width: float, up: Axis, values: Sequence[float], colour: str) -> Iterator[str]:
    top, middle = up.at(median(values)), left + width / 2
    yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{up.at(0) - top:.1f}" fill="{colour}"/>'
    yield f'<path d="M{middle:.1f} {up.at(min(values)):.1f}V{up.at(max(values)):.1f}" stroke="#888" stroke-width="2"/>'


def _legend(x: float, y: float, number: int, name: str) -> Iterator[str]:
    yield f'<path d="M{x} {y}h18" stroke="{_colour(number)}" stroke-width="4"/>'
    yield _text(x + 24, y + 4, name)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _picture(width: float, height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="12" fill="#888">', *parts, "</svg>\n"])
