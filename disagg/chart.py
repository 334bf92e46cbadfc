"""A line chart with logarithmic axes, as SVG text: pictures of measurements without a plotting library.

In:    lines by name, points of positive numbers
Out:   SVG for light and dark pages; both axes span whole decades
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 50
COLOURS = ("#3465a4", "#c4510f", "#4e8a06", "#75507b", "#a08000", "#cc0000", "#1a8c8c", "#777777")


def chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    x_word: Callable[[float], str] = "{:g}".format,
) -> str:
    """`x_word` says a value of the x axis."""
    points = [point for line in lines.values() for point in line]
    middle_px = (LEFT + WIDTH - RIGHT) / 2
    across = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            'font-size="12" fill="#888">',
            f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
            *_grid(across, up, x_word),
            f'<text x="{middle_px:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
            f'<text x="14" y="{HEIGHT / 2:.0f}" text-anchor="middle" '
            f'transform="rotate(-90 14 {HEIGHT / 2:.0f})">{escape(y_label)}</text>',
            *_drawn(lines, across, up),
            "</svg>\n",
        ]
    )


class _Axis:
    def __init__(self, values: Sequence[float], begin_px: float, end_px: float) -> None:
        low, high = min(values), max(values)
        if low <= 0:
            raise ValueError(f"{low} has no place on a logarithmic axis")
        self._first = math.floor(math.log10(low))
        self._last = max(math.ceil(math.log10(high)), self._first + 1)
        self._begin_px, self._end_px = begin_px, end_px

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._first) / (self._last - self._first)
        return self._begin_px + share * (self._end_px - self._begin_px)

    def decades(self) -> list[float]:
        return [10.0**power for power in range(self._first, self._last + 1)]


def _grid(across: _Axis, up: _Axis, x_word: Callable[[float], str]) -> Iterator[str]:
    for value in across.decades():
        x = across.at(value)
        yield f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#8884"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(x_word(value))}</text>'
    for value in up.decades():
        y = up.at(value)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#8884"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'


def _drawn(lines: Mapping[str, Points], across: _Axis, up: _Axis) -> Iterator[str]:
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in points)
        yield f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>'
        y = TOP + 18 * number + 8
        yield f'<path d="M{WIDTH - RIGHT + 14} {y}h18" stroke="{colour}" stroke-width="3"/>'
        yield f'<text x="{WIDTH - RIGHT + 38}" y="{y + 4}">{escape(name)}</text>'
