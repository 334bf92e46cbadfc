"""Charts that can be read: both axes with their units and round values, a legend, and every value in its place."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from disagg.chart import DOTS_MAX, Axis, LogAxis, bars, chart, dots, thinned

SVG = "{http://www.w3.org/2000/svg}"


def words(picture: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_an_axis_goes_from_one_round_number_to_another() -> None:
    assert Axis(0, 1113, 0, 100).ticks == [0, 500, 1000, 1500]
    assert Axis(-1360, 5040, 0, 100).ticks == [-2000, 0, 2000, 4000, 6000]
    assert Axis(0, 1.0, 0, 100).ticks == pytest.approx([0, 0.5, 1.0])
    assert Axis(7, 7, 0, 100).ticks == [7, 8]
    assert (Axis(0, 1113, 200, 0).at(0), Axis(0, 1113, 200, 0).at(750)) == (200, 100)
    assert LogAxis([3, 70], 0, 100).ticks == [1, 10, 100]
    assert LogAxis([3, 70], 0, 100).at(10) == 50


def test_a_chart_of_lines_says_its_axes_and_names_its_lines() -> None:
    said = words(chart("KV", {"contiguous": [(1, 1), (100, 10)]}, x_label="bytes", y_label="GB/s", x_word=hex_of))
    assert said == ["KV", "0x1", "0xa", "0x64", "1", "10", "bytes", "GB/s", "contiguous"]


def hex_of(value: float) -> str:
    return hex(int(value))


def test_bars_are_medians_with_their_spread() -> None:
    names = {"a": "one & one", "b": "two"}
    picture = bars({"tok/s": {"c1": {"a": [1.0, 2.0, 4.0], "b": []}}}, names, x_label="clients")
    assert words(picture) == ["0", "1", "2", "3", "4", "clients", "tok/s", "c1", "a: one & one", "b: two"]
    (bar,) = ElementTree.fromstring(picture).iter(f"{SVG}rect")
    assert (bar.get("y"), bar.get("height")) == ("140.0", "100.0")
    assert "V40.0" in picture, "up to the most of them"


def test_dots_of_all_panels_are_on_the_same_axes_and_few_enough_to_draw() -> None:
    many = [(float(i), 5.0 + i % 7) for i in range(20_000)] + [(3.0, 900.0)]
    assert (3.0, 900.0) in thinned(many)
    assert len(thinned(many)) < 2.5 * DOTS_MAX
    said = words(dots({"c: ours": many, "b: bare": [(0.0, 0.2)]}, x_label="ms", y_label="gap, ms"))
    assert (said.count("1000"), said.count("20000"), said.count("gap, ms")) == (2, 2, 2)
    assert {"c: ours", "b: bare"} <= set(said)
