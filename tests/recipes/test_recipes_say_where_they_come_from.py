"""Headers and docs/recipes.md: source, expectation, what was run, how to check; the same cluster in both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from disagg.load import load_config
from tests.recipes.catalogue import CLUSTERS, CONFIGS, RECIPES, WITH_PUBLISHED, header_of, text_of
from tests.recipes.test_recipes_equal_what_was_published import ENV_LEFT_OUT, LEFT_OUT

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
ON_GPUS = [recipe for recipe in RECIPES if "device: cuda" in text_of(recipe)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_header_names_the_source_and_what_was_run(recipe: str) -> None:
    header = header_of(recipe)
    assert {"Source", "Run", "Check"} <= header.keys()
    if recipe in ON_GPUS:
        assert re.search(r"\b20\d\d\b", header["Source"])
        assert "Expected" in header
        assert header["Run"].startswith("not yet")
    assert ("Marks" in header) == (recipe in WITH_PUBLISHED)
    assert all(len(line) <= 120 for line in text_of(recipe).splitlines())


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_set_that_a_header_proposes_can_be_set(recipe: str) -> None:
    header = text_of(recipe).split("version:")[0]
    sets = [match[1] or match[2] for match in re.finditer(r"--set (?:'([^']+)'|(\S+))", header)]
    load_config(CONFIGS / f"{recipe}.yaml", sets)


def test_the_page_lists_every_recipe_and_what_is_left_out() -> None:
    assert set(re.findall(r"^\| `([\w-]+)\.yaml` ", PAGE, re.MULTILINE)) == set(RECIPES)
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    assert rows == LEFT_OUT | ENV_LEFT_OUT


def test_the_commands_of_the_page_name_files_that_ship() -> None:
    for config in re.findall(r"configs/([\w-]+)\.yaml", PAGE):
        assert config in RECIPES
    for recipe, cluster in re.findall(r"configs/([\w-]+)\.yaml --assume-cluster configs/clusters/(\S+)", PAGE):
        assert CLUSTERS[recipe] == cluster
